"""How MONAI and segmentation_models.pytorch (smp) train, by their own examples; see loops.py.

MONAI: tutorials, 2d_segmentation/torch/unet_training_dict.py (at commit 03bf016), with the
CacheDataset that its fast-training guide recommends in place of Dataset, and a resize in place of
the random crop. smp: examples/binary_segmentation_intro.ipynb (at commit 5006616), its Lightning
module as a plain loop, without Lightning's own cost. Left out, in their favour: printing,
TensorBoard, validation. Each comes twice: as documented, and `equal`: in this project's layout and
precision, with its loss and optimiser, so that only batches and bookkeeping per step differ.
"""

from functools import partial

import torch

from data import list_pairs
from loops import FolderFrames, Run, Setting, endless, equal_step, plain_step, repeat
from thyroid_lib.files.parallel import cores
from timing import seconds_of

filled: dict = {}  # the cache that both of MONAI's loops read, and the seconds to fill it


def monai_cache(setting: Setting):
    """MONAI's CacheDataset of all frames, filled: tensors (1,S,S), min-max scaled to [0,1]."""
    from monai import transforms
    from monai.data import CacheDataset

    if "cache" not in filled:
        keys, size = ["image", "mask"], (setting.size,) * 2
        steps = transforms.Compose([
            transforms.LoadImaged(keys=keys), transforms.EnsureChannelFirstd(keys=keys),
            transforms.ScaleIntensityd(keys=keys),
            transforms.Resized(keys=keys, spatial_size=size, mode=("bilinear", "nearest")),
        ])  # fmt: skip
        pairs = [{"image": str(a), "mask": str(b)} for a, b in list_pairs(setting.frames)]
        make = partial(CacheDataset, pairs, steps, progress=False)
        filled["seconds"] = seconds_of(lambda: filled.update(cache=make()))
    return filled["cache"]


def _monai_batches(setting: Setting):
    from monai.data import DataLoader, list_data_collate

    how = {"collate_fn": list_data_collate, "pin_memory": setting.device.type == "cuda"}
    workers = min(4, cores())  # the example has 4; no more than there are cores
    return endless(monai_cache(setting), setting, workers, make=DataLoader, **how)


def monai_documented(setting: Setting) -> Run:
    """MONAI's example: DiceLoss, Adam at 1e-3, the loss read back after every step."""
    from monai.losses import DiceLoss

    net = setting.make_model()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    return repeat(_monai_batches(setting), plain_step(net, optimiser, DiceLoss(sigmoid=True)))


def monai_equal(setting: Setting) -> Run:
    """MONAI's batches, as plain tensors in its favour, and the loss read back."""
    plain = ((part.as_tensor() for part in batch) for batch in _monai_batches(setting))
    return repeat(plain, equal_step(setting.make_model(), setting))


def smp_documented(setting: Setting) -> Run:
    """smp's example: normalised on the device, checks, DiceLoss, statistics, cosine schedule."""
    import segmentation_models_pytorch as smp

    net = setting.make_model()
    measure_loss = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=2000, eta_min=1e-5)
    step = plain_step(net, optimiser, measure_loss, _statistics(), schedule.step)
    return repeat(_smp_batches(setting), step, read_loss=False)


def smp_equal(setting: Setting) -> Run:
    """smp's batches, checks and statistics; everything else is this project's."""
    step = equal_step(setting.make_model(), setting, _statistics())
    return repeat(_smp_batches(setting), step, read_loss=False)


def _smp_batches(setting: Setting):
    """smp's batches with the checks and the normalisation of its example."""
    mean, std = (torch.full((1, 1, 1, 1), v, device=setting.device) for v in (0.45, 0.225))
    dataset = FolderFrames(setting.frames, setting.size, binary=True)
    for image, mask in endless(dataset, setting, workers=cores()):
        assert not any(side % 32 for side in image.shape[2:])
        assert mask.max() <= 1.0
        assert mask.min() >= 0
        yield (image - mean) / std, mask


def _statistics():
    """The statistics of each step in smp's example, put together after an epoch of 2,509 frames."""
    import segmentation_models_pytorch as smp

    seen = []

    def watch(loss, logits, mask) -> None:
        pred = (logits.sigmoid() > 0.5).float()
        counts = smp.metrics.get_stats(pred.long(), mask.long(), mode="binary")
        seen.append((loss.detach(), *counts))
        if len(seen) == 157:
            smp.metrics.iou_score(*map(torch.cat, zip(*(s[1:] for s in seen), strict=True)))
            seen.clear()

    return watch
