"""The ways to train that are compared: this project's, the bare step, the reported study's.

Each is a function of a `Setting` that returns `run(steps)`, which trains so many steps and returns
how many frames that were; peers.py has those of MONAI and segmentation_models.pytorch. The network
and its weights are the same in all. Loaders never end (their sampler goes on), so that no start of
worker processes and no end of an epoch falls into the time that is measured: in favour of those
that have workers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

import ours
from data import list_pairs
from thyroid_lib.data.store import Store
from thyroid_lib.models import arithmetic

ENDLESS = 10**7  # frames


@dataclass
class Setting:
    """What all loops share."""

    frames: Path  # the files that the others read
    store: Store  # what this project made of them, before
    device: torch.device
    precision: str  # the project's choice here
    width: int
    size: int = 256
    batch: int = 16
    model: str = "unet"

    def make_model(self) -> nn.Module:
        return ours.make_model(self.model, self.width, self.device)


def project(setting: Setting, precision: str = "") -> Callable[[int], int]:
    """`train.train_epoch` over a store's memory map (on a GPU: held there)."""
    return ours.trainer(
        setting.make_model(), setting.store, device=setting.device,
        precision=precision or setting.precision, batch_size=setting.batch,
    )  # fmt: skip


def project_fp32(setting: Setting) -> Callable[[int], int]:
    return project(setting, "fp32")


def bare(setting: Setting) -> Callable[[int], int]:
    """Nothing but the step: tensors ready on the device, in the project's layout and precision."""
    net = setting.make_model()
    draw = torch.Generator().manual_seed(0)
    shape = (8, setting.batch, 1, setting.size, setting.size)
    images = torch.rand(shape, generator=draw).to(setting.device)
    masks = (torch.rand(shape, generator=draw) > 0.5).float().to(setting.device)
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    masks = [mask.contiguous(memory_format=torch.channels_last) for mask in masks]
    step = equal_step(net, setting)

    def run(steps: int) -> int:
        for number in range(steps):
            step(images[number % 8], masks[number % 8])
        return steps * setting.batch

    return run


def equal_step(net: nn.Module, setting: Setting) -> Callable[[Tensor, Tensor], tuple]:
    """The project's step, written out: same layout, precision, loss and optimiser."""
    optimiser = torch.optim.Adam(net.parameters(), lr=ours.LR, fused=True)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision == "fp16")

    def step(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        optimiser.zero_grad(set_to_none=True)
        with arithmetic(setting.precision, setting.device):
            logits = net(image)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), mask)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        return loss, logits

    return step


def endless(dataset: Dataset, setting: Setting, workers: int, make=DataLoader, **how) -> Iterator:
    """Shuffled batches without end from `workers` processes that stay alive."""
    sampler = RandomSampler(dataset, num_samples=ENDLESS)
    how = {"batch_size": setting.batch, "num_workers": workers, **how}
    return iter(make(dataset, sampler=sampler, **how))


def by_step(steps: Iterator[int]) -> Callable[[int], int]:
    """Turn a loop that yields after each step how many frames it was into `run(steps)`."""
    return lambda count: sum(next(steps) for _ in range(count))


class ReportedFrames(Dataset):
    """Opens, converts, resizes and scales a pair whenever it is asked for, as the report did."""

    def __init__(self, folder: Path, size: int):
        self.pairs, self.size = list_pairs(folder), size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return tuple(self._read(path) for path in self.pairs[index])

    def _read(self, path: Path) -> Tensor:
        square = Image.open(path).convert("L").resize((self.size,) * 2, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square))[None].float().div(255)  # (1,S,S) in [0,1]


def reported(setting: Setting) -> Callable[[int], int]:
    """The reported study's loop: two workers, fp32, contiguous, sigmoid and BCELoss, plain Adam."""
    net = setting.make_model().to(memory_format=torch.contiguous_format)
    frames = ReportedFrames(setting.frames, setting.size)
    batches = endless(frames, setting, workers=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=ours.LR, foreach=False, fused=False)
    measure_loss = nn.BCELoss()

    def train() -> Iterator[int]:
        total = 0.0
        for image, mask in batches:
            image, mask = image.to(setting.device), mask.to(setting.device)
            optimiser.zero_grad()
            loss = measure_loss(torch.sigmoid(net(image)), mask)
            loss.backward()
            optimiser.step()
            total += loss.item()
            yield len(image)

    return by_step(train())
