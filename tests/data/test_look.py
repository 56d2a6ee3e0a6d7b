"""Looking at a data set: files paired and grouped, what is said, the sheet, the command."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import save_pairs
from layout_cases import levels, pairs, table, write
from PIL import Image

from thyroid_lib.data import __main__ as command
from thyroid_lib.data.groups import UNKNOWN, assign_groups
from thyroid_lib.data.layouts import find_pairs
from thyroid_lib.data.look import look
from thyroid_lib.data.shrink import size_needed, sizes_needed
from thyroid_lib.data.store import build_store, load_cases

# Data sets of every layout, mask and groups file: test_layouts.py. Bad files: test_bad_files.py.

NAMES = [
    # equal names are paired whatever their type; hidden files and litter do not count
    ("b_2.JPG ä.png .x.png", "ä.tif b_2.bmp Thumbs.db", "ä,p1\nb 2,p2", "b_2:p2 ä:p1"),
    ("e\u0301.png", "\u00e9.png", "\u00e9,g", "\u00e9:g"),  # accents in two forms
    ("IMG1.png", "img1.png", "Img1,g", "IMG1:g"),  # upper and lower case
    ("a.png b.png", "b.png c.png", "a,1\nb,1", "a:1 b:1 c:"),  # missing partners
    ("a.png a.jpg b.png", "a.png b.png", "a,1\nb,1", "a:1 a:1 b:1"),  # two of one name
    ("0007.png 08.png", "0007.png 08.png", "0007,01\n08, NA ", "0007:01 08:NA"),  # stay text
    ("a.png b.png", "a.png b.png", "a,1\nb", "a:1 b:"),  # a line without a group
    ("a.png b.png", "a.png b.png", "a,1\n,\n , ,\nb,2\n", "a:1 b:2"),  # blank lines
    ("a.png b.png", "a.png b.png", "a,1\rb,2", "a:1 b:2"),  # as old spreadsheets end lines
    ("1.png 01.png", "1.png 01.png", "1,p\n01,q", "01:q 1:p"),  # names as filed come first
]


@pytest.mark.parametrize(("images", "masks", "groups", "found"), NAMES)
def test_names_are_paired_and_grouped(tmp_path, images, masks, groups, found):
    for part, names in (("images", images), ("masks", masks)):
        (tmp_path / part).mkdir()
        for name in names.split():
            (tmp_path / part / name.replace("_", " ")).touch()
    (tmp_path / "groups.csv").write_text(f"\ufeff case_id , group \n{groups}", "utf-8")
    cases, others, _ = find_pairs(tmp_path)
    grouped, _ = assign_groups(cases, tmp_path, others)
    rows = [f"{name}:{group}" for name, group in zip(cases["case_id"], grouped, strict=True)]
    assert [row.replace(" ", "_") for row in rows] == found.split()
    for kind, names in (("image_path", images), ("mask_path", masks)):
        files = [name for name in names.split() if not name.startswith((".", "T"))]
        assert {Path(path).name.replace(" ", "_") for path in cases[kind] if path} == {*files}


def test_what_is_seen_goes_into_the_store(tmp_path, capsys):
    write(pairs(draw=levels(7)), tmp_path / "data")
    cases = load_cases("folder", tmp_path / "data")
    said = capsys.readouterr()
    assert "groups: groups are not known" in said.out
    assert f"note: {UNKNOWN}" in said.err
    built = build_store(cases, tmp_path / "store", size=16, mend=[])
    assert built.seen == cases.attrs["seen"]
    other = load_cases("folder", tmp_path / "data", mask_values=">3")
    assert build_store(other, tmp_path / "s", size=16, mend=[]).fingerprint != built.fingerprint
    assert built.seen["masks"].startswith("gland is 7 (")
    assert set(built.index["mask_rule"]) == {"levels:7"}
    assert "image_highest" not in built.index  # all are of 8 bits


@pytest.mark.parametrize("value", [-1, np.nan])
def test_masks_of_levels_that_mean_nothing_are_set_aside(tmp_path, value):
    def draw(i):
        return levels(1, dtype=np.float32)(i) + (value if i == 2 else 0)

    cases = look(write(pairs(masks="masks/a{}.tif", draw=draw), tmp_path / "data")).cases
    built = build_store(cases, tmp_path / "store", size=16, mend=[])
    assert len(built) == 4
    [row] = built.quarantine.itertuples()
    assert (row.case_id, row.reason) == ("a2", "unreadable mask")
    assert "levels below 0, or that are no numbers" in row.detail


def test_a_store_inside_the_data_is_no_data_and_an_unknown_choice_is_refused(small_folder):
    build_store(look(small_folder).cases, small_folder / "store", size=16)
    assert len(look(small_folder).cases) == 6
    with pytest.raises(ValueError, match="got mask, need any of images, masks"):
        look(small_folder, mask="x")


def test_the_command_tells_what_is_set_aside_and_draws_a_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    files = pairs() | {"masks/a1.png": b"x", "masks/a2.png": levels(0)(2), "groups.csv": table()}
    write(files, tmp_path / "mine")
    assert command.main([str(tmp_path / "mine"), "--size", "16"]) == 0
    said = capsys.readouterr().out
    assert "groups     2 groups from groups.csv" in said
    assert "set aside  2 of 5: 1 empty mask (a2.png: no pixel" in said
    assert "1 unreadable mask (a1.png: " in said
    assert "at 16 px every mask keeps more than half" in said
    sheet = np.asarray(Image.open(said.rsplit("sheet", 1)[1].strip()))
    yellow = (sheet == (255, 214, 0)).all(axis=2)
    assert [i for i in range(6) if yellow[:160, 160 * i : 160 * i + 160].any()] == [0, 3, 4]
    assert command.main([str(tmp_path / "mine"), "masks=nowhere", "--no-sheet"]) == 1
    assert "masks: 'nowhere' matches no image file" in capsys.readouterr().err


def test_a_wrong_command_is_one_sentence(tmp_path, monkeypatch, capsys):
    for name in ("kagglehub", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported
    monkeypatch.chdir(write({"set/a.dcm": bytes(128) + b"DICM"}, tmp_path))
    for given, words in (
        ([""], "got '' []: need a path, then key=value"),
        (["set", "masks", "groups=none"], "got 'set' ['masks', 'groups=none']: need a path"),
        (["kaggle:some/set/2"], "cannot be fetched"),
        ([str(tmp_path / "set")], "DICOM needs the package pydicom"),
    ):
        assert command.main([*given, "--no-sheet"]) == 1
        [said] = capsys.readouterr().err.splitlines()
        assert words in said


def test_masks_that_a_size_loses_are_counted_with_the_size_that_keeps_them(tmp_path, capsys):
    for i, side in enumerate((2, 2, 8, 300)):
        mask = np.zeros((500, 600), np.uint8)
        mask[100 : 100 + side, 100 : 100 + side] = 255
        save_pairs(tmp_path, [mask * 0], [mask], [f"a{i}"])
    built = build_store(look(tmp_path).cases, tmp_path / "store", size=64, mend=[])
    needed = sizes_needed(built)
    assert [side > 0 for side in needed] == [True, True, needed[2] > 0, False]
    for row, side in enumerate(needed):
        if side:
            assert size_needed(built.reference(row), side, "square") == 0
            assert size_needed(built.reference(row), side - 32, "square") == side
    lost = [side for side in needed if side]
    assert f"at 64 px {len(lost)} of 4 masks vanish" in capsys.readouterr().err
