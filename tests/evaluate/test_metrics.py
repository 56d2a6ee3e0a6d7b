"""Scores one can draw by hand, and MONAI beside them.

In the drawings `#` is foreground; `draw` reads them.
"""

import math

import numpy as np
import pytest
from scipy import ndimage

from thyroid_lib.evaluate.metrics import dice, part_errors, pooled_dice, score_case

KEYS = ["dice", "iou", "precision", "recall", "nsd", "hd95_px", "assd_px"]


def draw(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


def pixel(row, column, shape=(9, 9)):
    mask = np.zeros(shape, bool)
    mask[row, column] = True
    return mask


NOTHING = np.zeros((9, 12), bool)
SOMETHING = pixel(slice(2, 5), slice(3, 7), (9, 12))

# ---- overlap -------------------------------------------------------------------------------------


def test_overlap_by_hand():
    ref = draw("##..", "##..", "....")
    pred = draw(".###", ".#..", "....")
    scores = score_case(pred=pred, ref=ref)
    assert scores["dice"] == dice(pred, ref) == 2 * 2 / (4 + 4)
    assert scores["iou"] == 2 / 6
    pred[2, 3] = True  # now 2 of 5 are right, and 2 of 4 are found
    scores = score_case(pred=pred, ref=ref)
    assert scores["precision"] == 2 / 5
    assert scores["recall"] == 2 / 4


def test_dice_pools_a_stack_of_frames():
    pred = np.stack([draw("##"), draw("..")])
    ref = np.stack([draw("##"), draw(".#")])
    assert dice(pred, ref) == 4 / 5  # the mean over frames would be 1/2


def test_keys_in_order():
    assert list(score_case(pred=SOMETHING, ref=SOMETHING)) == KEYS
    with_spacing = score_case(pred=SOMETHING, ref=SOMETHING, spacing_mm=(1, 1), tolerance_mm=1)
    assert list(with_spacing) == [*KEYS, "hd95_mm", "assd_mm"]
    assert all(type(value) is float for value in with_spacing.values())


def test_a_perfect_prediction():
    perfect = score_case(pred=SOMETHING, ref=SOMETHING.copy(), tolerance_px=0, spacing_mm=(3, 2))
    shares = ["dice", "iou", "precision", "recall", "nsd"]
    assert perfect == {key: float(key in shares) for key in perfect}


# ---- distances -----------------------------------------------------------------------------------


def test_two_pixels_two_apart():
    scores = score_case(pred=pixel(4, 3), ref=pixel(4, 5), tolerance_px=1.9)
    assert scores == {**dict.fromkeys(KEYS, 0.0), "hd95_px": 2.0, "assd_px": 2.0}
    at_the_tolerance = score_case(pred=pixel(4, 3), ref=pixel(4, 5), tolerance_px=2)
    assert at_the_tolerance["nsd"] == 1


@pytest.mark.parametrize(
    ("ref", "hd95_px", "hd95_mm"),
    [((2, 4), 2, 4), ((4, 2), 2, 2), ((7, 8), 5, math.hypot(3 * 2, 4 * 1))],
)
def test_spacing_is_row_then_column(ref, hd95_px, hd95_mm):
    scores = score_case(pred=pixel(4, 4), ref=pixel(*ref), spacing_mm=(2, 1))
    assert scores["hd95_px"] == scores["assd_px"] == pytest.approx(hd95_px)
    assert scores["hd95_mm"] == scores["assd_mm"] == pytest.approx(hd95_mm)


def test_tolerance_in_mm_takes_the_place_of_the_one_in_px():
    pair = {"pred": pixel(4, 4), "ref": pixel(2, 4)}  # 2 px, 4 mm
    assert score_case(**pair, tolerance_px=2, spacing_mm=(2, 1))["nsd"] == 1
    assert score_case(**pair, tolerance_px=2, spacing_mm=(2, 1), tolerance_mm=3.9)["nsd"] == 0
    assert score_case(**pair, tolerance_px=0, spacing_mm=(2, 1), tolerance_mm=4)["nsd"] == 1
    for tenths, tolerance in ((3, 0.3), (7, 0.7)):  # though 3 * 0.1 > 0.3 in floating point
        apart = {"pred": pixel(1, 4), "ref": pixel(1 + tenths, 4), "spacing_mm": (0.1, 0.1)}
        assert score_case(**apart, tolerance_mm=tolerance)["nsd"] == 1


def test_directed_distances_by_hand():
    ref = draw("#........", ".........")
    pred = draw("#...#....", ".........")
    # pred to ref: 0 and 4, 95th percentile 3.8; ref to pred: 0
    scores = score_case(pred=pred, ref=ref, tolerance_px=3)
    assert scores["hd95_px"] == pytest.approx(3.8)
    assert scores["assd_px"] == pytest.approx(4 / 3)
    assert scores["nsd"] == pytest.approx(2 / 3)
    swapped = score_case(pred=ref, ref=pred, tolerance_px=3)
    assert {k: swapped[k] for k in KEYS[4:]} == {k: scores[k] for k in KEYS[4:]}


def test_only_boundary_pixels_count():
    ref = np.zeros((9, 9), bool)
    ref[1:8, 1:8] = True  # a square of side 7: 24 boundary pixels
    pred = ref.copy()
    pred[4, 4] = False  # a hole of one pixel: its four neighbours become boundary, 2 from the edge
    scores = score_case(pred=pred, ref=ref, tolerance_px=1)
    assert scores["assd_px"] == pytest.approx(4 * 2 / (24 + 24 + 4))
    assert scores["nsd"] == pytest.approx(48 / 52)


def test_a_diagonal_neighbour_makes_no_boundary():
    ref = np.zeros((9, 9), bool)
    ref[2:7, 2:7] = True  # 16 boundary pixels
    pred = ref.copy()
    pred[2, 2] = False  # 15: the pixel at (3, 3) touches background at a corner only
    assert score_case(pred=pred, ref=ref)["assd_px"] == pytest.approx(1 / 31)


def test_the_edge_of_the_image_is_a_boundary():
    full, inner = np.ones((7, 9), bool), np.zeros((7, 9), bool)
    inner[1:-1, 1:-1] = True
    # 28 pixels along the image's edge, 20 one further in; each corner is √2 from the inner one
    scores = score_case(pred=full, ref=inner, tolerance_px=1)
    assert scores["assd_px"] == pytest.approx((24 + 4 * math.sqrt(2) + 20) / 48)
    assert scores["hd95_px"] == pytest.approx(math.sqrt(2))
    assert scores["nsd"] == pytest.approx(44 / 48)


def test_room_around_the_masks_changes_nothing():
    random = np.random.default_rng(0)
    for _ in range(50):
        pred, ref = random.random((2, 8, 10)) > 0.6
        outer = ((0, random.integers(9)), (random.integers(9), 3))
        bare = score_case(pred=pred, ref=ref, spacing_mm=(0.3, 0.2))
        roomy = (np.pad(mask, outer) for mask in (pred, ref))
        assert bare == score_case(
            **dict(zip(("pred", "ref"), roomy, strict=True)), spacing_mm=(0.3, 0.2)
        )


# ---- empty masks ---------------------------------------------------------------------------------


def test_both_empty_is_perfect():
    scores = score_case(pred=NOTHING, ref=NOTHING, spacing_mm=(2, 1), tolerance_mm=1)
    distances = dict.fromkeys(["hd95_px", "assd_px", "hd95_mm", "assd_mm"], 0.0)
    assert scores == {**dict.fromkeys(KEYS[:5], 1.0), **distances}
    assert dice(NOTHING, NOTHING) == 1


@pytest.mark.parametrize(("pred", "ref"), [(NOTHING, SOMETHING), (SOMETHING, NOTHING)])
def test_one_empty_is_a_total_miss(pred, ref):
    scores = score_case(pred=pred, ref=ref, spacing_mm=(2, 1), tolerance_mm=100)
    px, mm = math.hypot(9, 12), math.hypot(18, 12)
    distances = {"hd95_px": px, "assd_px": px, "hd95_mm": mm, "assd_mm": mm}
    assert scores == {**dict.fromkeys(KEYS[:5], 0.0), **distances}
    assert dice(pred, ref) == 0


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.float32, int])
@pytest.mark.parametrize("function", [lambda **masks: dice(**masks), score_case])
def test_what_is_not_bool_is_refused(function, kind):
    with pytest.raises(TypeError, match=r"ref must be a bool array, got .*prob > threshold"):
        function(pred=SOMETHING, ref=SOMETHING.astype(kind))
    with pytest.raises(TypeError, match="pred must be a bool array, got list"):
        function(pred=SOMETHING.tolist(), ref=SOMETHING)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"got \(9, 12\) and \(9, 9\)"):
        score_case(pred=SOMETHING, ref=pixel(1, 1))
    with pytest.raises(ValueError, match="one shape"):
        dice(SOMETHING, SOMETHING[:1])  # would broadcast
    with pytest.raises(ValueError, match=r"must be \(H, W\), got \(1, 9, 12\)"):
        score_case(pred=SOMETHING[None], ref=SOMETHING[None])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tolerance_px": -1}, "tolerance_px"),
        ({"tolerance_px": math.nan}, "tolerance_px"),
        ({"tolerance_mm": 1}, "needs spacing_mm"),
        ({"spacing_mm": (1, 1), "tolerance_mm": math.inf}, "tolerance_mm"),
        ({"spacing_mm": 1}, "two positive numbers"),
        ({"spacing_mm": (1, 1, 1)}, "two positive numbers"),
        ({"spacing_mm": (1, 0)}, "two positive numbers"),
        ({"spacing_mm": (math.nan, 1)}, "two positive numbers"),
    ],
)
def test_lengths_that_are_none_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        score_case(pred=SOMETHING, ref=SOMETHING, **settings)


def test_masks_are_not_changed():
    pred, ref = SOMETHING.copy(), np.roll(SOMETHING, 1, 0)
    pred.flags.writeable = ref.flags.writeable = False
    score_case(pred=pred, ref=ref)
    score_case(pred=np.asfortranarray(pred)[::-1, ::-1], ref=ref)


# ---- the reference implementations ---------------------------------------------------------------


def random_pairs(count, seed=0):
    """Non-empty masks of all sorts: smooth, noisy, shifted, cut by the border, of any shape."""
    random = np.random.default_rng(seed)
    while count:
        shape, smooth = random.integers(2, 60, 2), random.choice([0, 1, 3])
        fields = random.standard_normal((2, *shape))
        pred, ref = (
            ndimage.gaussian_filter(f, smooth) > random.choice([-0.3, 0, 0.2]) for f in fields
        )
        if random.random() < 0.4:
            pred = np.roll(ref, random.integers(-3, 4, 2), (0, 1))
        if pred.any() and ref.any():
            count -= 1
            spacing = tuple(random.choice([0.05, 0.0731, 0.1, 0.3, 1, 2], 2).tolist())
            yield pred, ref, spacing, float(random.choice([0.1, 0.3, 0.5, 2]))


def by_definition(pred, ref, spacing, tolerance):
    """HD95, ASSD, NSD from all distances between boundary pixels, found by their neighbours."""

    def boundary(mask):
        ringed = np.pad(mask, 1)
        around = [np.roll(ringed, step, axis) for axis in (0, 1) for step in (-1, 1)]
        return np.argwhere((ringed & ~np.logical_and.reduce(around))[1:-1, 1:-1]) * spacing

    apart = np.linalg.norm(boundary(pred)[:, None] - boundary(ref)[None], axis=2)
    there, back = apart.min(axis=1), apart.min(axis=0)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return hd95, both.mean(), np.mean(both <= tolerance + 1e-9)


def test_agrees_with_the_definition_on_random_pairs():
    for pred, ref, spacing, tolerance in random_pairs(100):
        px = score_case(pred=pred, ref=ref)
        mm = score_case(pred=pred, ref=ref, spacing_mm=spacing, tolerance_mm=tolerance)
        in_px, in_mm = (
            by_definition(pred, ref, (1, 1), 2),
            by_definition(pred, ref, spacing, tolerance),
        )
        # float32 interpolates a percentile to about five digits
        assert [px["hd95_px"], mm["hd95_mm"]] == pytest.approx([in_px[0], in_mm[0]], rel=1e-4)
        got = [px["assd_px"], px["nsd"], mm["assd_mm"], mm["nsd"]]
        assert got == pytest.approx([*in_px[1:], *in_mm[1:]], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_monai_on_random_pairs():
    import torch
    from monai import metrics as monai

    def theirs(pred, ref, spacing, tolerance):
        masks = {
            name: torch.from_numpy(mask)[None, None].float()
            for name, mask in (("y_pred", pred), ("y", ref))
        }
        common = {**masks, "include_background": True, "spacing": spacing}
        return [
            monai.compute_hausdorff_distance(percentile=95, **common).item(),
            monai.compute_average_surface_distance(symmetric=True, **common).item(),
            monai.compute_surface_dice(class_thresholds=[tolerance], **common).item(),
        ]

    for pred, ref, spacing, tolerance in random_pairs(500, seed=1):
        px = score_case(pred=pred, ref=ref)
        mm = score_case(pred=pred, ref=ref, spacing_mm=spacing, tolerance_mm=tolerance)
        ours = [px["hd95_px"], px["assd_px"], px["nsd"], mm["hd95_mm"], mm["assd_mm"], mm["nsd"]]
        expected = theirs(pred, ref, (1.0, 1.0), 2.0) + theirs(pred, ref, spacing, tolerance)
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)


# ---- what the replication and the failure table need ---------------------------------------------


def test_a_pooled_batch_hides_a_miss():
    both, total = np.array([90, 0]), np.array([200, 20])  # 0.9, and a small gland missed
    assert pooled_dice(both, total) == 2 * 90 / 220
    assert pooled_dice(both, total, batch=1) == pytest.approx((0.9 + 0) / 2)
    assert pooled_dice(np.zeros(3), np.zeros(3)) == 1.0


def test_batches_are_averaged_with_the_last_one_smaller():
    both, total = np.full(18, 5), np.full(18, 10)
    assert pooled_dice(both, total) == 1.0
    both = np.arange(18)
    order = np.random.default_rng(0).permutation(18)
    batches = [2 * both[part].sum() / (10 * len(part)) for part in (order[:16], order[16:])]
    assert pooled_dice(both, np.full(18, 10)) == pytest.approx(np.mean(batches))


def test_parts_missed_and_made_up_are_counted():
    ref = draw("##..##", "##..##", "......", "......")
    pred = draw("#.....", "......", "...#..", "#...#.")
    # the right lobe is missed; the diagonal two are one made-up part, the corner another
    assert part_errors(pred, ref) == {"missed_parts": 1, "false_parts": 2}
    assert part_errors(~ref & False, ref) == {"missed_parts": 2, "false_parts": 0}
    assert part_errors(ref, ref) == {"missed_parts": 0, "false_parts": 0}
