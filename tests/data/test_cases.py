"""The case table and the folder source: which files are paired, which group a case has."""

import warnings

import pytest

from thyroid_lib.data import folder
from thyroid_lib.data.cases import find_problems

# Bad names, files and tables: test_bad_files.py.


def pair(tmp_path, images, masks, groups=None):
    """The case table of two folders of empty files; groups.csv given as text."""
    for part, names in (("images", images), ("masks", masks)):
        (tmp_path / part).mkdir()
        for name in names.split():
            (tmp_path / part / name.replace("_", " ")).touch()
    if groups is not None:
        (tmp_path / "groups.csv").write_text(groups, "utf-8")
    return folder.cases_in(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "groups", "found"),
    [
        # equal names are paired whatever their type; hidden files and litter do not count
        ("b_2.JPG ä.png .x.png", "ä.tif b_2.bmp Thumbs.db", "ä,p1\nb 2,p2", "b 2:p2 ä:p1"),
        ("e\u0301.png", "\u00e9.png", "\u00e9,g", "\u00e9:g"),  # accents in two forms
        ("IMG1.png", "img1.png", "Img1,g", "IMG1:g"),  # upper and lower case
        ("a.png b.png", "b.png c.png", "a,1\nb,1", "a:1 b:1 c:"),  # missing partners
        ("a.png a.jpg b.png", "a.png b.png", "a,1\nb,1", "a:1 a:1 b:1"),  # two of one name
        ("0007.png 08.png", "0007.png 08.png", "0007,01\n08, NA ", "0007:01 08:NA"),  # stay text
        ("a.png b.png", "a.png b.png", "a,1\nb", "a:1 b:"),  # a line without a group
        ("a.png b.png", "a.png b.png", "a,1\n,\n , ,\nb,2\n", "a:1 b:2"),  # blank lines
        ("a.png b.png", "a.png b.png", "a,1\rb,2", "a:1 b:2"),  # as old spreadsheets end lines
    ],
)
def test_names_are_paired_and_grouped(tmp_path, images, masks, groups, found):
    cases = pair(tmp_path, images, masks, f"\ufeff case_id , group \n{groups}")
    rows = zip(cases["case_id"], cases["group"], strict=True)
    expected = [each.rpartition(":")[::2] for each in found.replace("b 2", "b_2").split()]
    assert [(name.replace(" ", "_"), group) for name, group in rows] == expected
    for kind, names in (("image_path", images), ("mask_path", masks)):
        files = [name for name in names.split() if not name.startswith((".", "T"))]
        assert (cases[kind] != "").sum() == len(files)


@pytest.mark.parametrize(
    ("images", "groups", "said"),
    [
        ("a.png", None, "every image counts as a group of its own"),
        ("a.png", "case_id,group\na,1\nz,2\n", "names 1 cases that are not there: 'z'"),
        (
            "a.png b.dcm c\x01.gif", "case_id,group\na,1\n",
            r"images/: skipped 2 by the ending: 'b.dcm', 'c\\x01.gif'; needed are .png",
        ),
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_warned_of(tmp_path, images, groups, said):
    with pytest.warns(UserWarning, match=said):
        cases = pair(tmp_path, images, "a.png", groups)
    assert cases["group"].tolist() == ["a" if groups is None else "1"]


@pytest.mark.parametrize("names", [("images", "masks"), ("image", "mask")])
def test_cases_in_finds_both_folders(small_folder, names):
    (small_folder / "images").rename(small_folder / names[0])
    (small_folder / "masks").rename(small_folder / names[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases = folder.cases_in(small_folder, dataset="mine")
    assert cases["case_id"].tolist() == ["a00", "a01", "a02", "b00", "b01", "b02"]
    assert cases["group"].tolist() == list("aaabbb")
    assert cases["dataset"].unique().tolist() == ["mine"]
    assert find_problems(cases) == [None] * 6
