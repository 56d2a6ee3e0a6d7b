"""The training loops that are compared: this project's, the bare step, and the reported study's.

Each is a function of a `Setting` that returns `run(steps)`, which trains so many steps and returns
the number of frames; peers.py has those of MONAI and smp. Network and initial weights are the same
in all. Loaders never end, so that no start of worker processes is timed, in favour of those loops.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
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
Run = Callable[[int], int]  # steps → frames
Step = Callable[[Tensor, Tensor], Tensor]  # image, mask (B,1,S,S) → loss


@dataclass
class Setting:
    """What all loops share."""

    frames: Path  # the image files, which the other loops read
    store: Store  # the project's store of them
    device: torch.device
    precision: str  # the project's choice here
    width: int
    size: int = 256
    batch: int = 16
    model: str = "unet"
    epoch_steps: int = 1  # of the project's loop; a divisor of the steps that are timed

    def make_model(self) -> nn.Module:
        return ours.make_model(self.model, self.width, self.device)


def project(setting: Setting, precision: str = "", **settings) -> Run:
    """The project's recipe over a store, in epochs of `epoch_steps` steps."""
    rows = np.random.default_rng(0).permutation(len(setting.store))
    rows = np.resize(rows, setting.epoch_steps * setting.batch)
    epochs = ours.train(
        setting.make_model(), setting.store, rows, device=setting.device,
        precision=precision or setting.precision, batch_size=setting.batch, **settings,
    )  # fmt: skip
    return lambda steps: sum(next(epochs) for _ in range(max(1, steps // setting.epoch_steps)))


project_fp32 = partial(project, precision="fp32")


def repeat(batches: Iterator[tuple[Tensor, Tensor]], step: Step, *, read_loss: bool = True) -> Run:
    """Turn batches and a step into `run(steps)`; most loops read the loss back after each step."""

    def run(steps: int) -> int:
        frames, total = 0, 0.0
        for _ in range(steps):
            image, mask = next(batches)
            loss = step(image, mask)
            total += loss.item() if read_loss else 0
            frames += len(image)
        return frames

    return run


def bare(setting: Setting) -> Run:
    """Only the step: tensors ready on the device, in the project's layout and precision."""
    draw = torch.Generator().manual_seed(0)
    shape, layout = (setting.batch, 1, setting.size, setting.size), torch.channels_last
    batches = []
    for _ in range(8):
        image, mask = (torch.rand(shape, generator=draw).to(setting.device) for _ in range(2))
        mask = (mask > 0.5).float()
        batches.append([each.contiguous(memory_format=layout) for each in (image, mask)])
    return repeat(cycle(batches), equal_step(setting.make_model(), setting), read_loss=False)


def equal_step(net: nn.Module, setting: Setting, watch=None) -> Step:
    """The project's step: same layout, precision, loss and optimiser."""
    optimiser = torch.optim.Adam(net.parameters(), lr=ours.LR, fused=True)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision == "fp16")

    def step(image: Tensor, mask: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad(set_to_none=True)
        with arithmetic(setting.precision, setting.device):
            logits = net(image)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), mask)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        if watch:
            watch(loss, logits, mask)
        return loss

    return step


def plain_step(net: nn.Module, optimiser, measure_loss: Step, watch=None, after=None) -> Step:
    """A step in fp32 and the contiguous layout, as the examples write it."""
    net.to(memory_format=torch.contiguous_format)

    def step(image: Tensor, mask: Tensor) -> Tensor:
        logits = net(image)
        loss = measure_loss(logits, mask)
        if watch:
            watch(loss, logits, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if after:
            after()
        return loss

    return step


def endless(dataset: Dataset, setting: Setting, workers: int, make=DataLoader, **how) -> Iterator:
    """Shuffled batches without end, from `workers` processes that stay alive."""
    sampler = RandomSampler(dataset, num_samples=ENDLESS)
    how = {"batch_size": setting.batch, "num_workers": workers, **how}
    for batch in make(dataset, sampler=sampler, **how):
        parts = (batch["image"], batch["mask"]) if isinstance(batch, dict) else batch
        yield tuple(part.to(setting.device) for part in parts)


class FolderFrames(Dataset):
    """Opens, converts and resizes a pair at each access: image and mask (1,S,S).

    As the reported study did, float32 in [0,1]; with `binary` as smp's own dataset does, uint8 and
    float32 of 0 and 1.
    """

    def __init__(self, folder: Path, size: int, binary: bool = False):
        self.pairs, self.size, self.binary = list_pairs(folder), size, binary

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (Image.open(path).convert("L") for path in self.pairs[index])
        how = Image.Resampling.BILINEAR
        if self.binary:
            mask, how = mask.point(lambda value: 255 * (value > 127)), Image.Resampling.NEAREST
        image = image.resize((self.size,) * 2, Image.Resampling.BILINEAR)
        image, mask = (torch.from_numpy(np.array(each))[None] for each in
                       (image, mask.resize((self.size,) * 2, how)))  # fmt: skip
        return (image if self.binary else image / 255), mask / 255


def reported(setting: Setting) -> Run:
    """The reported study's loop: two workers, fp32, contiguous, sigmoid and BCELoss, plain Adam."""
    net = setting.make_model()
    batches = endless(FolderFrames(setting.frames, setting.size), setting, workers=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=ours.LR, foreach=False, fused=False)
    bce = nn.BCELoss()
    step = plain_step(net, optimiser, lambda logits, mask: bce(torch.sigmoid(logits), mask))
    return repeat(batches, step)
