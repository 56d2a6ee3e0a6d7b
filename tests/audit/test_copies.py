"""Near-copies: planted ones are found, shifted, brightened, saved again or mirrored; others not."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from thyroid_lib.audit.copies import NEAR_COPY, closest, describe, pair_correlation
from thyroid_lib.data import phantom
from thyroid_lib.data.frames import fit_image

SIZE = 128


def shifted(image, rng):
    """By up to 4 px of 128; what comes in at the edge is a continuation, not the other edge."""
    return ndimage.shift(image, rng.integers(-4, 5, 2), order=0, mode="nearest")


def brightened(image, rng):
    level = 255 * (image / 255) ** rng.uniform(0.6, 1.5) * rng.uniform(0.8, 1.4)
    return np.clip(level + rng.uniform(0, 25), 0, 255).astype(np.uint8)


def saved_again(image, rng):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(20, 60)))
    return np.asarray(Image.open(file))


def mirrored(image, rng):
    return np.ascontiguousarray(image[:, ::-1])


def all_at_once(image, rng):
    for change in (shifted, brightened, saved_again, mirrored):
        image = change(image, rng)
    return image


CHANGES = (shifted, brightened, saved_again, mirrored, all_at_once)


def squares(images):
    return np.stack([fit_image(image, SIZE, "square") for image in images])


@pytest.fixture(scope="module")
def necks():
    """The first frames of 36 sweeps, (36,128,128): other people, other scanner settings."""
    return squares([phantom.make_sweep(sweep=i, frames=1)["images"][0] for i in range(36)])


def planted_rates(pool, queries, sources):
    """Recall, precision, and the share of copies that are traced to their source (-1: no copy)."""
    found = closest(describe(queries), describe(pool))
    copied, planted = found["correlation"] >= NEAR_COPY, sources >= 0
    hits = (copied & planted).sum()
    right = (found["row"].to_numpy() == sources)[planted]
    return hits / planted.sum(), hits / max(1, copied.sum()), right.mean()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_planted_copies_are_found_and_other_sweeps_are_not(necks, change):
    rng = np.random.default_rng(1)
    pool, others = necks[:24], necks[24:]
    copies = np.stack([change(image, rng) for image in pool])
    # unrelated frames are changed alike: what is found must be content, not the change
    others = np.concatenate([others, [change(image, rng) for image in others]])
    sources = np.r_[np.arange(len(pool)), np.full(len(others), -1)]
    assert planted_rates(pool, np.concatenate([copies, others]), sources) == (1, 1, 1)


def test_planted_copies_are_found_among_real_frames(shared_data):
    """Half of the runs are the pool; copies of it, and the other runs, are looked up in it."""
    from thyroid_lib.data import frames, tg3k

    cases = tg3k.cases(shared_data / "tg3k-sample")
    images = squares([frames.read_gray(path) for path in cases["image_path"]])
    rng = np.random.default_rng(2)
    in_pool = cases["group"].isin(sorted(cases["group"].unique())[::2]).to_numpy()
    pool = images[in_pool]
    rows = np.arange(0, len(pool), 2)
    copies = [CHANGES[k % len(CHANGES)](pool[row], rng) for k, row in enumerate(rows)]
    queries = np.concatenate([copies, images[~in_pool]])
    sources = np.r_[rows, np.full((~in_pool).sum(), -1)]
    recall, precision, right = planted_rates(pool, queries, sources)
    print(f"recall {recall:.3f}, precision {precision:.3f}, traced to the frame {right:.3f}")
    assert min(recall, precision) >= 0.95
    assert right >= 0.9  # a neighbour in the sweep may be as near as the source itself


def test_shift_and_mirroring_are_found(necks):
    moved = np.roll(necks[5], (4, -6), (0, 1))
    found = closest(describe(np.stack([moved, moved[:, ::-1]])), describe(necks))
    found[["shift_y", "shift_x"]] *= SIZE
    names = ["row", "shift_y", "shift_x", "mirrored"]
    assert found[names].to_numpy().tolist() == [[5, 4, -6, False], [5, 4, -6, True]]


def test_correlation_is_that_of_the_definition(necks):
    """Beside the sums taken one by one: best correlation of the middle over all small shifts."""
    fine = describe(necks[:2]).fine
    one, other = fine.astype(np.float64)
    windows = [other[y : y + 56, x : x + 56] for y, x in np.ndindex(9, 9)]
    best = max(np.corrcoef(one[4:-4, 4:-4].ravel(), each.ravel())[0, 1] for each in windows)
    found = closest(describe(necks[:1]), describe(necks[1:2]))
    plain = pair_correlation(fine[::-1], 1)[1]
    assert plain == pytest.approx(best, abs=1e-4)
    assert found["correlation"][0] >= plain - 1e-4


def test_copies_within_a_set_are_found_mirrored_ones_too(necks):
    images = [*necks[:4], necks[2], necks[0, :, ::-1], necks[4] * 0, necks[4] * 0]
    squeezed = [image[::2, : 100 + row] for row, image in enumerate(images)]  # of any size
    for frames, rows in ((images, range(8)), (squeezed, (2, 4))):
        maps = describe(frames)
        found = closest(maps, maps, apart=(np.arange(8), np.arange(8)))
        copied = np.where(found["correlation"] >= NEAR_COPY, found["row"], -1)
        expected = np.array([5, -1, 4, -1, 2, 0, -1, -1])  # black ones are none
        assert copied[list(rows)].tolist() == expected[list(rows)].tolist()


def test_frames_of_equal_value_are_not_compared(necks):
    maps = describe(necks[[0, 0, 1]])
    found, alone = (closest(maps, maps, apart=([*groups],) * 2) for groups in ("aab", "aaa"))
    assert found["row"].tolist() in ([2, 2, 0], [2, 2, 1])
    assert (alone[["row", "correlation"]] == -1).all(axis=None)
