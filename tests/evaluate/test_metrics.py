"""Scores one can draw by hand, and MONAI beside them. In the drawings `#` is foreground."""

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
SQUARE = pixel(slice(2, 7), slice(2, 7))  # 16 boundary pixels


def test_overlap_by_hand():
    ref, pred = draw("##..", "##..", "...."), draw(".###", ".#..", "...#")
    scores = score_case(pred=pred, ref=ref)  # 2 of 5 are right, and 2 of 4 are found
    assert scores["dice"] == dice(pred, ref) == 2 * 2 / (5 + 4)
    assert [scores[name] for name in ("iou", "precision", "recall")] == [2 / 7, 2 / 5, 2 / 4]
    stack = np.stack([draw("##"), draw("..")]), np.stack([draw("##"), draw(".#")])
    assert dice(*stack) == 4 / 5  # pooled; the mean over frames would be 1/2


def test_keys_in_order_and_a_perfect_prediction():
    perfect = score_case(pred=SOMETHING, ref=SOMETHING.copy(), tolerance_px=0)
    assert [key for key in perfect if key in KEYS] == KEYS  # a metric may be added anywhere
    assert all(type(value) is float for value in perfect.values())
    assert {key: float(key in KEYS[:5]) for key in KEYS}.items() <= perfect.items()


def test_distance_and_tolerance_of_two_pixels():
    for ref, apart in ((2, 4), 2), ((4, 6), 2), ((7, 8), 5):
        for tolerance, nsd in (apart - 0.1, 0), (apart, 1):
            scores = score_case(pred=pixel(4, 4), ref=pixel(*ref), tolerance_px=tolerance)
            known = {"hd95_px": apart, "assd_px": apart, "nsd": nsd}
            assert (dict.fromkeys(KEYS, 0) | known).items() <= scores.items()


def square_with(row, column):
    mask = SQUARE.copy()
    mask[row, column] = False
    return mask


BOUNDARIES = {  # pred, ref, tolerance; ASSD, NSD, HD95 by hand
    # pred to ref: 0 and 4, 95th percentile 3.8; ref to pred: 0
    "directed": (draw("#...#...."), draw("#........"), 3, 4 / 3, 2 / 3, 3.8),
    # a hole of one pixel: its four neighbours become boundary, 1 from the edge
    "only boundary pixels": (square_with(4, 4), SQUARE, 0, 4 / 36, 32 / 36, 1),
    # 15: the pixel at (3, 3) touches background at a corner only
    "no diagonal neighbours": (square_with(2, 2), SQUARE, 0, 1 / 31, 30 / 31, 0.25),
    # 28 pixels along the image's edge, 20 one further in; each corner is √2 from the inner one
    "the image's edge": (
        np.ones((7, 9), bool), pixel(slice(1, -1), slice(1, -1), (7, 9)), 1,
        (24 + 4 * math.sqrt(2) + 20) / 48, 44 / 48, math.sqrt(2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOUNDARIES)
def test_boundary_distances_by_hand(case):
    pred, ref, tolerance, assd, nsd, hd95 = BOUNDARIES[case]
    for masks in ({"pred": pred, "ref": ref}, {"pred": ref, "ref": pred}):
        scores = score_case(**masks, tolerance_px=tolerance)
        assert [scores["assd_px"], scores["nsd"]] == pytest.approx([assd, nsd])
        assert scores["hd95_px"] == pytest.approx(hd95, abs=0.05)


def test_room_around_the_masks_changes_nothing_and_masks_stay():
    for pred, ref in random_pairs(50):
        pred.flags.writeable = ref.flags.writeable = False
        roomy = {"pred": np.pad(pred, 3), "ref": np.asfortranarray(np.pad(ref, 3))}
        assert score_case(pred=pred, ref=ref) == score_case(**roomy)


def test_empty_masks_agree_or_are_a_total_miss():
    for pred, ref in ((NOTHING, NOTHING), (NOTHING, SOMETHING), (SOMETHING, NOTHING)):
        share = float(pred is ref)
        px = 0 if share else math.hypot(9, 12)  # the diagonal
        scores = dict.fromkeys(KEYS[:5], share) | {"hd95_px": px, "assd_px": px}
        assert scores.items() <= score_case(pred=pred, ref=ref).items()
        assert dice(pred, ref) == share


REFUSED = [  # ref, settings, error, text
    (SOMETHING.astype("uint8"), {}, TypeError, "ref must be a bool array, got uint8.*prob > thr"),
    (SOMETHING.tolist(), {}, TypeError, "ref must be a bool array, got list"),
    (pixel(1, 1), {}, ValueError, r"got \(9, 12\) and \(9, 9\)"),
    (SOMETHING[:1], {}, ValueError, "one shape"),  # would broadcast
    *((SOMETHING, {"tolerance_px": x}, ValueError, "tolerance_px") for x in (-1, math.nan)),
]  # fmt: skip


@pytest.mark.parametrize(("ref", "settings", "error", "text"), REFUSED)
def test_wrong_masks_and_lengths_are_refused(ref, settings, error, text):
    with pytest.raises(error, match=text):
        score_case(pred=SOMETHING, ref=ref, **settings)
    if not settings:
        with pytest.raises(error, match=text):
            dice(SOMETHING, ref)
    with pytest.raises(ValueError, match=r"must be \(H, W\), got \(1, 9, 12\)"):
        score_case(pred=SOMETHING[None], ref=SOMETHING[None])


def random_pairs(count, seed=0):
    """Non-empty masks of all sorts: smooth, noisy, shifted, cut by the border, of any shape."""
    random = np.random.default_rng(seed)
    while count:
        shape, smooth = random.integers(2, 60, 2), random.choice([0, 1, 3])
        fields = random.standard_normal((2, *shape))
        limits = random.choice([-0.3, 0, 0.2], 2)[:, None, None]
        pred, ref = np.stack([ndimage.gaussian_filter(f, smooth) for f in fields]) > limits
        if random.random() < 0.4:
            pred = np.roll(ref, random.integers(-3, 4, 2), (0, 1))
        if pred.any() and ref.any():
            count -= 1
            yield pred, ref


def by_definition(pred, ref):
    """HD95, ASSD, NSD from all distances between boundary pixels, found by their neighbours."""

    def boundary(mask):
        ringed = np.pad(mask, 1)
        around = [np.roll(ringed, step, axis) for axis in (0, 1) for step in (-1, 1)]
        return np.argwhere((ringed & ~np.logical_and.reduce(around))[1:-1, 1:-1])

    apart = np.linalg.norm(boundary(pred)[:, None] - boundary(ref)[None], axis=2)
    there, back = apart.min(axis=1), apart.min(axis=0)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return hd95, both.mean(), np.mean(both <= 2)


def by_monai(pred, ref):
    import torch
    from monai import metrics

    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (pred, ref))
    common = {"y_pred": y_pred, "y": y, "include_background": True, "spacing": (1.0, 1.0)}
    return (
        metrics.compute_hausdorff_distance(percentile=95, **common).item(),
        metrics.compute_average_surface_distance(symmetric=True, **common).item(),
        metrics.compute_surface_dice(class_thresholds=[2.0], **common).item(),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(  # float32 interpolates a percentile to about five digits
    ("reference", "count", "exactness"),
    [(by_definition, 100, 1e-4), pytest.param(by_monai, 500, 1e-6, marks=pytest.mark.study)],
)
def test_agrees_with_reference_implementations(reference, count, exactness):
    for pred, ref in random_pairs(count):
        scores = score_case(pred=pred, ref=ref)
        ours = scores["hd95_px"], scores["assd_px"], scores["nsd"]
        assert ours == pytest.approx(reference(pred, ref), rel=exactness, abs=1e-6)


def test_pooled_batches_hide_a_miss_and_are_averaged():
    both, total = np.array([90, 0]), np.array([200, 20])  # 0.9, and a small gland missed
    assert pooled_dice(both, total) == 2 * 90 / 220
    assert pooled_dice(both, total, batch=1) == pytest.approx((0.9 + 0) / 2)
    assert pooled_dice(np.zeros(3), np.zeros(3)) == 1.0
    both, order = np.arange(18), np.random.default_rng(0).permutation(18)
    batches = [2 * both[part].sum() / (10 * len(part)) for part in (order[:16], order[16:])]
    assert pooled_dice(both, np.full(18, 10)) == pytest.approx(np.mean(batches))


def test_missed_and_false_parts_are_counted():
    ref = draw("##..##", "##..##", "......", "......")
    pred = draw("#.....", "......", "...#..", "#...#.")
    # the right lobe is missed; the diagonal two are one false part, the corner another
    assert part_errors(pred, ref) == {"missed_parts": 1, "false_parts": 2}
    assert part_errors(~ref & False, ref) == {"missed_parts": 2, "false_parts": 0}
    assert part_errors(ref, ref) == {"missed_parts": 0, "false_parts": 0}
