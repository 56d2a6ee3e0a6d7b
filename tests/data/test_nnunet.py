"""nnU-Net's raw data: images with their labels, sides, names of levels, and what is not read."""

import json

import pytest

from thyroid_lib.data import nnunet

LABELS = {"background": 0, "gland": 1}
PAIRS = "imagesTr/b_1_0000.png", "imagesTr/a_0000.png", "labelsTr/a.png", "labelsTr/b_1.png"
UNREAD = [
    (["imagesTr/a_0001.png"], {}, r"imagesTr holds a_0001\.png: need one channel"),
    (["imagesTr/x.png"], {}, r"imagesTr holds x\.png: need one channel, named case_0000\.png"),
    ([], {"labels": [1]}, r"dataset\.json is damaged"),
    ([], {"labels": {"gland": "one"}}, r"dataset\.json is damaged"),
]


def write(folder, *names, labels=LABELS, **about):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    about = {"labels": labels, "file_ending": ".png", "channel_names": {"0": "US"}} | about
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def test_labels_for_testing_are_the_test_side(tmp_path):
    write(tmp_path, *PAIRS, "imagesTs/c_0000.png", "imagesTs/d_0000.png", "labelsTs/c.png")
    table = nnunet.cases(tmp_path).set_index("case_id")
    assert table["official"].to_dict() == {"a": "train", "b_1": "train", "c": "test", "d": "test"}
    assert table.loc["d", "mask_path"] == ""


def test_levels_have_names(tmp_path):
    for labels, levels in (
        ({"background": 0, "whole": [1, 2], "nodule": 2}, {1: "whole", 2: "nodule"}),
        ({"background": 0, "gland": 3, "ignore": 4}, {3: "gland", 4: "ignore"}),
    ):
        table = nnunet.cases(write(tmp_path, *PAIRS, labels=labels))
        assert table.attrs["levels"] == {0: "background"} | levels


@pytest.mark.parametrize(("more", "about", "words"), UNREAD)
def test_what_is_not_read(tmp_path, more, about, words):
    with pytest.raises(ValueError, match=words):
        nnunet.cases(write(tmp_path, *PAIRS, *more, **about))


def test_two_data_sets_in_one_folder_are_not_one(tmp_path):
    for name in ("Dataset003_B", "Dataset007_C"):
        write(tmp_path / name, *PAIRS)
    with pytest.raises(ValueError, match="Dataset003_B and Dataset007_C are data sets each"):
        nnunet.cases(tmp_path)
