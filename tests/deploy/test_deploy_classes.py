"""Releases of an ensemble of several classes and of a run without validation."""

import json
import re
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from conftest import SMALL
from PIL import Image
from test_deploy_predictor import picture

from thyroid_lib.data import splits
from thyroid_lib.data.label_maps import class_probs, restore_labels
from thyroid_lib.data.splits import split_cases
from thyroid_lib.deploy import export
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.evaluate.ensemble import score_ensemble
from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.evaluate.predict import load_model
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import checkpoint, to_input
from thyroid_lib.train.run import score_run, train_model

pytestmark = pytest.mark.study  # networks are trained and exported
NAMES = ["gland", "nodule"]
HOW = SMALL | {"protocol": "grouped", "fold": 0, "epochs": 30, "lr": 5e-3, "val_share": 0.3}
SPLIT = {name: HOW[name] for name in splits.SPLIT if name in HOW}
RUNS = {  # what differs from that
    "unet": {}, "resunet": {"model": "resunet", "flip_test": True}, "unsplit": {"val_share": 0.0},
}  # fmt: skip
WEIGHTS = {"name": "lite0", "trained_on": "ImageNet-1k", "licence": "Apache-2.0"}


@pytest.fixture(scope="module")
def study(class_store, tmp_path_factory):
    """Three runs, and an ensemble of two of them; the comparison is written by hand."""
    top = tmp_path_factory.mktemp("classes") / "tiny"
    top.mkdir()
    (top / "store").symlink_to(class_store.folder, target_is_directory=True)
    for name, own in RUNS.items():
        out = top / "runs" / f"{name}-grouped-fold0-seed0"
        run = train_model(class_store, out=out, **HOW | own | {"variant": name})
        if name == "unet":  # as if it had begun with such weights
            state = checkpoint.read(out / "model.pt")
            state["meta"] |= {"pretrained_weights": WEIGHTS}
            checkpoint.save(out / "model.pt", state)
        score_run(run, class_store)
    members = [top / "runs" / f"{name}-grouped-fold0-seed0" for name in ("unet", "resunet")]
    score_ensemble(top / "runs" / "both-grouped-fold0-seed0", members, class_store)
    write_file(top / "compare" / "model_card.md", "# Model card\n")
    return top


def make(study, out, selected: str):
    """Release the selected variant alone."""
    about = {"model": selected, "protocol": "grouped", "provisional": True}
    write_file(study / "compare" / "selected.json", json.dumps(about))
    runs, places = sorted((study / "runs").glob(f"{selected}-*")), {"store": study / "store"}
    return export.release(runs, compare=study / "compare", out=out, threads=1, **places)


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """The release of the ensemble, with int8, whatever that changes."""
    out = tmp_path_factory.mktemp("made") / "release"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "DICE_OFF", 2.0)
        return out, make(study, out, "both")


def frame(store, row: int) -> np.ndarray:
    name = store.index["case_id"].iat[row]
    return np.array(Image.open(store.folder.parent / "data" / "images" / f"{name}.png"))


def test_an_ensemble_of_classes_is_exported_as_torch_has_it(study, made, class_store):
    out, released = made
    assert {path.name for path in out.glob("*.onnx")} == {"both.onnx", "both-int8.onnx"}
    exported = Predictor.open(out)
    about = exported.about
    assert (exported.name, exported.classes, about["model"]) == ("both", NAMES, "resunet+unet")
    assert about["flip_test"]
    assert [each["variant"] for each in about["members"]] == ["resunet", "unet"]
    model, _ = load_model(study / "runs" / "both-grouped-fold0-seed0" / "model.pt")
    squares = class_store.images[:3]
    with torch.inference_mode():
        logits = model(to_input(torch.from_numpy(squares))).numpy()  # (3,3,32,32)
    np.testing.assert_allclose(exported.network(squares), logits, atol=1e-4)
    how = {"resize": "square", "threshold": 0.5}
    labels = restore_labels(class_probs(logits[:1])[0], 44, 56, **how)[1]
    found = exported.predict(frame(class_store, 0))
    assert np.mean(found.labels != labels) < 0.001
    assert {*np.unique(labels)} == {0, 1, 2}
    assert all(0 <= each.confidence <= 1 for each in found.classes)
    text = "Its encoder was pretrained: lite0, trained on ImageNet-1k, licence Apache-2.0."
    for file in ("README.md", "model_card.md"):
        assert (out / file).read_text("utf-8").count(text) == 1
    sides = export.distances(exported, class_store, released.about)["side"]
    assert sides.tolist() == split_cases(class_store.index, **SPLIT).tolist()


def test_an_ensemble_is_released_only_where_it_was_selected_or_named(study):
    runs, about = [*(study / "runs").iterdir()], {"model": "unet", "protocol": "grouped"}
    assert {*export.choose_runs(runs, about)} == {*RUNS}
    assert {*export.choose_runs(runs, about | {"model": "both"})} == {*RUNS, "both"}
    assert {*export.choose_runs(runs, about, ("both-grouped-fold0-seed0",))} == {*RUNS, "both"}


def test_the_first_stage_of_each_member_stays_in_float(made):
    graph = onnx.load(made[0] / "both-int8.onnx").graph
    kernel = {each.name: tuple(each.dims)[2:] for each in graph.initializer}
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    floats = {of for of in weights if kernel.get(of) == (3, 3)}
    stages = {re.match(r"members\.\d\.[^.]+", of)[0] for of in floats}
    assert stages == {"members.0.down1", "members.1.down1"}
    assert len({of for of in weights if of not in kernel}) > 20  # the others


def test_the_gate_of_int8_looks_at_every_class(study, made, class_store, tmp_path, monkeypatch):
    """In group d nodules are not annotated: they count as the gland that they are in."""
    out, released = made
    rows, dices = np.flatnonzero(split_cases(class_store.index, **SPLIT) == "val"), {}
    for precision in ("fp32", "int8"):
        predictor, dices[precision] = Predictor.open(out, precision=precision), []
        for row in rows:
            labels, ref = (
                predictor.predict(frame(class_store, row)).labels,
                class_store.reference(row),
            )
            known = class_store.index["group"].iat[row] != "d"
            gland = (labels == 1) | ((labels == 2) & (not known))
            nodule = dice(labels == 2, ref == 2) if known else np.nan
            dices[precision].append([dice(gland, ref == 1), nodule])
    gate, own = released.about["runs"]["both"]["int8"], released.val
    np.testing.assert_allclose(own.reindex(columns=["dice_gland", "dice_nodule"]), dices["fp32"])
    np.testing.assert_allclose(own["dice"], np.nanmean(dices["fp32"], axis=1))
    change = pd.DataFrame(np.subtract(dices["int8"], dices["fp32"]), columns=NAMES)
    change = change.groupby(class_store.index["group"].to_numpy()[rows]).mean().mean().dropna()
    assert gate["classes"] == pytest.approx(change.to_dict(), abs=1e-5)
    assert f"gland {gate['classes']['gland']:+.4f}" in (out / "model_card.md").read_text("utf-8")
    run = json.loads((study / "runs" / "both-grouped-fold0-seed0" / "run.json").read_text())
    shutil.copy(out / "both.onnx", tmp_path)
    worst = max(map(abs, gate["classes"].values()))
    for limit in (worst + 1e-4, worst - 1e-4):
        monkeypatch.setattr(export, "DICE_OFF", limit)
        again, _ = export.quantise(tmp_path / "both.onnx", class_store, run, own)
        assert again["released"] == (limit > worst)


def test_a_run_that_held_nothing_back_is_released_without_confidence(study, tmp_path):
    released = make(study, tmp_path / "out", "unsplit")
    about, own = released.about["runs"]["unsplit"], released.val
    assert "confidence" not in about
    assert about["int8"]["measured_on"] == "train"
    assert (len(own), own["dice"].isna().any(), own["confidence"].isna().all()) == (18, False, True)
    found = Predictor.open(tmp_path / "out").predict(picture())
    assert [each.confidence for each in (found, *found.classes)] == [None] * 3
    card = (tmp_path / "out" / "model_card.md").read_text("utf-8")
    assert (
        "It has no confidence, as no frames were held back from its training to fit it on." in card
    )
    assert "on training frames, as none were held back, by" in card
