"""Where the benchmarks touch this project's training and scoring: one place to mend."""

from collections.abc import Callable

import numpy as np
import torch

from thyroid_lib import models, predict, train
from thyroid_lib.device import choose_device, choose_precision

LR = 1e-4  # the reported one


def pick_device() -> torch.device:
    return choose_device("auto")


def pick_precision(device: torch.device) -> str:
    """What training uses here if nobody asks for anything else: "fp32", "bf16" or "fp16"."""
    return choose_precision("auto", device)


def make_model(name: str, width: int, device: torch.device) -> torch.nn.Module:
    """The same weights for whoever asks, in the layout that the project trains in."""
    net = models.build_model(name, width=width)
    models.initialise(net, 0)
    return net.to(device, memory_format=torch.channels_last).train()


def trainer(
    net: torch.nn.Module,
    images: np.ndarray,
    masks: np.ndarray,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
) -> Callable[[int], int]:
    """Return a function that trains so many steps, or frames, and returns how many frames.

    Args:
        images, masks: uint8 (N,S,S), as an opened store holds them: memory maps. On a GPU they are
            brought there once, before.
    """
    images, masks = _as_tensors(images, masks, device)
    optimiser = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
    calls = 0

    def run(steps: int = 0, *, frames: int = 0) -> int:
        nonlocal calls
        calls += 1
        rows = torch.randperm(len(images)).repeat(1 + steps * batch_size // len(images))
        rows = rows[: frames or steps * batch_size]
        train.train_epoch(
            net, optimiser, images, masks, rows, batch_size=batch_size, seed=0, epoch=calls,
            precision=precision, scaler=scaler,
        )  # fmt: skip
        return len(rows)

    return run


def score_store(model: torch.nn.Module, store, rows: np.ndarray) -> None:
    """Score these rows as a run does, in this one process."""
    predict.score_rows(model, store, rows, workers=1)


def _as_tensors(images, masks, device) -> tuple[torch.Tensor, torch.Tensor]:
    import warnings

    with warnings.catch_warnings():  # a memory map that is only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = torch.from_numpy(images), torch.from_numpy(masks)
    if device.type == "cpu":
        return tensors
    return tensors[0].to(device), tensors[1].to(device)
