"""A case table in CSV: paths, groups and sides as its lines say, and what is wrong with a line."""

import pytest
from PIL import Image

from thyroid_lib.data import case_csv
from thyroid_lib.data.look import look

BOTH = "image_path,mask_path"
FILES = ("x/1.png", "x/2.png", "y/1.png", "m/1.png", "m/2.png", "m/3.png")


def write(folder, text, name="cases.csv", encoding="utf-8"):
    for file in FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(folder / file)
    (folder / name).write_bytes(text.encode(encoding))
    return folder


def test_all_columns(tmp_path):
    text = (
        "image_path,mask_path,group,dataset,official,age\n"
        "x/1.png,m/1.png,p1,siteA,train,40\nx/2.png,m/2.png,p2,siteB,Test,50\n"
    )
    write(tmp_path, text)
    for path in (tmp_path, tmp_path / "cases.csv"):
        table = case_csv.cases(path)
        top = str(tmp_path)
        assert table.to_numpy().tolist() == [
            ["1", f"{top}/x/1.png", f"{top}/m/1.png", "", "siteA", "train"],
            ["2", f"{top}/x/2.png", f"{top}/m/2.png", "", "siteB", "test"],
        ]
        assert table.attrs["layout"] == (
            "cases.csv: 2 images in 2 lines; 1 images beside them are in no line: '3.png'"
        )
        seen = look(path)
        assert seen.cases["group"].tolist() == ["p1", "p2"]
        assert seen.seen["groups"].startswith("2 groups from cases.csv")


def test_as_a_spreadsheet_writes_it(tmp_path):
    """Semicolons, UTF-16, capitals, backslashes; several masks of an image; one has no mask."""
    text = "Image Path;Mask-Path;Patient\nx\\1.png;m\\1.png;7\nx\\1.png;m\\2.png;7\nx\\2.png;;08\n"
    table = case_csv.cases(write(tmp_path, text, "list.txt", "utf-16"))
    assert table["mask_path"].tolist() == [f"{tmp_path}/m/1.png\n{tmp_path}/m/2.png", ""]
    assert look(tmp_path).cases["group"].tolist() == ["7", "08"]
    assert table["dataset"].tolist() == ["csv", "csv"]
    assert table["official"].tolist() == ["", ""]


def test_a_wrong_table_is_refused(tmp_path):
    for text, words in (
        ("image_path,patient\nx/1.png,m/1.png\n", "columns image_path, patient: need image_path"),
        (f"{BOTH}\nz/1.png,m/1.png\n", r"no file at .*z/1\.png, paths begin at its folder"),
        (f"{BOTH},official\nx/1.png,m/1.png,both\n", "official is 'both', need train, val, test"),
        (f"{BOTH},dataset\nx/1.png,m/1.png,p\nx/1.png,m/2.png,q\n", "lines of '1.png' differ"),
        (f"{BOTH}\nx/1.png,m/1.png,p\n", "too many fields"),
    ):
        write(tmp_path, text)
        with pytest.raises(ValueError, match=words):
            case_csv.cases(tmp_path / "cases.csv")


def test_two_tables_of_a_folder(tmp_path):
    text = f"{BOTH}\nx/1.png,m/1.png\n"
    write(write(tmp_path, text, "a.csv"), text, "b.csv")
    with pytest.raises(ValueError, match=r"a\.csv and b\.csv name images and masks"):
        case_csv.cases(tmp_path)
    assert len(case_csv.cases(tmp_path / "b.csv")) == 1
