"""Several classes: label maps by hand, from every source into the store, and what is refused."""

import json
import re

import numpy as np
import pytest
from conftest import save_pairs
from PIL import Image

from thyroid_lib.data import __main__ as command
from thyroid_lib.data import classes, frames
from thyroid_lib.data.cases import BadCase, read_pair
from thyroid_lib.data.look import contact_sheet, look
from thyroid_lib.data.mask_values import Levels, choose_rule
from thyroid_lib.data.shrink import size_needed, sizes_needed
from thyroid_lib.data.store import build_store, load_cases, open_store
from thyroid_lib.files.text import read_yaml
from thyroid_lib.settings import check_parameters

TWO = {"gland": "1", "nodule": "2"}
INK = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}


def drawn(levels=(0, 1, 2), height=40, width=60):
    """A gland, 20 x 30 px, with a nodule of 8 x 10 px in it."""
    labels = np.full((height, width), levels[0], np.uint8)
    labels[10:30, 10:40], labels[14:22, 15:25] = levels[1], levels[2]
    return labels


def write(path, masks, ending="png"):
    """Write masks m0, m1 … beside images of noise."""
    for number, mask in enumerate(masks):
        noise = np.random.default_rng(number).integers(0, 255, mask.shape[:2], dtype=np.uint8)
        save_pairs(path, [noise], [mask], [f"m{number}"])
        if ending != "png":
            file = path / "masks" / f"m{number}.png"
            Image.open(file).save(file.with_suffix(f".{ending}"), quality=90)
            file.unlink()
    return path


def labels_of(path, tmp_path, classes, **how):
    cases = look(path, classes=classes, **how).cases
    return build_store(cases, tmp_path / "store", size=32, mend=[], classes=classes)


def test_where_masks_overlap_the_higher_class_counts_and_the_unknown_one_last():
    masks = [(255, [1, 1, 1, 0]), (2, [0, 1, 0, 0]), (1, [0, 1, 1, 0])]
    masks = [(code, np.array([mask], bool)) for code, mask in masks]
    for order in (masks, masks[::-1]):
        assert classes.merge_masks(order, (1, 4)).tolist() == [[255, 2, 1, 0]]


def test_a_square_takes_the_class_that_covers_most_of_it():
    labels = np.array([[1, 1, 2, 2], [1, 0, 2, 255], [0, 0, 2, 1], [0, 1, 1, 0]], np.uint8)
    exact = np.kron(labels, np.ones((8, 8), np.uint8))  # a pixel of the square is 16 x 16
    fitted = frames.fit_mask(exact, 4, "square")
    assert fitted.tolist() == labels.tolist()
    assert frames.fit_mask(np.array([[1, 2], [1, 0]], np.uint8), 1, "square").tolist() == [[1]]
    rng = np.random.default_rng(1)
    for resize in frames.RESIZES:
        blocks = rng.choice(np.array([0, 0, 1, 2, 3, 255], np.uint8), (9, 13))
        labels = np.kron(blocks, np.ones((7, 7), np.uint8))
        fitted = frames.fit_mask(labels, 40, resize)
        assert ((fitted > 0) == frames.fit_mask(labels > 0, 40, resize)).all()
        for code in (1, 2, 3, 255):  # what a mask of one class would keep is kept
            assert (fitted[frames.fit_mask(labels == code, 40, resize) > 0] == code).all()


def test_rules_mend_the_foreground_and_specks_inside_it():
    labels = drawn()
    labels[25:27, 20:23], labels[16:18, 18:20] = 2, 0  # a speck in the gland, a hole in the nodule
    labels[12, 10], labels[1:3, 1:4], labels[35, 50] = 2, 1, 1  # at the edge; text; a speck outside
    mended, counts = frames.mend_mask(labels, frames.MENDS)
    expected = drawn()
    expected[12, 10] = 2  # reaches the outside: not a speck in something
    np.testing.assert_array_equal(mended, expected)
    assert counts == {"text": (1, 6), "specks": (2, 7), "holes": (1, 4)}
    kept, counts = frames.mend_mask(labels, [])
    assert (kept == labels).all()
    assert not any(map(any, counts.values()))


@pytest.mark.parametrize("count", [2, 3, 6, 7, 20])
def test_label_maps_come_back_from_the_store_as_they_were(tmp_path, count):
    rng = np.random.default_rng(count)
    maps = [rng.integers(0, count + 2, (21 + n, 33)).astype(np.uint8) for n in range(3)]
    for labels in maps:
        labels[:2] = 0
    names = {f"c{code}": str(code) for code in range(1, count + 1)}
    cases = look(write(tmp_path / "in", maps), classes=names).cases
    cases["mask_rule"] += f"|255=levels:{count + 1}"  # foreground of a kind that nobody knows
    built = build_store(cases, tmp_path / "store", size=16, mend=[], classes=names)
    assert open_store(built.folder).classes == [*names]
    for row, labels in enumerate(maps):
        found = built.reference(row)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.where(labels > count, 255, labels))
        assert built.index["foreground"][row] == pytest.approx((found > 0).mean(), abs=1e-6)
        np.testing.assert_array_equal(built.masks[row], frames.fit_mask(found, 16, "square"))


def colours(labels):
    return np.array([INK[code] for code in range(3)], np.uint8)[labels]


FOLDERS = {  # what masks hold, the classes of the study, the label map
    "levels": (drawn((0, 1, 2)), TWO, drawn()),
    "levels in another order": (drawn((0, 255, 85)), {"nodule": "85", "gland": "255"}, None),
    "colours": (colours(drawn()), {"gland": "ff0000", "nodule": "0000ff"}, drawn()),
    "a class of two levels": (drawn((0, 3, 4)), {"all": "3, 4", "none": ">9"}, drawn((0, 1, 1))),
    "a level of no class": (drawn((0, 1, 2)), {"nodule": "2", "more": ">7"}, drawn((0, 0, 1))),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_classes_are_levels_or_colours_of_masks(tmp_path, kind):
    mask, wanted, expected = FOLDERS[kind]
    built = labels_of(write(tmp_path / "in", [mask] * 2), tmp_path, wanted)
    expected = drawn((0, 2, 1)) if expected is None else expected
    np.testing.assert_array_equal(built.reference(1), expected)
    assert built.settings["classes"] == [*wanted]
    assert "annotated" not in built.index
    assert built.annotated.all()
    for name in wanted:
        assert f"{name} is " in built.seen["masks"]


REFUSED = [
    ({"gland": "1", "nodule": "3"}, "classes: nodule: got 3, the masks hold 0 .* 1 .* 2 "),
    ({"gland": "1, 2", "nodule": "2"}, "classes: 2 stands in gland and nodule, need one class"),
    ({"gland": "1", "nodule": ""}, "classes: nodule: got nodule, the masks hold"),
    ({}, r'or each a class, classes: \{class1: "1", class2: "2"\}'),
]


@pytest.mark.parametrize(("wanted", "said"), REFUSED)
def test_levels_that_do_not_fit_the_classes_are_listed(tmp_path, wanted, said):
    with pytest.raises(ValueError, match=said):
        look(write(tmp_path, [drawn()]), classes=wanted)


def test_the_classes_that_are_proposed_can_be_used(tmp_path):
    path = write(tmp_path / "in", [drawn((0, 7, 9))] * 2)
    with pytest.raises(ValueError, match="which of them are gland") as error:
        look(path)
    proposed = re.search(r"classes: \{(.+)\}", str(error.value))[1]
    wanted = dict(re.findall(r'(\w+): "(\d+)"', proposed))
    built = labels_of(path, tmp_path, wanted)
    np.testing.assert_array_equal(built.reference(0), drawn())
    sheet = np.asarray(contact_sheet(look(path, classes=wanted).cases))
    for colour in classes.COLOURS[:2]:  # the outline of each class
        assert (sheet == tuple(bytes.fromhex(colour[1:]))).all(axis=2).sum() > 20


def test_names_are_proposed_that_a_study_takes():
    counts = dict.fromkeys(range(5), 10)
    names = {0: "background", 1: "Größe > 1 cm", 2: "4a", 3: "結節", 4: "Nodule"}
    found = [Levels(counts, border=0)]
    with pytest.raises(ValueError, match="which of them are gland") as error:
        choose_rule(found, "", names)
    proposed = read_yaml(re.search(r"classes: (\{.+\})", str(error.value))[1])
    assert [*proposed] == ["grosse_1_cm", "class2", "class3", "nodule"]
    assert check_parameters({"classes": proposed}, {"classes": {}})["classes"] == proposed
    many = [Levels(dict.fromkeys(range(9), 5), border=0)]
    with pytest.raises(ValueError, match="which of them are gland") as error:
        choose_rule(many, "")
    assert "classes" not in str(error.value)  # eight are too many


def test_blurred_masks_are_one_class(tmp_path):
    path = write(tmp_path, [drawn((0, 90, 255), 160, 240)] * 2, "jpg")
    with pytest.raises(ValueError, match="classes: gland: got 90"):
        look(path, classes={"gland": "90", "nodule": "255"})
    cases = look(path, classes=TWO, annotated="nodule", mask_values=">200").cases
    assert set(cases["mask_rule"]) == {"2=above:200"}
    case = cases.iloc[0].copy()
    case["mask_rule"] = "1=levels:90|2=levels:255"
    with pytest.raises(BadCase, match="is a JPEG, whose levels are blurred"):
        read_pair(case)


def test_labels_of_nnunet_have_names(tmp_path):
    for part, array in (("imagesTr/a_0000.png", drawn() * 9), ("labelsTr/a.png", drawn())):
        (tmp_path / part).parent.mkdir()
        Image.fromarray(array).save(tmp_path / part)
    about = {"labels": {"background": 0, "Gland": 1, "thyroid nodule": 2}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r'\{gland: "1", thyroid_nodule: "2"\}'):
        look(tmp_path)
    found = look(tmp_path, classes={"nodule": "thyroid nodule", "gland": ""})
    assert found.cases["mask_rule"].tolist() == ["1=levels:2|2=levels:1"]
    assert "nodule is 2 thyroid nodule (3.3 %)" in found.seen["masks"]


def test_masks_of_one_image_are_joined(tmp_path):
    write(tmp_path / "in", [drawn((0, 1, 1))])
    Image.fromarray(drawn((0, 0, 2))).save(tmp_path / "in" / "masks" / "m0_mask_1.png")
    (tmp_path / "in" / "masks" / "m0.png").rename(tmp_path / "in" / "masks" / "m0_mask.png")
    built = labels_of(tmp_path / "in", tmp_path, TWO)
    np.testing.assert_array_equal(built.reference(0), drawn())


def test_sources_that_annotate_different_classes(tmp_path, capsys):
    write(tmp_path / "a", [drawn((0, 255, 255))] * 2)
    write(tmp_path / "b", [drawn((0, 0, 1))] * 2)
    write(tmp_path / "c", [drawn((0, 1, 2))] * 2)
    sources = [
        {"dataset": name, "source": "folder", "data": str(tmp_path / name), "annotated": of}
        for name, of in (("a", "gland"), ("b", "nodule"), ("c", ""))
    ]
    cases = load_cases(sources, classes=TWO, task="gland+nodule")
    how = {"size": 32, "mend": [], "classes": TWO, "task": "gland+nodule"}
    built = build_store(cases, tmp_path / "store", **how)
    assert (
        built.index["annotated"].tolist() == ["gland"] * 2 + ["nodule"] * 2 + ["gland nodule"] * 2
    )
    assert built.annotated.tolist() == [[True, False]] * 2 + [[False, True]] * 2 + [[True] * 2] * 2
    for row, levels in ((0, (0, 1, 1)), (2, (0, 0, 2)), (4, (0, 1, 2))):
        np.testing.assert_array_equal(built.reference(row), drawn(levels))
    again = load_cases([sources[0] | {"annotated": "nodule"}, *sources[1:]], classes=TWO)
    assert build_store(again, tmp_path / "other", **how).fingerprint != built.fingerprint
    with pytest.raises(ValueError, match="annotated: got 'lobe', need any of gland, nodule"):
        load_cases([sources[0] | {"annotated": "lobe"}], classes=TWO)


def test_a_task_is_a_name_and_changes_no_fingerprint(small_folder, tmp_path):
    cases = look(small_folder).cases
    plain = build_store(cases, tmp_path / "s", size=16)
    named = build_store(cases, tmp_path / "s", size=16, task="nodule")
    assert (plain.settings.get("task"), plain.classes) == (None, ["gland"])
    assert (named.classes, open_store(tmp_path / "s").task) == (["nodule"], "nodule")
    assert named.fingerprint == plain.fingerprint
    assert (
        build_store(cases, tmp_path / "s", size=16, classes={"a": "1"}).settings == plain.settings
    )


def test_a_size_must_keep_each_class(tmp_path):
    labels = drawn(height=400, width=600)
    built = labels_of(write(tmp_path / "in", [labels]), tmp_path, TWO)
    assert size_needed(labels > 0, 32, "square") == 0  # the gland is seen
    [needed] = sizes_needed(built)
    assert needed == size_needed(labels, 32, "square") > 32
    assert (frames.fit_mask(labels, needed, "square") == 2).any()


def test_the_command_takes_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    path = str(write(tmp_path / "in", [drawn()] * 2))
    given = [path, 'classes={gland: 1, nodule: "2"}', "--size", "16"]
    assert command.main(given) == 0
    said = capsys.readouterr().out
    assert "masks      gland is 1 (22 %), nodule is 2 (3.3 %), background is 0 (75 %)" in said
    assert "at 16 px every mask keeps more than half" in said
    assert command.main([path, "--no-sheet"]) == 1
    assert 'classes: {class1: "1", class2: "2"}' in capsys.readouterr().err
    assert command.main([path, "classes=gland"]) == 1
    assert 'got "gland", need 2 to 7' in capsys.readouterr().err
    assert command.main([path, 'classes={Gland: "1", nodule: "2"}']) == 1  # as a study refuses it
    assert "need 2 to 7, named by a-z, 0-9 and _" in capsys.readouterr().err
