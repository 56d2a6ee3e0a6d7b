"""Where the benchmarks touch this project's training and scoring: one place to mend."""

from collections.abc import Callable

import numpy as np
import torch

from thyroid_lib import models
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate import predict
from thyroid_lib.train import recipe as train
from thyroid_lib.train import run
from thyroid_lib.train.device import choose_device, choose_precision

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
    store: Store,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    frames: int | None = None,
) -> Callable[[int], int]:
    """Return a function that trains so many steps, 0 for an epoch; it returns how many frames.

    Args:
        store: opened; its frames are placed as a run places them.
        frames: train on the first of them; None for all.
    """
    images, masks = run.place_frames(store, device)
    optimiser = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    among, calls = frames or len(images), 0

    def train_on(steps: int = 0) -> int:
        nonlocal calls
        calls += 1
        rows = torch.randperm(among)
        if steps:
            rows = rows.repeat(1 + steps * batch_size // among)[: steps * batch_size]
        train.train_epoch(
            net, optimiser, images, masks, rows, batch_size=batch_size, seed=0, epoch=calls,
            precision=precision, scaler=scaler,
        )  # fmt: skip
        return len(rows)

    return train_on


def score_store(model: torch.nn.Module, store, rows: np.ndarray) -> None:
    """Score these rows as a run does, in this one process."""
    predict.score_rows(model, store, rows, workers=1)
