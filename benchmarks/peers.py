"""How MONAI and segmentation_models.pytorch (smp) train, by their own examples; see loops.py.

MONAI: tutorials, 2d_segmentation/torch/unet_training_dict.py (at commit 03bf016), with the
CacheDataset that its fast-training guide asks for in place of Dataset, and a resize in place of the
random crop. smp: examples/binary_segmentation_intro.ipynb (at commit 5006616), its Lightning module
as a plain loop, which spares it Lightning's own work. Left out, in their favour: printing,
TensorBoard, validation. Each comes twice: as documented, and `equal`: with this project's layout,
precision, loss and optimiser, so that only its way to the batch and its bookkeeping per step are
its own.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from data import list_pairs
from loops import Setting, by_step, endless, equal_step
from thyroid_lib.files.parallel import cores
from timing import seconds_of

filled: dict = {}  # the one cache that both of MONAI's loops read, and how long filling it took


def monai_cache(setting: Setting):
    """MONAI's CacheDataset of all frames, filled: tensors (1,S,S), min-max scaled to [0,1]."""
    from monai.data import CacheDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityd

    if "cache" not in filled:
        keys = ["image", "mask"]
        steps = [
            LoadImaged(keys=keys),
            EnsureChannelFirstd(keys=keys),
            ScaleIntensityd(keys=keys),
            Resized(keys=keys, spatial_size=(setting.size,) * 2, mode=("bilinear", "nearest")),
        ]
        pairs = [
            dict(zip(keys, map(str, pair), strict=True)) for pair in list_pairs(setting.frames)
        ]

        def fill() -> None:
            filled["cache"] = CacheDataset(pairs, Compose(steps), progress=False)

        filled["seconds"] = seconds_of(fill)
    return filled["cache"]


def monai_batches(setting: Setting) -> Iterator[dict]:
    from monai.data import DataLoader, list_data_collate

    how = {"collate_fn": list_data_collate, "pin_memory": setting.device.type == "cuda"}
    workers = min(4, cores())  # the example has 4; no more than there are cores
    return endless(monai_cache(setting), setting, workers, make=DataLoader, **how)


def monai_documented(setting: Setting) -> Callable[[int], int]:
    """MONAI's example: DiceLoss, Adam at 1e-3, the loss read back after every step."""
    from monai.losses import DiceLoss

    net = setting.make_model().to(memory_format=torch.contiguous_format)
    measure_loss = DiceLoss(sigmoid=True)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)

    def train() -> Iterator[int]:
        total = 0.0
        for batch in monai_batches(setting):
            image, mask = batch["image"].to(setting.device), batch["mask"].to(setting.device)
            optimiser.zero_grad()
            loss = measure_loss(net(image), mask)
            loss.backward()
            optimiser.step()
            total += loss.item()
            yield len(image)

    return by_step(train())


def monai_equal(setting: Setting) -> Callable[[int], int]:
    """MONAI's batches and its reading back of the loss; all else is this project's."""
    step = equal_step(setting.make_model(), setting)

    def train() -> Iterator[int]:
        total = 0.0
        for batch in monai_batches(setting):
            # plain tensors: MetaTensor's own cost is left out, in its favour
            image, mask = (batch[key].as_tensor().to(setting.device) for key in ("image", "mask"))
            loss, _ = step(image.contiguous(memory_format=torch.channels_last), mask)
            total += loss.item()
            yield len(image)

    return by_step(train())


class SmpFrames(Dataset):
    """Reads a pair with PIL as smp's own dataset does; numpy (1,S,S): uint8, float32 of 0 and 1."""

    def __init__(self, folder, size: int):
        self.pairs, self.size = list_pairs(folder), size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, mask = (np.array(Image.open(path).convert("L")) for path in self.pairs[index])
        mask = (mask > 127).astype(np.float32)
        square = (self.size, self.size)
        image = np.array(Image.fromarray(image).resize(square, Image.Resampling.BILINEAR))
        mask = np.array(Image.fromarray(mask).resize(square, Image.Resampling.NEAREST))
        return {"image": image[None], "mask": mask[None]}


def smp_batches(setting: Setting) -> Iterator[dict]:
    return endless(SmpFrames(setting.frames, setting.size), setting, workers=cores())


def smp_documented(setting: Setting) -> Callable[[int], int]:
    """smp's example: normalised on the device, checks, DiceLoss, statistics, cosine schedule."""
    return _smp(setting, equal=False)


def smp_equal(setting: Setting) -> Callable[[int], int]:
    """smp's batches, checks and statistics; all else is this project's."""
    return _smp(setting, equal=True)


def _smp(setting: Setting, *, equal: bool) -> Callable[[int], int]:
    import segmentation_models_pytorch as smp

    net = setting.make_model()
    if equal:
        step = equal_step(net, setting)
    else:
        net.to(memory_format=torch.contiguous_format)
        measure_loss = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=2000, eta_min=1e-5)
    mean, std = (torch.full((1, 1, 1, 1), v, device=setting.device) for v in (0.45, 0.225))

    def train() -> Iterator[int]:
        seen = []
        for batch in smp_batches(setting):
            image, mask = batch["image"].to(setting.device), batch["mask"].to(setting.device)
            assert not any(side % 32 for side in image.shape[2:])
            assert mask.max() <= 1.0
            assert mask.min() >= 0
            image = (image - mean) / std
            if equal:
                loss, logits = step(image.contiguous(memory_format=torch.channels_last), mask)
            else:
                logits = net(image)
                loss = measure_loss(logits, mask)
            pred = (logits.sigmoid() > 0.5).float()
            counts = smp.metrics.get_stats(pred.long(), mask.long(), mode="binary")
            seen.append((loss.detach(), *counts))
            if not equal:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            if len(seen) == 157:  # an epoch of 2,509 frames
                smp.metrics.iou_score(*map(torch.cat, zip(*(s[1:] for s in seen), strict=True)))
                seen.clear()
            yield len(image)

    return by_step(train())
