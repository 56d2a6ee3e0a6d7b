"""Augmentation by kind: what each does, how often, in which range, and that masks move along."""

import pytest
import torch
from test_augment import corner, draw, filled, plain, scene

from thyroid_lib.settings import AUGMENTATIONS
from thyroid_lib.train import augmentations
from thyroid_lib.train.augment import augment
from thyroid_lib.train.augmentations import GRAINS_PX, RANGES, vary

ALL = dict.fromkeys(AUGMENTATIONS, 1.0) | {"flip": 0.5}
GEOMETRY = "flip", "affine", "elastic"


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_each_kind_changes_the_wanted_share_of_frames_and_repeats_to_the_bit(kind):
    one, ref = (part[:1] for part in scene())
    images, masks = (part.expand(400, -1, -1, -1) for part in (one, ref))
    before = torch.get_rng_state()
    for probability, least, most in ((0, 0, 0), (0.5, 0.4, 0.6), (1, 0.99, 1)):
        first, again = (
            augment(images, masks, {kind: probability}, generator=draw()) for _ in range(2)
        )
        assert all(map(torch.equal, first, again))
        moved = (first[0] - images).abs().amax((1, 2, 3)) > 1e-4
        assert least <= moved.float().mean() <= most
        assert (first[1] != masks).any() == (probability > 0 and kind in GEOMETRY[1:])
    assert torch.equal(torch.get_rng_state(), before)
    assert kind == "flip" or len({frame.numpy().tobytes() for frame in first[0]}) == 400


def test_all_together_keep_shape_range_layout_and_black():
    for layout in (torch.contiguous_format, torch.channels_last):
        old = [torch.empty_like(x, memory_format=layout).copy_(x) for x in scene(3, 17)]
        new = augment(*old, ALL, generator=draw())
        assert [(x.shape, x.stride()) for x in new] == [(x.shape, x.stride()) for x in old]
        assert new[1].unique().tolist() == [0, 1]
        assert 0 <= new[0].min() < new[0].max() <= 1
    black = torch.zeros(8, 1, 32, 32)
    assert not any(part.any() for part in augment(black, black, ALL, generator=draw()))


def test_mask_and_image_move_together_and_only_the_mirror_is_exact():
    _, masks = scene(count=32, size=128)
    moves = dict.fromkeys(GEOMETRY, 1.0)
    new_images, new_masks = vary(masks * 0.8, masks, probabilities=moves, generator=draw())
    assert ((new_images > 0.4) == (new_masks > 0)).float().mean() > 0.999
    image, mask = corner()
    new_image, new_mask = vary(image, mask, probabilities={"flip": 1}, generator=draw())
    assert torch.equal(new_mask, mask.flip(-1))
    torch.testing.assert_close(new_image, image.flip(-1), atol=1e-5, rtol=0)


def test_moves_that_one_can_draw(monkeypatch):
    image, mask = corner()
    still = dict.fromkeys(RANGES, (0, 0))

    def moves_to(expected: torch.Tensor, **ranges: float) -> None:
        fixed = {name: (value, value) for name, value in ranges.items()}
        monkeypatch.setattr(augmentations, "RANGES", still | fixed)
        _, new = vary(image, mask, probabilities={"affine": 1, "elastic": 1}, generator=draw())
        assert torch.equal(new, expected)

    moves_to(mask.rot90(-1, (-2, -1)), turn_deg=90)  # clockwise
    moves_to(mask.roll((1, -3), (-2, -1)), right=3 / 32, down=-1 / 32)  # the window moves
    tall = torch.zeros_like(mask)
    tall[..., :8, 20:30] = 1  # rows 4 to 8 are 12 to 8 above the middle: at twice, out to 8
    moves_to(tall.roll(-8, -2) * 0, log_height=torch.tensor(4.0).log().item())  # out of sight
    wide = torch.zeros_like(mask)
    wide[..., 4:8, 24:32] = 1  # columns 20 to 30 are 4 to 14 right of the middle: 8 to 28
    moves_to(wide, log_width=torch.tensor(2.0).log().item())


@pytest.mark.parametrize(
    ("kind", "measure", "low", "high"),
    [
        ("gamma", lambda x: x.log2().neg().log(), -0.5, 0.5),
        ("gain", lambda x: (2 * x).log(), -0.25, 0.25),
    ],
)
def test_gamma_and_gain_fill_their_ranges(kind, measure, low, high):
    images = plain(0.5, 2000)
    drawn = measure(vary(images, images, probabilities={kind: 1}, generator=draw())[0][:, 0, 8, 8])
    assert filled(drawn, low, high, 0.01)
    assert abs(drawn.median()) < 0.03  # as often darker as brighter


@pytest.mark.parametrize(("kind", "along"), [("depth_gain", -2), ("side_gain", -1)])
def test_gain_along_one_side_is_smooth_and_bounded(kind, along):
    images = plain(0.4, 400, 64)
    new, _ = vary(images, images, probabilities={kind: 1}, generator=draw())
    curve = (new / 0.4).log()
    assert curve.std(-3 - along).max() < 1e-5  # the same across
    assert curve.min() >= augmentations.LEAST_GAIN - 1e-4
    assert curve.max() <= augmentations.MOST_GAIN + 1e-4
    assert curve.std() > 0.1
    assert curve.diff(dim=along).abs().max() < 0.15  # of a whole step of 1.4


def test_speckle_has_each_of_its_grains(monkeypatch):
    monkeypatch.setattr(augmentations, "RANGES", RANGES | {"speckle": (0.1, 0.1)})
    images = plain(0.5, 300, 64)
    noise = (vary(images, images, probabilities={"speckle": 1}, generator=draw())[0] - 0.5) / 0.05
    assert noise.std((1, 2, 3)).median() == pytest.approx(1, abs=0.05)
    near = (noise[..., 1:] * noise[..., :-1]).mean((1, 2, 3))  # 0, 1/2, 2/3 for 1, 2, 3 px
    counts = [((near - (1 - 1 / grain)).abs() < 0.08).sum() for grain in GRAINS_PX]
    assert sum(counts) >= 295
    assert min(counts) > 70


def test_blur_smooths_an_edge_or_sharpens_it(monkeypatch):
    images = plain(0.25, 1, 8)
    images[..., 4:] = 0.5
    for share, left, right in ((1, 1 / 3, 5 / 12), (-0.5, 0.25 - 1 / 24, 0.5 + 1 / 24)):
        monkeypatch.setattr(augmentations, "RANGES", RANGES | {"blur": (share, share)})
        new, _ = vary(images, images, probabilities={"blur": 1}, generator=draw())
        assert new[0, 0, 4, 3:5].tolist() == pytest.approx([left, right])


def test_kinds_are_those_of_the_settings():
    source = augmentations.__loader__.get_source(augmentations.__name__)
    assert all(f'"{kind}"' in source for kind in AUGMENTATIONS)
