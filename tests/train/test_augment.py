import pytest
import torch
from torch import Tensor

from thyroid_lib.models import to_input
from thyroid_lib.train import augment as module
from thyroid_lib.train.augment import MIRRORED, RANGES, augment

STILL = {
    "turn_deg": (0, 0), "scale": (1, 1), "right": (0, 0), "down": (0, 0), "gamma": (1, 1),
    "gain": (1, 1), "speckle": (0, 0),
}  # fmt: skip


@pytest.fixture
def only(monkeypatch):
    """Make `augment` do what is named and nothing else."""

    def switch(*names: str, mirrored: float = 0, **ranges: tuple[float, float]) -> None:
        kept = {name: RANGES[name] for name in names}
        monkeypatch.setattr(module, "RANGES", STILL | kept | ranges)
        monkeypatch.setattr(module, "MIRRORED", mirrored)

    return switch


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(count: int = 4, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy frames, each with a bright disc of 30 % of the side in its mask."""
    at = (torch.arange(size) + 0.5) / size - 0.5
    disc = (at**2 + at[:, None] ** 2 < 0.3**2).byte()
    noise = torch.randint(0, 56, (count, size, size), generator=draw(1))
    masks = disc.expand(count, size, size)[:, None].float()
    return to_input((noise + 200 * disc).byte()), masks


def plain(value: float, count: int, size: int = 16) -> Tensor:
    return torch.full((count, 1, size, size), value)


def test_the_generator_decides_every_bit_and_nothing_else_is_touched():
    images, masks = scene()
    before, copies = torch.get_rng_state(), (images.clone(), masks.clone())
    first, again, other = (augment(images, masks, generator=draw(seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert all(map(torch.equal, (images, masks), copies))
    assert torch.equal(torch.get_rng_state(), before)
    alike = images[:1].expand(8, -1, -1, -1), masks[:1].expand(8, -1, -1, -1)
    new, _ = augment(*alike, generator=draw())
    assert len({frame.numpy().tobytes() for frame in new}) == 8  # frames go their own ways


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_type_layout_and_range_stay(layout):
    old = [torch.empty_like(x, memory_format=layout).copy_(x) for x in scene(3, 17)]
    new = augment(*old, generator=draw())
    for one, other in zip(new, old, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, torch.float32, other.stride())
    assert new[1].unique().tolist() == [0, 1]
    assert 0 <= new[0].min() < new[0].max() <= 1


def test_black_stays_black_and_with_every_range_a_point_nothing_happens(only):
    black = torch.zeros(8, 1, 32, 32)
    assert not any(part.any() for part in augment(black, black, generator=draw()))
    only()
    images, masks = scene(size=100)
    new_images, new_masks = augment(images, masks, generator=draw())
    torch.testing.assert_close(new_images, images, atol=1e-5, rtol=0)
    assert torch.equal(new_masks, masks)


def corner(size: int = 32) -> tuple[Tensor, Tensor]:
    """A mask that is a block right of the centre, high up, and an image that is half of it."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., 4:8, 20:30] = 1
    return mask / 2, mask


def test_moves_that_one_can_draw(only):
    image, mask = corner()

    def moves_to(expected: Tensor) -> None:
        new_image, new_mask = augment(image, mask, generator=draw())
        assert torch.equal(new_mask, expected)
        torch.testing.assert_close(new_image, expected / 2, atol=1e-5, rtol=0)

    only(mirrored=1)
    moves_to(mask.flip(-1))
    only(turn_deg=(90, 90))
    moves_to(mask.rot90(-1, (-2, -1)))  # clockwise
    only(right=(3 / 32, 3 / 32), down=(-1 / 32, -1 / 32))  # the window moves, what it shows stays
    moves_to(mask.roll((1, -3), (-2, -1)))
    only(turn_deg=(90, 90), mirrored=1)  # in this order: first mirrored, then turned
    moves_to(mask.flip(-1).rot90(-1, (-2, -1)))


def test_image_and_mask_stay_aligned(only):
    _, masks = scene(count=32, size=128)
    only("turn_deg", "scale", "right", "down", mirrored=0.5)
    new_images, new_masks = augment(masks * 0.8, masks, generator=draw())
    assert ((new_images > 0.4) == (new_masks > 0)).float().mean() > 0.999
    assert not torch.equal(new_masks, masks)


def test_about_half_are_mirrored_and_none_is_upside_down(only):
    only(mirrored=MIRRORED)
    image, mask = (part.expand(1000, -1, -1, -1) for part in corner())
    _, new_masks = augment(image, mask, generator=draw())
    as_before, mirrored = ((new_masks == m).all(-1).all(-1).sum() for m in (mask, mask.flip(-1)))
    assert as_before + mirrored == 1000
    assert 450 < mirrored < 550


def filled(drawn: Tensor, low: float, high: float, within: float) -> bool:
    """Whether many draws fill a range, and none lies outside of it."""
    inside = low - within < drawn.min() and drawn.max() < high + within
    return bool(inside and drawn.min() < low + within and high - within < drawn.max())


def test_moves_fill_their_ranges(only):
    rows, columns = (torch.arange(100.0) - 49.5).view(-1, 1), torch.arange(100.0) - 49.5
    masks = torch.zeros(400, 1, 100, 100)
    masks[..., 40:60, 20:80] = 1  # a bar across

    def measure() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, new = augment(masks, masks, generator=draw())
        area = new.sum((1, 2, 3))
        right, down = (new * columns).sum((1, 2, 3)) / area, (new * rows).sum((1, 2, 3)) / area
        mixed = (new * columns * rows).sum((1, 2, 3))
        slope = mixed / (new * (columns**2 - rows**2)).sum((1, 2, 3))
        return right, down, torch.rad2deg(slope), (area / 1200).sqrt()

    only("right", "down")
    right, down, _, _ = measure()
    assert filled(right, -5, 5, 0.5)
    assert filled(down, -5, 5, 0.5)
    only("turn_deg")
    assert filled(measure()[2], -10, 10, 1)
    only("scale", "turn_deg")
    assert filled(measure()[3], 0.9, 1.1, 0.02)  # of lengths


@pytest.mark.parametrize(("name", "low", "high"), [("gain", 0.8, 1.2), ("gamma", 0.8, 1.25)])
def test_gain_and_gamma_fill_their_ranges(only, name, low, high):
    only(name)
    images = plain(0.5, 2000)
    new = augment(images, images, generator=draw())[0][:, 0, 8, 8]
    drawn = new / 0.5 if name == "gain" else new.log2().neg()
    assert filled(drawn, low, high, 0.01)
    assert abs(drawn.median() - 1) < 0.02  # as often darker as brighter


def test_speckle_multiplies_and_has_a_grain(only):
    only(speckle=(0.1, 0.1))
    images = plain(0.5, 16, 64)
    images[..., 32:] = 0.25
    noise = augment(images, images, generator=draw())[0] - images
    assert noise[..., :32].std() == pytest.approx(0.05, rel=0.03)
    assert noise[..., 32:].std() == pytest.approx(0.025, rel=0.03)
    bright = noise[..., :32] / 0.05
    near = [(bright[..., by:] * bright[..., : 32 - by]).mean() for by in (1, 2)]
    assert near == pytest.approx([0.5, 0], abs=0.05)  # two pixels on, nothing is left of it
    only("speckle")
    spread = augment(plain(0.5, 400), plain(0, 400), generator=draw())[0].std((1, 2, 3)) / 0.5
    assert filled(spread, 0, 0.15, 0.04)
