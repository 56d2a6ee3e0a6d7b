"""Stacks of frames in TIFF, GIF and npy files: a row for each frame, of one group."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thyroid_lib.data import arrays
from thyroid_lib.data.cases import COLUMNS
from thyroid_lib.data.readers import expand_stacks

RNG = np.random.default_rng(11)
FRAMES = RNG.integers(0, 255, (12, 9, 13), np.uint8)


def write(path, frames):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, frames if len(frames) > 1 else frames[0])
    else:
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=len(rest) > 0, append_images=rest)
    return str(path)


def table(*rows):
    return pd.DataFrame(rows, columns=[*COLUMNS, "official"], dtype=object)


def read(reference):
    path, _, part = reference.partition("\t")
    if path.endswith(".npy"):
        return arrays.read_image(path, part)
    image = Image.open(path)
    image.seek(int(part or 0))
    return np.asarray(image.convert("L"))


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".gif", ".npy"])
def test_a_row_for_each_frame(tmp_path, suffix):
    cine = [write(tmp_path / kind / f"c{suffix}", FRAMES) for kind in ("images", "masks")]
    one = [write(tmp_path / kind / f"o{suffix}", FRAMES[:1]) for kind in ("images", "masks")]
    before = table(("c", *cine, "c", "mine", "train"), ("o", *one, "p1", "mine", "test"))
    before.attrs["layout"] = "kept"
    after = expand_stacks(before)
    assert after["case_id"].tolist() == [*(f"c_{n:02d}" for n in range(12)), "o"]
    assert after["group"].tolist() == ["c"] * 12 + ["p1"]
    assert after["official"].tolist() == ["train"] * 12 + ["test"]
    assert after.attrs["layout"] == "kept"
    for case, frame in zip(after.itertuples(), [*FRAMES, FRAMES[0]], strict=True):
        np.testing.assert_array_equal(read(case.image_path), frame)
        np.testing.assert_array_equal(read(case.mask_path), frame)


def test_each_of_several_masks_is_a_stack(tmp_path):
    files = [write(tmp_path / f"{name}.tif", FRAMES[:3]) for name in "abc"]
    after = expand_stacks(table(("a", files[0], "\n".join(files[1:]), "a", "mine", "")))
    assert after["mask_path"][2] == f"{files[1]}\t2\n{files[2]}\t2"


@pytest.mark.parametrize(("images", "masks"), [(3, 1), (1, 2), (3, 4)])
def test_other_numbers_of_masks_are_set_aside(tmp_path, images, masks):
    """Such as a mask of two pages, one for each class."""
    pair = write(tmp_path / "a.tif", FRAMES[:images]), write(tmp_path / "b.tif", FRAMES[:masks])
    plain = write(tmp_path / "c.png", FRAMES[:1])
    after = expand_stacks(table(("a", *pair, "a", "", ""), ("c", plain, plain, "c", "", "")))
    reason, detail = after["problem"][0]
    assert reason == "size mismatch"
    assert f"holds {images} pictures, the mask's {masks}: save one mask" in detail
    assert after["problem"][1] is None


def test_what_is_no_stack_stays_as_it_is(tmp_path):
    damaged = tmp_path / "a.tif"
    damaged.write_bytes(b"II*\0" + bytes(9))
    file = write(tmp_path / "b.tif", FRAMES[:4])
    before = table(("a", str(damaged), str(damaged), "", "", ""), ("b", file, "", "", "", ""))
    pd.testing.assert_frame_equal(expand_stacks(before)[before.columns], before)
    assert expand_stacks(before[:0]).empty
