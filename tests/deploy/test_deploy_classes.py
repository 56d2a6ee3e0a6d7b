"""Releases of several classes, of an ensemble and of a run without validation, whole and in use."""

import json
import re
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from PIL import Image
from test_deploy_predictor import picture

from thyroid_lib.data.label_maps import class_masks, class_probs, restore_labels
from thyroid_lib.data.splits import split_cases
from thyroid_lib.deploy import export
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.evaluate.predict import load_model
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import build_model, checkpoint, initialise, to_input
from thyroid_lib.models.ensemble import Ensemble

pytestmark = pytest.mark.study
NAMES = ["gland", "nodule"]
WEIGHTS = {"name": "lite0", "trained_on": "ImageNet-1k", "licence": "Apache-2.0"}
SPLIT = {"protocol": "grouped", "fold": 0, "folds": 4, "val_share": 0.3}
VARIANTS = {  # name: networks, val_share
    "both": (["unet", "resunet"], 0.3), "unsplit": (["unet"], 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def study(class_store, tmp_path_factory):
    """A study of these variants, trained for a moment; its comparison is written by hand."""
    top = tmp_path_factory.mktemp("classes") / "tiny"
    (top / "store").parent.mkdir(parents=True)
    (top / "store").symlink_to(class_store.folder, target_is_directory=True)
    for name, (models, val_share) in VARIANTS.items():
        nets = [build_model(model, out_channels=3, width=4) for model in models]
        for seed, each in enumerate(nets):
            initialise(each, seed)
        net = Ensemble(nets, flip=True) if len(nets) > 1 else nets[0]
        split = SPLIT | {"val_share": val_share}
        rows = split_cases(class_store.index, **split) == "train"
        images, masks = (torch.from_numpy(x[rows]) for x in (class_store.images, class_store.masks))
        adam = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(60):
            adam.zero_grad()
            logits = net.train()(to_input(images))
            torch.nn.functional.cross_entropy(logits, masks.long()).backward()
            adam.step()
        meta = {
            "model": models[0] if len(models) == 1 else name, "variant": name, "width": 4,
            "size": 32, "resize": "square", "threshold": 0.5, "classes": NAMES, **split,
            "run_id": f"{name}-grouped-fold0-seed0", "data_fingerprint": class_store.fingerprint,
            "training_version": 2, "selected_epoch": 1,
        }  # fmt: skip
        if len(models) > 1:
            members = [{"model": model, "width": 4} for model in models]
            members[1] |= {"pretrained_weights": WEIGHTS}
            meta |= {"members": members, "flip_test": True}
        folder = top / "runs" / meta["run_id"]
        folder.mkdir(parents=True)
        checkpoint.save(folder / "model.pt", {"weights": net.state_dict(), "meta": meta})
        temperature = {"temperature": 1.2} if val_share else {}
        write_file(folder / "run.json", json.dumps(meta | temperature))
        column = ",val_dice\n1,0.5\n" if val_share else "\n1\n"
        write_file(folder / "history.csv", f"epoch{column}")
    write_file(top / "compare" / "model_card.md", "# Model card\n")
    return top


def make(study, out, selected: str, runs="*"):
    about = {"model": selected, "protocol": "grouped", "provisional": True}
    write_file(study / "compare" / "selected.json", json.dumps(about))
    places = {"store": study / "store", "out": out}
    return export.release(
        sorted((study / "runs").glob(runs)), compare=study / "compare", threads=1, **places
    )


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """The release that has the ensemble selected, with int8, whatever that changes."""
    out = tmp_path_factory.mktemp("made") / "release"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "DICE_OFF", 2.0)
        return out, make(study, out, "both")


def test_classes_and_ensembles_are_exported_as_torch_has_them(study, made, class_store):
    out, released = made
    assert {path.stem for path in out.glob("*.onnx")} == {*VARIANTS, "both-int8"}
    for name in VARIANTS:
        assert released.about["runs"][name]["agreement"]["agrees"]
        exported = Predictor.open(out, model=name)
        assert (exported.name, exported.classes) == (name, NAMES)
        model, _ = load_model(study / "runs" / f"{name}-grouped-fold0-seed0" / "model.pt")
        with torch.inference_mode():
            logits = model(to_input(torch.from_numpy(class_store.images[:3]))).numpy()
        np.testing.assert_allclose(exported.network(class_store.images[:3]), logits, atol=1e-4)
        how = {"resize": "square", "threshold": 0.5}
        labels = restore_labels(class_probs(logits[:1])[0], 44, 56, **how)[1]
        found = exported.predict(
            np.array(Image.open(class_store.folder.parent / "data/images/a00.png"))
        )
        assert np.mean(found.labels != labels) < 0.001
        assert {*np.unique(labels)} == {0, 1, 2}
    about = Predictor.open(out, model="both").about
    assert about["flip_test"]
    assert [each["model"] for each in about["members"]] == ["unet", "resunet"]
    text = "Its encoder was pretrained: lite0, trained on ImageNet-1k, licence Apache-2.0."
    for file in ("README.md", "model_card.md"):
        assert (out / file).read_text("utf-8").count(text) == 1


def test_the_first_stage_of_each_member_and_its_mirror_stays_in_float(made):
    graph = onnx.load(made[0] / "both-int8.onnx").graph
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    floats = {of for of in weights if not of.endswith("_DequantizeLinear_Output")}
    kernel = {each.name: tuple(each.dims)[2:] for each in graph.initializer}
    firsts = {of for of in floats if kernel[of] == (3, 3)}
    assert {re.match(r"members\.\d\.[^.]+", of)[0] for of in firsts} == {
        "members.0.down1", "members.1.down1",
    }  # fmt: skip
    assert len(weights) - len([of for of in weights if of in floats]) > 20
    both = [Predictor.open(made[0], precision=each) for each in ("fp32", "int8")]
    small, large = (
        path.stat().st_size for path in (made[0] / "both-int8.onnx", made[0] / "both.onnx")
    )
    assert small < large
    assert {each.name for each in both} == {"both"}


def test_the_gate_of_int8_looks_at_every_class(study, made, class_store, tmp_path, monkeypatch):
    out, released = made
    rows = np.flatnonzero(split_cases(class_store.index, **SPLIT) == "val")
    images = class_store.folder.parent / "data" / "images"
    dices = {}
    for precision in ("fp32", "int8"):
        predictor, each = Predictor.open(out, precision=precision), []
        for row in rows:
            case = class_store.index["case_id"].iat[row]
            labels = predictor.predict(np.array(Image.open(images / f"{case}.png"))).labels
            pairs = zip(
                class_masks(labels, 2), class_masks(class_store.reference(row), 2), strict=True
            )
            each.append([dice(*pair) for pair in pairs])
        dices[precision] = np.array(each)
    gate, own = (
        released.about["runs"]["both"]["int8"],
        released.val[released.val["model"] == "both"],
    )
    np.testing.assert_allclose(own[["dice_gland", "dice_nodule"]], dices["fp32"])
    np.testing.assert_allclose(own["dice"], dices["fp32"].mean(axis=1))
    change = pd.DataFrame(dices["int8"] - dices["fp32"], columns=NAMES)
    change = change.groupby(class_store.index["group"].to_numpy()[rows]).mean().mean()
    assert gate["classes"] == pytest.approx(change.to_dict(), abs=1e-5)
    assert f"nodule {gate['classes']['nodule']:+.4f}" in (out / "model_card.md").read_text("utf-8")
    monkeypatch.setattr(export, "DICE_OFF", min(map(abs, gate["classes"].values())))
    worse = max(map(abs, gate["classes"].values()))
    assert worse > export.DICE_OFF
    shutil.copy(out / "both.onnx", tmp_path)
    how = tmp_path / "both.onnx", class_store, SPLIT, own
    assert not export.quantise(*how)[0]["released"]


def test_a_run_that_held_nothing_back_is_released_without_confidence(study, tmp_path):
    released = make(study, tmp_path / "out", "unsplit", "unsplit*")
    predictor = Predictor.open(tmp_path / "out")
    assert "confidence" not in released.about["runs"]["unsplit"]
    assert predictor.predict(picture()).confidence is None
    gate = released.about["runs"]["unsplit"]["int8"]
    assert gate["measured_on"] == "train"
    own = released.val[released.val["model"] == "unsplit"]
    assert own["dice"].notna().all()
    assert own["confidence"].isna().all()
    card = (tmp_path / "out" / "model_card.md").read_text("utf-8")
    assert "It has no confidence, as no frames were held back from its training." in card
    assert "on training frames, as none were held back, by" in card
