"""Stronger augmentation: kinds that a study names, each with the probability that a frame gets it.

    augment: {flip: 0.5, affine: 1, elastic: 1, gamma: 1, gain: 1, speckle: 1, blur: 0.3}

Mirror, affine and elastic deformation are ONE resampling, since each blurs; then gray levels change
in this order: gamma, gains, speckle, blur. Frames are never turned upside down: shadows fall away
from the probe. Each frame has its own draws, which come in a fixed order and from the kinds that
are named. Nothing here waits for a GPU.
"""

import torch
from torch import Tensor
from torch.nn import functional

RANGES = {  # what a frame draws, uniformly: from, to
    # affine: how the probe is held, and the depth and the width that the machine shows
    "turn_deg": (-15, 15),  # clockwise
    "log_width": (-0.25, 0.25),  # natural logarithm: 0.78 to 1.28 times as wide
    "log_height": (-0.25, 0.25),  # by itself: squares do not keep a frame's aspect
    "shear": (-0.12, 0.12),  # px to the side by px down: a curved or a steered field of view
    "right": (-0.1, 0.1),  # by how much the window moves over the frame, in shares of its side
    "down": (-0.1, 0.1),
    "elastic": (0, 0.03),  # standard deviation of a knot's shift, share of the side: pressure
    # gray levels: settings of the machine
    "log_gamma": (-0.5, 0.5),  # gray to the power of 0.61 to 1.65: dynamic range, gray map
    "gain": (-0.25, 0.25),  # logarithm: 0.78 to 1.28 times as bright
    "depth_gain": (0, 0.3),  # standard deviation of a knot's logarithm: time gain compensation
    "side_gain": (0, 0.25),  # the same across: shadows at the edges, poor contact of the probe
    "speckle": (0, 0.2),  # standard deviation, share of the gray level
    "blur": (-0.5, 1),  # share of the way to the mean of 3×3 px; below 0 away from it: sharpened
}
KNOTS = {"elastic": 5, "depth_gain": 5, "side_gain": 7}  # of a smooth random curve, along a side
LEAST_GAIN, MOST_GAIN = -0.8, 0.6  # logarithm of all gains together: 0.45 to 1.8 times as bright
GRAINS_PX = (1, 2, 3)  # a frame's speckle is correlated over one of these distances


def vary(
    images: Tensor, masks: Tensor, *, probabilities: dict[str, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return frames in [0,1] and masks in {0,1}, float32 (B,1,S,S), changed at random.

    probabilities: of `settings.AUGMENTATIONS` by name; a kind that is left out is not applied.
    """
    draw = _Draws(images, probabilities, generator)
    images, masks = _deform(images, masks, draw)
    images = _change_grays(images, draw)
    if draw.wants("speckle"):
        images = images * _speckle(images, draw)
    if draw.wants("blur"):
        share = draw.column(draw.number("blur") * draw.applied("blur"))
        around = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        images = images + share * (functional.avg_pool2d(around, 3, stride=1) - images)
    return images.clamp(0, 1), masks


class _Draws:
    """Random numbers of a batch, one a frame or one a knot, from a generator on its device."""

    def __init__(self, images: Tensor, probabilities: dict, generator: torch.Generator):
        self.images, self.probabilities, self.generator = images, probabilities, generator

    def wants(self, *kinds: str) -> bool:
        return any(self.probabilities.get(kind) for kind in kinds)

    def _uniform(self) -> Tensor:
        return self.images.new_empty(len(self.images)).uniform_(generator=self.generator)

    def applied(self, kind: str) -> Tensor:
        """1.0 for the frames that get this kind, 0.0 for the others, (B,)."""
        return (self._uniform() < self.probabilities.get(kind, 0)).float()

    def number(self, name: str) -> Tensor:
        low, high = RANGES[name]
        return low + (high - low) * self._uniform()

    def normal(self, *shape: int) -> Tensor:
        return self.images.new_empty(len(self.images), *shape).normal_(generator=self.generator)

    def smooth(self, name: str, channels: int, knots: tuple, size: tuple) -> Tensor:
        """Draw smooth fields, (B,channels,*size), through random knots; 0 where not applied."""
        spread = self.column(self.number(name) * self.applied(name))
        knots = spread * self.normal(channels, *knots)
        return functional.interpolate(knots, size=size, mode="bicubic", align_corners=True)

    @staticmethod
    def column(numbers: Tensor) -> Tensor:
        return numbers.view(-1, 1, 1, 1)


def _deform(images: Tensor, masks: Tensor, draw: _Draws) -> tuple[Tensor, Tensor]:
    """Mirror, turn, stretch, shear, shift and bend images and masks; masks are cut at 0.5 again."""
    if not draw.wants("flip", "affine", "elastic"):
        return images, masks
    mirror = 1 - 2 * draw.applied("flip")  # -1 or 1
    names = "turn_deg", "log_width", "log_height", "shear", "right", "down"
    applied = draw.applied("affine")
    turn, width, height, shear, right, down = (draw.number(name) * applied for name in names)
    cos, sin = turn.deg2rad().cos(), turn.deg2rad().sin()
    width, height = width.exp(), height.exp()
    # where a pixel of the new frame comes from; sides are 2 long
    across = mirror * cos / width, mirror * (sin + shear) / width, 2 * right
    along = -sin / height, cos / height, 2 * down
    window = torch.stack([torch.stack(row, 1) for row in (across, along)], 1)  # (B,2,3)
    grid = functional.affine_grid(window, images.shape, align_corners=False)  # (B,S,S,2)
    if draw.wants("elastic"):
        knots, sides = (KNOTS["elastic"],) * 2, tuple(images.shape[2:])
        grid = grid + 2 * draw.smooth("elastic", 2, knots, sides).permute(0, 2, 3, 1)
    both = functional.grid_sample(torch.cat([images, masks], 1), grid, align_corners=False)
    return both[:, :1], (both[:, 1:] > 0.5).float()


def _change_grays(images: Tensor, draw: _Draws) -> Tensor:
    """Apply gamma, and gains of the frame, along its depth and across it."""
    *_, height, width = images.shape
    if draw.wants("gamma"):
        gamma = (draw.number("log_gamma") * draw.applied("gamma")).exp()
        images = images ** draw.column(gamma)
    gain = torch.zeros_like(images[:, :, :1, :1])  # logarithm
    if draw.wants("gain"):
        gain = gain + draw.column(draw.number("gain") * draw.applied("gain"))
    if draw.wants("depth_gain"):
        gain = gain + draw.smooth("depth_gain", 1, (KNOTS["depth_gain"], 1), (height, 1))
    if draw.wants("side_gain"):
        gain = gain + draw.smooth("side_gain", 1, (1, KNOTS["side_gain"]), (1, width))
    return images * gain.clamp(LEAST_GAIN, MOST_GAIN).exp()


def _speckle(images: Tensor, draw: _Draws) -> Tensor:
    """Factors around 1, (B,1,S,S), of the drawn spread and one of the grains."""
    spread = draw.column(draw.number("speckle") * draw.applied("speckle"))
    grain = (draw._uniform() * len(GRAINS_PX)).floor()  # which one, (B,)
    *_, height, width = images.shape
    more = max(GRAINS_PX) - 1  # the border has as much noise as the rest
    white, noise = draw.normal(1, height + more, width + more), 0
    for number, size in enumerate(GRAINS_PX):
        part = white[..., : height + size - 1, : width + size - 1]
        # a mean of n² pixels has 1/n of their spread
        coarse = size * functional.avg_pool2d(part, size, stride=1)
        noise = noise + draw.column((grain == number).float()) * coarse
    return 1 + spread * noise
