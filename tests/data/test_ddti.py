"""DDTI: polygons as drawn by hand, damaged annotations with their reasons, groups by images."""

import json

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.data import ddti
from thyroid_lib.data.cases import DETAILS
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store

LAUGHS = '<!DOCTYPE case [<!ENTITY a0 "ha">'  # entities that unfold to a gigabyte
LAUGHS += "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 9))
LAUGHS += "]><case>&a8;</case>"
SQUARE = [(2, 1), (6, 1), (6, 4), (2, 4)]
RISK = {"low": "2, 3, 4a", "high": "4b, 4c, 5"}


def mark(number, *regions, cut=None):
    points = [{"points": [{"x": x, "y": y} for x, y in region]} for region in regions]
    text = json.dumps(points)[:cut] if regions else ""
    return f"<mark><image>{number}</image><svg>{text}</svg></mark>"


def write(folder, *, images, **files):
    """Write gray images, {name: level}, and XML files, n1 for 1.xml, as marks or as a text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, level in images.items():
        Image.new("RGB", (10, 8), (level,) * 3).save(folder / f"{name}.png")
    for name, marks in files.items():
        text = marks if isinstance(marks, str) else f"<case>{''.join(marks)}</case>"
        (folder / f"{name[1:]}.xml").write_text(text)
    return folder


def read(table, case_id):
    [reference] = table.set_index("case_id").loc[[case_id], "mask_path"]
    path, part = reference.split("\t")
    return ddti.read_mask(path, part, (8, 10))


def test_a_polygon_as_drawn_by_hand():
    drawn = ddti.draw_polygon([(1, 1), (5, 1), (1, 5)], (7, 7))
    by_hand = [".......", ".#####.", ".####..", ".###...", ".##....", ".#.....", "......."]
    assert drawn.tolist() == [[letter == "#" for letter in line] for line in by_hand]


def test_a_line_that_crosses_itself_encloses_no_hole_and_a_frame_cuts_it_off():
    twice_around = [(1, 1), (8, 1), (8, 8), (1, 8), (1, 2), (7, 2), (7, 7), (2, 7), (2, 2)]
    assert ddti.draw_polygon(twice_around, (10, 10))[1:9, 1:9].all()
    assert ddti.draw_polygon([(-5, -5), (50, -5), (50, 3), (-5, 3)], (8, 8)).sum() == 4 * 8


def test_regions_and_marks_of_one_image_are_joined(tmp_path):
    beside = [(8, 6), (9, 6), (9, 7), (8, 7)]
    write(
        tmp_path / "set" / "ddti",
        images={"7_1": 10, "7_2": 20},
        n7=[mark(1, SQUARE), mark(2, SQUARE, beside, [(0, 0), (1, 1)]), mark(1, beside)],
    )
    table = ddti.cases(tmp_path)
    assert table["case_id"].tolist() == ["7_1", "7_2"]
    assert table["problem"].tolist() == [None, None]
    expected = np.zeros((8, 10), bool)
    expected[1:5, 2:7] = expected[6:8, 8:10] = True
    assert (read(table, "7_1") == expected).all()
    assert (read(table, "7_2") == expected).all()
    assert "2 images, outlines in 1 XML files; 1 marks of fewer than" in table.attrs["layout"]


@pytest.mark.parametrize(
    ("annotation", "reason", "said"),
    [
        ([mark(1, SQUARE, cut=-9)], "damaged annotation", "cut off or damaged"),
        ([mark(1, SQUARE), mark(1, SQUARE, cut=30)], "damaged annotation", "cut off"),
        ([mark(1, [(1, float("nan")), (2, 3), (4, 5)])], "damaged annotation", "outside of every"),
        ([mark(1).replace("<svg>", "<svg>[[1, 2]]")], "damaged annotation", "outline it again"),
        ([mark(1)], "no region", "its mark is empty"),
        ([mark(1, [(1, 1), (3, 3)])], "no region", "arrows of fewer than three points"),
        ([mark(2, SQUARE)], "no region", "3.xml has no mark of this image"),
        ("<case><mark>", "damaged annotation", "its XML cannot be read"),
        (LAUGHS, "damaged annotation", "amplification"),
    ],
)
def test_an_unusable_annotation_is_named_with_its_reason(tmp_path, annotation, reason, said):
    table = ddti.cases(write(tmp_path, images={"3_1": 0, "3_2": 1}, n3=annotation))
    [problem] = table[table["case_id"] == "3_1"]["problem"]
    assert problem[0] == reason
    assert said in problem[1]
    with pytest.raises(ValueError, match=r"'3\.xml', image 1: "):
        read(table, "3_1")


def test_cases_that_share_an_image_are_one_group(tmp_path):
    levels = {"1_1": 0, "2_1": 1, "2_2": 2, "10_1": 2, "10_2": 3, "9_1": 3, "4_1": 0}
    table = ddti.cases(write(tmp_path, images=levels, n1=[mark(1, SQUARE), mark(4, SQUARE)]))
    groups = dict(zip(table["case_id"], table["group"], strict=True))
    joined = dict.fromkeys(("2_1", "2_2", "10_1", "10_2", "9_1"), "2+9+10")
    assert groups == joined | dict.fromkeys(("1_1", "1_4", "4_1"), "1+4")
    table = table.set_index("case_id")  # nor are images and outlines without each other left out
    assert table.loc["1_4", "image_path"] == table.loc["2_1", "mask_path"] == ""


def test_two_files_of_one_image_and_capitals_are_seen(tmp_path):
    folder = write(tmp_path, images={"3_1": 0, "3_2": 1}, n3=[mark(1, SQUARE), mark(2, SQUARE)])
    Image.new("RGB", (10, 8), (7, 7, 7)).save(folder / "3_1.JPG")
    (folder / "3.xml").rename(folder / "3.XML")
    table = ddti.cases(folder)
    assert sorted(table["case_id"]) == ["3_1", "3_1", "3_2"]
    assert table["mask_path"].str.contains("3.XML").all()
    store = build_store(look(folder).cases, tmp_path / "s", size=16, mend=[])
    assert store.index["case_id"].tolist() == ["3_2"]  # which of the two is meant is not known


def test_an_outline_outside_of_its_image_is_refused(tmp_path):
    far = [(x + 20, y) for x, y in SQUARE]
    table = ddti.cases(write(tmp_path, images={"3_1": 0}, n3=[mark(1, far)]))
    with pytest.raises(ValueError, match=r"'3\.xml', image 1: its outline lies outside of the"):
        read(table, "3_1")


def scored(tmp_path, **scores):
    """Write cases of one image each, n1="4A" for 1.xml; their nodule is a square."""
    files = {n: [f"<tirads>{score}</tirads>", mark(1, SQUARE)] for n, score in scores.items()}
    levels = {f"{name[1:]}_1": i for i, name in enumerate(scores)}
    return write(tmp_path / "in", images=levels, **files)


def test_classes_are_scores_and_a_nodule_without_one_is_of_an_unknown_kind(tmp_path):
    folder = scored(tmp_path, n1="4A ", n2="4c", n3="", n4="1")
    seen = look(folder, classes=RISK)
    said = "1 images low (4a: 1), 1 images high (4c: 1), 2 images of a kind that is not known "
    assert seen.seen["masks"] == f"classes by tirads: {said}(1: 1, no tirads: 1)"
    built = build_store(seen.cases, tmp_path / "s", size=16, mend=[], classes=RISK, task="nodule")
    assert built.index["tirads"].tolist() == ["4A", "4c", "", "1"]
    inside = [int(built.reference(row).max()) for row in range(4)]
    assert inside == [1, 2, 255, 255]
    assert [int(mask.max()) for mask in built.masks] == inside
    assert built.annotated.all()
    for wrong, words in (
        ({"a": "4a", "b": "4A, 4c"}, "tirads 4a stands in two"),
        ({"a": "7", "b": "8"}, "no tirads: 1.*name the values of each"),
    ):
        with pytest.raises(ValueError, match=words):
            look(folder, classes=wrong)
    (folder / "2.xml").write_text("<case><tirads>4c</tirads></case>")  # it has no outline now
    assert (
        look(folder, classes=RISK)
        .seen["masks"]
        .startswith("classes by tirads: 1 images low (4a: 1), 0 images high, 2 images of a kind")
    )
    nodules = look(folder, classes={"gland": "", "nodule": ""}, annotated="nodule").cases
    assert set(nodules["mask_rule"]) == {"2="}
    assert set(nodules["annotated"]) == {"nodule"}


def test_what_is_said_of_a_nodule_is_in_the_index_of_its_store_alone(tmp_path, small_folder):
    folder = scored(tmp_path, n1="5", n2="")
    text = (folder / "1.xml").read_text()
    more = "<age>56</age><sex>F</sex><margins>ill\n defined</margins>"
    (folder / "1.xml").write_text(text.replace("<case>", f"<case>{more}"))
    built = build_store(look(folder).cases, tmp_path / "s", size=16, mend=[])
    row = built.index.set_index("case_id").loc["1_1"]
    said = {"age": "56", "sex": "F", "margins": "ill defined", "tirads": "5"}
    assert {name: row[name] for name in DETAILS if name in row} == said
    assert built.masks.max() == 1
    other = build_store(look(small_folder).cases, tmp_path / "other", size=16)
    assert not {*DETAILS, "annotated"} & {*other.index}


@pytest.mark.parametrize(
    "names", [["images/1.png", "masks/1.png"], ["1.xml"], ["a.xml", "a_1.jpg"]]
)
def test_other_data_are_left_to_other_formats(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert ddti.cases(tmp_path) is None
    assert ddti.cases(tmp_path / "nowhere") is None


def test_the_real_sample(shared_data):
    """All defects that the sample's README lists, and no other."""
    if not (shared_data / "ddti-sample").is_dir():
        pytest.skip("no DDTI: THYROID_SHARED_DATA has no ddti-sample/")
    table = ddti.cases(shared_data / "ddti-sample").set_index("case_id")
    assert len(table) == 303
    bad = table["problem"].dropna().map(lambda problem: problem[0])
    cut = "54_1 127_1 165_1 166_1 176_1 197_1 203_1 205_1"
    assert sorted(bad.index[bad == "damaged annotation"]) == sorted(cut.split())
    assert sorted(bad.index[bad == "no region"]) == ["120_1", "142_2", "213_2", "230_2", "62_3"]
    assert len(bad) == 13
    assert table.loc["150_1", "group"] == table.loc["233_2", "group"] == "150+233"
    assert table["group"].nunique() == 246
    case = table.groupby(table.index.str.partition("_").get_level_values(0))["tirads"].first()
    low, high = (case.isin(values.split(", ")).sum() for values in RISK.values())
    assert (low, high, (case == "").sum()) == (76, 98, 73)
    assert table["composition"].value_counts()["solid"] > 100
    for row in table[table["problem"].isna()].itertuples():
        path, part = row.mask_path.split("\t")
        assert 0.001 < ddti.read_mask(path, part, (360, 560)).mean() < 0.8
