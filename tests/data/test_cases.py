"""The case table and the folder source: what is paired, what is named as wrong."""

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thyroid_lib.data import folder
from thyroid_lib.data.cases import COLUMNS, REASONS, BadCase, make_table, read_pair, table_problems


def touch(path, *names):
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).touch()
    return path


def pair(tmp_path, images, masks, groups=None):
    """The case table of two folders of empty files; groups.csv given as text."""
    if groups is not None:
        (tmp_path / "groups.csv").write_text(groups, "utf-8")
    return folder.cases(
        touch(tmp_path / "images", *images),
        touch(tmp_path / "masks", *masks),
        None if groups is None else tmp_path / "groups.csv",
    )


def table(*rows):
    return make_table([(*row, "d") for row in rows])


# --- the table


def test_a_table_is_sorted_text():
    cases = table(("b", "b.png", "b.png", "1"), ("0007", "a.png", "a.png", "02"))
    assert list(cases.columns) == COLUMNS
    assert cases["case_id"].tolist() == ["0007", "b"]
    assert cases["group"].tolist() == ["02", "1"]


def test_a_good_table_has_no_problems():
    problems = table_problems(table(("a", "a.png", "a.png", "1"), ("b", "b.png", "b.png", "1")))
    assert list(problems.columns) == ["case_id", "file", "reason", "detail"]
    assert len(problems) == 0


@pytest.mark.parametrize(
    ("row", "file", "reason"),
    [
        (("x", "", "masks/x.png", "1"), "x.png", "missing image"),
        (("x", "images/x.jpg", "", "1"), "x.jpg", "missing mask"),
        (("x", "images/x.jpg", "masks/x.png", ""), "x.jpg", "no group"),
        (("x\ny", "images/x\ny.jpg", "masks/x\ny.png", "1"), "x\\ny.jpg", "unusable name"),
        (("x\udcff", "x\udcff.jpg", "x.png", "1"), "x\\udcff.jpg", "unusable name"),
        (("A", "A.jpg", "A.png", "1"), "A.jpg", "duplicate name"),  # there is an "a"
    ],
)
def test_a_problem_is_named_with_its_file(row, file, reason):
    problems = table_problems(table(row, ("a", "a.png", "a.png", "1"), ("b", "b", "b", "1")))
    mine = problems[problems["file"] == file]
    assert mine["reason"].tolist() == [reason]
    assert reason in REASONS
    assert len(problems) == (2 if reason == "duplicate name" else 1)


def test_a_row_has_one_problem_at_most():
    problems = table_problems(table(("x\n", "", "", "")))
    assert problems["reason"].tolist() == ["unusable name"]


def test_what_is_no_case_table_is_refused():
    with pytest.raises(ValueError, match="it lacks mask_path, group and has case_id") as error:
        table_problems(pd.DataFrame(columns=["case_id", "image_path", "dataset"]).astype(str))
    assert "make it with a source" in str(error.value)


# --- one pair


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


@pytest.fixture
def good(tmp_path):
    image = save(tmp_path / "image.png", np.full((4, 6), 90))
    return image, save(tmp_path / "mask.png", np.eye(4, 6) * 255)


def test_a_good_pair(good):
    image, mask = read_pair(*good)
    assert image.dtype == np.uint8
    assert mask.dtype == bool
    assert image.shape == mask.shape == (4, 6)
    assert mask.sum() == 4


@pytest.mark.parametrize(
    ("mask", "reason", "detail"),
    [
        (np.eye(6, 4) * 255, "size mismatch", "image and mask are 4 x 6 and 6 x 4"),
        (np.zeros((4, 6)), "empty mask", "the brightest is 0"),
        (np.eye(4, 6), "empty mask", "the brightest is 1: save masks with 0 and 255"),
        (np.full((4, 6), 128), "full mask", "every pixel is above 127"),
        (np.pad(np.zeros((2, 4)), 1, constant_values=255), "inverted mask", "whole border is"),
    ],
)
def test_a_mask_that_cannot_be_used(good, mask, reason, detail):
    save(good[1], mask)
    with pytest.raises(BadCase, match=detail) as error:
        read_pair(*good)
    assert error.value.reason == reason
    assert reason in REASONS


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_file_that_is_not_there_or_is_broken(good, kind):
    broken = dict(zip(("image", "mask"), good, strict=True))
    broken[kind].write_bytes(b"no image")
    with pytest.raises(BadCase) as error:
        read_pair(*good)
    assert error.value.reason == f"unreadable {kind}"
    assert error.value.detail.startswith(f"'{kind}.png' is no PNG")
    broken[kind].unlink()
    with pytest.raises(BadCase) as error:
        read_pair(*good)
    assert error.value.reason == f"missing {kind}"


# --- the folder source


def test_equal_names_are_paired_whatever_their_type(tmp_path):
    cases = pair(
        tmp_path,
        ["b 2.JPG", "ä1.png", ".hidden.png"],
        ["ä1.tif", "b 2.bmp", "Thumbs.db"],
        "case_id,group\nä1,p1\nb 2,p2\n",
    )
    assert cases["case_id"].tolist() == ["b 2", "ä1"]
    assert cases["group"].tolist() == ["p2", "p1"]
    assert cases["image_path"].str.endswith(("b 2.JPG", "ä1.png")).all()
    assert cases["mask_path"].str.endswith(("b 2.bmp", "ä1.tif")).all()
    assert cases["dataset"].unique().tolist() == ["folder"]


def test_accents_in_two_forms_are_one_name(tmp_path):
    cases = pair(tmp_path, ["e\u0301.png"], ["\u00e9.png"], "case_id,group\n\u00e9,g\n")
    assert cases[["case_id", "group"]].to_numpy().tolist() == [["\u00e9", "g"]]
    assert len(table_problems(cases)) == 0


def test_upper_and_lower_case_are_one_name(tmp_path):
    cases = pair(tmp_path, ["IMG1.png"], ["img1.png"], "case_id,group\nImg1,g\n")
    assert cases[["case_id", "group"]].to_numpy().tolist() == [["IMG1", "g"]]


def test_missing_partners_are_empty_paths(tmp_path):
    cases = pair(tmp_path, ["a.png", "b.png"], ["b.png", "c.png"], "case_id,group\na,1\nb,1\n")
    assert (cases["image_path"] == "").tolist() == [False, False, True]
    assert (cases["mask_path"] == "").tolist() == [True, False, False]


def test_one_name_of_two_types_is_two_rows(tmp_path):
    cases = pair(
        tmp_path, ["a.png", "a.jpg", "b.png"], ["a.png", "b.png"], "case_id,group\na,1\nb,1"
    )
    assert cases["case_id"].tolist() == ["a", "a", "b"]
    assert table_problems(cases)["reason"].tolist() == ["duplicate name"] * 2


def test_without_groups_each_image_is_its_own_group(tmp_path):
    with pytest.warns(UserWarning, match="every image counts as a group of its own"):
        cases = pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"])
    assert cases["group"].tolist() == ["a", "b"]


def test_identifiers_stay_text(tmp_path):
    groups = "case_id,group\n0007,01\n0008,NA\n0009, 02 \n"
    names = ["0007.png", "0008.png", "0009.png"]
    cases = pair(tmp_path, names, names, groups)
    assert cases["case_id"].tolist() == ["0007", "0008", "0009"]
    assert cases["group"].tolist() == ["01", "NA", "02"]


def test_a_case_that_groups_csv_does_not_name_has_no_group(tmp_path):
    cases = pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"], "\ufeffcase_id,group\na,1\n")
    assert cases["group"].tolist() == ["1", ""]


@pytest.mark.parametrize("line", ["b", "b,"])
def test_a_line_without_a_group(tmp_path, line):
    cases = pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"], f"case_id,group\na,1\n{line}\n")
    assert cases["group"].tolist() == ["1", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,group\na,Smith, John\n", "the line of 'a' has more fields than the first line"),
        ("case_id,group,group\na,1,2\n", "has two columns group, keep one"),
        ('case_id,group\na,"1\nb,2"\n', r"holds a line break .* in '1\\nb,2': a quote"),
        ('case_id,group\n"a,1\nb,2\n', "is no CSV file in UTF-8 \\(unexpected end of data\\)"),
        ('case_id,group\na,"1"2\nb,2\n', "is no CSV file in UTF-8 .* expected after"),
        ("case_id,group\na,1\0\nb,2\n", "holds a line break or what is no text in"),
        ('case_id,"gr\noup"\na,1\n', r"lacks group: its columns are case_id, 'gr\\noup'; needed"),
        ("\n , \n", "is no CSV file in UTF-8 \\(it is empty\\)"),
    ],
)
def test_groups_csv_that_says_another_thing_than_it_seems(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"^groups\.csv:? {message}") as error:
        pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"], text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", [" case_id , group \na,1\n,\n , ,\nb,2,\n", "case_id,group\ra,1\rb,2"]
)
def test_groups_csv_as_spreadsheets_write_it(tmp_path, text):
    cases = pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"], text)
    assert cases["group"].tolist() == ["1", "2"]


def test_a_broken_link_is_not_taken_for_no_groups_csv(small_folder):
    (small_folder / "groups.csv").unlink()
    (small_folder / "groups.csv").symlink_to("groups.csv")
    with pytest.raises(ValueError, match=r"groups\.csv is no CSV file .*a broken link"):
        folder.cases_in(small_folder)


def test_files_of_another_ending_are_passed_over_aloud(small_folder):
    (small_folder / "images" / "a03.dcm").touch()
    (small_folder / "images" / "a\n04.gif").touch()
    with pytest.warns(
        UserWarning, match=r"images/: passed over 2 by the ending: 'a\\n04\.gif', a03"
    ):
        cases = folder.cases_in(small_folder)
    assert len(cases) == 6


def test_more_columns_in_groups_csv_do_no_harm(tmp_path):
    cases = pair(tmp_path, ["a.png"], ["a.png"], "age,group,case_id,side\n40,g1,a,left\n")
    assert cases["group"].tolist() == ["g1"]


def test_a_name_too_many_in_groups_csv_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="names 1 cases that are not there: 'z'"):
        pair(tmp_path, ["a.png"], ["a.png"], "case_id,group\na,1\nz,2\n")


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
    assert len(table_problems(cases)) == 0
