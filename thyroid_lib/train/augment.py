"""Augmentation of frames and masks, a batch at a time, on the device that they are on.

A study names "standard", or a probability of each kind: then `augmentations` draws. "standard" is,
in this order: mirror, turn, scale and shift, all in one resampling; gamma; gain; speckle. Each
frame has its own draws. Frames are never turned upside down: shadows fall away from the probe.
Speckle multiplies: its spread is a fixed share of the mean echo (Wagner, Smith, Sandrik & Lopez,
IEEE Trans. Sonics Ultrason. 30 (1983) 156); for displayed gray levels an approximation.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from thyroid_lib.train.augmentations import vary

MIRRORED = 0.5  # share of the frames
SPECKLE_PX = 2  # size of a grain: at this distance the noise is no longer correlated
RANGES = {  # what a frame draws, uniformly; gamma by its logarithm
    "turn_deg": (-10, 10),  # clockwise
    "scale": (0.9, 1.1),  # of lengths
    "right": (-0.05, 0.05),  # by how much the window moves over the frame, in shares of its side
    "down": (-0.05, 0.05),
    "gamma": (0.8, 1.25),
    "gain": (0.8, 1.2),
    "speckle": (0.0, 0.15),  # standard deviation, as a share of the gray level
}


def augment(
    images: Tensor,
    masks: Tensor,
    setting: str | dict[str, float] = "standard",
    *,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return frames in [0,1] and masks in {0,1}, float32 (B,1,S,S), changed.

    setting: "standard" or a probability by name, see `augmentations`. All draws come from the
    generator, which is on their device. Memory layouts stay.
    """
    with torch.autocast(images.device.type, enabled=False):
        change = _standard if setting == "standard" else partial(vary, probabilities=setting)
        new_images, new_masks = change(images, masks, generator=generator)
    return torch.empty_like(images).copy_(new_images), torch.empty_like(masks).copy_(new_masks)


def _standard(
    images: Tensor, masks: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    moved, new_masks = _move(images, masks, generator)
    gamma = _draw("gamma", images, generator, log=True).view(-1, 1, 1, 1)
    gain = _draw("gain", images, generator).view(-1, 1, 1, 1)
    return (gain * moved**gamma * _speckle(images, generator)).clamp_(0, 1), new_masks


def _draw(name: str, images: Tensor, generator: torch.Generator, log: bool = False) -> Tensor:
    """Draw one number a frame from its range, (B,)."""
    low, high = map(math.log, RANGES[name]) if log else RANGES[name]
    drawn = images.new_empty(len(images)).uniform_(low, high, generator=generator)
    return drawn.exp_() if log else drawn


def _move(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, turn, scale and shift images and masks together; masks are cut at 0.5 again."""
    chance = images.new_empty(len(images)).uniform_(generator=generator)
    mirror = 1 - 2 * (chance < MIRRORED).float()  # -1 or 1
    turn = _draw("turn_deg", images, generator).deg2rad()
    scale = _draw("scale", images, generator)
    right, down = (2 * _draw(x, images, generator) for x in ("right", "down"))  # sides are 2 long
    across, along = turn.cos() / scale, turn.sin() / scale
    rows = (mirror * across, mirror * along, right), (-along, across, down)
    window = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (B,2,3)
    grid = functional.affine_grid(window, images.shape, align_corners=False)  # (B,S,S,2)
    both = functional.grid_sample(torch.cat([images, masks], 1), grid, align_corners=False)
    return both[:, :1], (both[:, 1:] > 0.5).float()


def _speckle(images: Tensor, generator: torch.Generator) -> Tensor:
    """Factors around 1, (B,1,S,S), of the drawn spread and the grain of speckle."""
    spread = _draw("speckle", images, generator).view(-1, 1, 1, 1)
    count, _, *sides = images.shape
    sides = [side + SPECKLE_PX - 1 for side in sides]  # the border has as much noise as the rest
    noise = images.new_empty(count, 1, *sides).normal_(generator=generator)
    # a mean of n² pixels has 1/n of their spread
    return 1 + spread * SPECKLE_PX * functional.avg_pool2d(noise, SPECKLE_PX, stride=1)
