"""A study's cases and folds as nnU-Net's raw data: read back, whole or not at all."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import write_folder
from PIL import Image

from thyroid_lib.data import frames, nnunet
from thyroid_lib.data.export_nnunet import export_nnunet
from thyroid_lib.data.look import look
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import build_store, fingerprint_of, load_cases

SPLIT = {"folds": 3, "val_share": 0.3}


@pytest.fixture
def source(tmp_path):
    """A study of four groups whose first case cannot be used: its case table and store."""
    data = write_folder(tmp_path / "data", groups=4, frames=2, height=40, width=60)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(data / "masks" / "a00.png")
    cases = load_cases("folder", data)
    return cases, build_store(cases, tmp_path / "store", size=32)


def test_it_is_read_back_as_it_was(source, tmp_path):
    cases, store = source
    folder = export_nnunet(cases, store, tmp_path / "raw", dataset="Dataset007_Gland", **SPLIT)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset007_Gland"]
    table = nnunet.cases(folder)
    assert table.attrs["levels"] == {0: "background", 1: "thyroid"}
    names = pd.read_csv(folder / "names.csv").set_index("name")
    assert names["case_id"].tolist() == store.index["case_id"].tolist()
    assert names["group"].tolist() == store.index["group"].tolist()
    assert "a00" not in set(names["case_id"])
    images = cases.set_index("case_id")["image_path"]
    for row, case in enumerate(table.itertuples()):
        np.testing.assert_array_equal(
            frames.read_gray(case.image_path),
            frames.read_gray(images[names.loc[case.case_id, "case_id"]]),
        )
        label = np.asarray(Image.open(case.mask_path))
        assert set(np.unique(label)) == {0, 1}
        np.testing.assert_array_equal(label > 0, store.reference(row))
    about = json.loads((folder / "dataset.json").read_text())
    assert about["numTraining"] == len(table) == 7
    assert about["overwrite_image_reader_writer"] == "NaturalImage2DIO"


@pytest.mark.parametrize(("protocol", "count"), [("grouped", 3), ("random", 1)])
def test_its_folds_are_those_of_the_study(protocol, count, source, tmp_path):
    cases, store = source
    folder = export_nnunet(cases, store, tmp_path / "raw", protocol=protocol, **SPLIT)
    splits = json.loads((folder / "splits_final.json").read_text())
    names = pd.read_csv(folder / "names.csv").set_index("name")["case_id"]
    assert len(splits) == count
    for fold, split in enumerate(splits):
        sides = split_cases(store.index, protocol=protocol, fold=fold, **SPLIT)
        for side, of_nnunet in (("train", "train"), ("test", "val")):
            want = store.index["case_id"][sides == side].tolist()
            assert names[split[of_nnunet]].tolist() == want


def test_what_it_cannot_do_is_refused_and_leaves_nothing(source, tmp_path):
    cases, store = source
    raw = tmp_path / "raw"
    for given, how, says in (
        (cases, {"dataset": "thyroid"}, "dataset: got 'thyroid', need a name such as"),
        (cases, {"protocol": "official"}, "no official split"),
        (cases, {"folds": 9}, "9 folds need as many groups"),
        (cases.iloc[:2], {}, "are not as in the store: run 1-preprocess again"),
        (cases.assign(group="one"), {}, "are not as in the store: run 1-preprocess again"),
    ):
        with pytest.raises(ValueError, match=says):
            export_nnunet(given, store, raw, **SPLIT | how)
        assert not list(raw.glob("*"))
    export_nnunet(cases, store, raw, **SPLIT)
    mirrored = np.asarray(Image.open(cases["image_path"][3]))[:, ::-1]
    Image.fromarray(mirrored).save(cases["image_path"][3])
    with pytest.raises(ValueError, match="images, masks or groups are not as in the store"):
        export_nnunet(cases, store, raw / "again", **SPLIT)
    with pytest.raises(ValueError, match="Dataset501_Thyroid is there already"):
        export_nnunet(cases, store, raw, **SPLIT)


def test_labels_of_classes_have_their_names_and_the_unknown_kind_is_ignored(class_store, tmp_path):
    cases = look(class_store.folder.parent / "data", classes={"gland": "1", "nodule": "2"}).cases
    with pytest.raises(ValueError, match="not as in the store"):  # of which group d is partly so
        export_nnunet(cases, class_store, tmp_path, folds=2)
    index = class_store.index.drop(columns="annotated")
    about = class_store.settings | {"classes": ["gland", "nodule"]}
    store = replace(class_store, index=index, fingerprint=fingerprint_of(cases, about))
    folder = export_nnunet(cases, store, tmp_path, folds=2)
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "gland": 1, "nodule": 2, "ignore": 3}
    for row in (0, 23):
        with Image.open(folder / "labelsTr" / f"thyroid_{row:05d}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), store.reference(row))
