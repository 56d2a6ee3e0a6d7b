"""The project's training and scoring as the benchmarks call it; they call nothing else of it."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from thyroid_lib import models
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate import predict
from thyroid_lib.models import checkpoint
from thyroid_lib.train import recipe, run
from thyroid_lib.train.device import choose_device, choose_precision

LR = 1e-4  # as reported
ENDLESS = 10**6  # epochs


pick_device = partial(choose_device, "auto")
pick_precision = partial(choose_precision, "auto")  # of training by default, for a device
train_run = run.train_model  # one run as the study trains it, with validation and checkpoints
score_run = run.score_run
read_weights = checkpoint.read
SETTINGS = recipe.RECIPE


def make_model(name: str, width: int, device: torch.device) -> nn.Module:
    """A network with the same weights at each call, in the project's memory layout."""
    net = models.build_model(name, width=width)
    models.initialise(net, 0)
    return net.to(device, memory_format=torch.channels_last).train()


def fit(
    net: nn.Module, store: Store, rows: np.ndarray, *, device: torch.device, **settings
) -> Iterator[dict]:
    """Train by the project's recipe on these rows; yield its state after each epoch."""
    images, masks = run.place_frames(store, device)
    settings = {"seed": 0, "epochs": ENDLESS, "lr": LR} | settings
    return recipe.fit(net, images, masks, rows=torch.from_numpy(rows), **settings)


def train(net: nn.Module, store: Store, rows: np.ndarray, **settings) -> Iterator[int]:
    """Do the same, and yield the number of frames after each epoch."""
    for _ in fit(net, store, rows, **settings):
        yield len(rows)


def mean_dice(net: nn.Module, store: Store, rows: np.ndarray) -> float:
    """Mean Dice of these rows at the store's size, predicted in fp32 where the network is."""
    seen = run.validate(net, store, rows, next(net.parameters()).device)
    return seen.summary("val")["val_dice"]


def score_rows(net: nn.Module, store: Store, rows: np.ndarray, **settings):
    """Score these rows in one process by default; return the table of cases."""
    return predict.score_rows(net, store, rows, **{"workers": 1} | settings).cases


class OneConvolution(models.Network):
    """A network so cheap that training time is the time to read and move the frames."""

    divisor = 8

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 1):
        super().__init__(in_channels, out_channels, width)
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.layers = nn.Sequential(nn.AvgPool2d(8), convolution, nn.Upsample(scale_factor=8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        return self.layers(images)
