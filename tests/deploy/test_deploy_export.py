"""Releases of small networks: as torch, one mask everywhere, whole or not there."""

import json
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import dicoms
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pydicom
import pytest
import torch
from conftest import SMALL
from PIL import Image
from scipy import ndimage

from thyroid_lib.data import dicom, frames
from thyroid_lib.data.splits import SPLIT, split_cases
from thyroid_lib.data.store import build_store, load_cases, open_store
from thyroid_lib.deploy import app, export
from thyroid_lib.deploy.predictor import Predictor, read_picture
from thyroid_lib.deploy.structured_report import answer
from thyroid_lib.evaluate import confidence
from thyroid_lib.evaluate.familiarity import TOO_FAR, describe_frames, distance
from thyroid_lib.evaluate.networks import METADATA
from thyroid_lib.evaluate.predict import segment_case
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import build_model, initialise, to_input
from thyroid_lib.models.ensemble import Ensemble
from thyroid_lib.train.run import score_run, train_model

pytestmark = pytest.mark.study  # networks are trained and exported
ROOT = Path(__file__).parents[2]
SELECTED = {"model": "resunet", "protocol": "grouped"}
HOW = SMALL | {"protocol": "grouped", "fold": 0, "val_share": 0.3, "epochs": 15}
UNFINISHED = {  # what is gone, what is said
    "compare/selected.json": "selected.json is missing: run the study first",
    "compare/model_card.md": "model_card.md is missing: run the study first",
    "runs/*/model.pt": "no model at",
    "store/*": "no store at",
    "runs/*/run.json": "there is no run of resunet: run the study first",
    "nothing, but the export is off": "its export does not agree with torch",
}


@pytest.fixture(scope="module")
def study(tiny_store, tmp_path_factory) -> Path:
    """A small study of two models and two seeds; its comparison is written by hand."""
    top = tmp_path_factory.mktemp("study") / "tiny"
    shutil.copytree(tiny_store.folder, top / "store")
    for name in ("unet", "resunet"):
        for seed in (0, 1):
            out = top / "runs" / f"{name}-grouped-fold0-seed{seed}"
            run = train_model(tiny_store, out=out, **HOW | {"model": name, "seed": seed})
            score_run(run, tiny_store)
    write_file(top / "compare" / "selected.json", json.dumps(SELECTED | {"provisional": True}))
    write_file(top / "compare" / "model_card.md", "# Model card: resunet\n")
    return top


def make(study: Path, out: Path):
    runs, places = sorted((study / "runs").iterdir()), {"store": study / "store", "out": out}
    return export.release(runs, compare=study / "compare", threads=1, **places)


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """Its release with int8, whatever that changes: the folder, and what the function returns."""
    out = tmp_path_factory.mktemp("made") / "release"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "DICE_OFF", 2.0)
        return out, make(study, out)


@pytest.fixture
def command(monkeypatch):
    """Run the export as from the command line."""

    def run(study: Path, out: Path, *words: str) -> int:
        places = ["--study", str(study), "--out", str(out), *words]
        monkeypatch.setattr(sys, "argv", ["export", *places])
        return export.main()

    return run


@pytest.mark.parametrize(
    "name", ["unet", "segnet", "resunet", "segnet_reported", "unet flip", "unet resunet flip"]
)
def test_every_network_gives_what_torch_gives(name, tmp_path):
    nets = [build_model(each, width=4) for each in name.removesuffix(" flip").split()]
    for seed, each in enumerate(nets):
        initialise(each, seed=3 + seed)
    net = Ensemble(nets, flip=True) if " " in name else nets[0]
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    net.train()(to_input(torch.from_numpy(images)))  # statistics of batch norm that are not 0 and 1
    about = {"model": name, "size": 32, "resize": "square", "threshold": 0.5}
    export.write_onnx(tmp_path / "a.onnx", export.to_onnx(net, 32), about)
    with torch.inference_mode():
        expected = net.eval()(to_input(torch.from_numpy(images)))[:, 0].numpy()
    network = Predictor.open(tmp_path / "a.onnx").network
    for count in (3, 1):  # any number of frames
        np.testing.assert_allclose(network(images[:count]), expected[:count], atol=2e-5)
    if " " in name:  # each member's first stage stays in float, the rest is smaller
        small = export.to_int8(tmp_path / "a.onnx", images, tmp_path / "b.onnx").graph
        convs = [node.input[1] for node in small.node if node.op_type == "Conv"]
        floats = {of for of in convs if "_DequantizeLinear" not in of}
        assert {of for of in convs if ".down1." in of} <= floats
        assert 2 * len(floats) < len({*convs})
        export.write_onnx(tmp_path / "b.onnx", onnx.load(tmp_path / "b.onnx"), about)
        quantised = Predictor.open(tmp_path / "b.onnx").network(images)
        assert np.abs(quantised - expected).mean() < 0.2 * np.abs(expected).mean()


def test_files_of_a_release_and_metadata_of_a_network(study, made):
    out, released = made
    about = json.loads((out / "release.json").read_text("utf-8"))
    assert about == json.loads(json.dumps(released.about | {"files": about["files"]}))
    assert (about["selected"], set(about["models"])) == ("resunet", {"unet", "resunet"})
    names = {"model_card.md", "parameters.json", "requirements.txt", "README.md"}
    names |= {file for files in about["models"].values() for file in files.values()}
    assert set(about["files"]) == names
    assert {f.name for f in out.iterdir()} == names | {"release.json", "SHA256SUMS"}
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True)
    assert (checked.returncode, checked.stdout.count(b": OK")) == (0, len(names) + 1)
    contents = b"".join((out / name).read_bytes() for name in names)
    for place in (str(ROOT), sys.prefix, str(Path.home()), str(study), '.py"'):
        assert place.encode() not in contents
    card = (out / "model_card.md").read_text("utf-8")
    assert all(run["agreement"]["agrees"] for run in about["runs"].values())
    assert all(run["run_id"] in card for run in about["runs"].values())
    assert json.loads((out / "parameters.json").read_text())["unet"]["epochs"] == HOW["epochs"]
    about = Predictor.open(out, model="unet").about
    assert about["data_fingerprint"] == open_store(study / "store").fingerprint


def test_the_run_with_the_best_dice_on_validation_is_released(study, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in (study / "runs").iterdir()]

    def chosen(*named, dice="0.{}5") -> list[str]:
        for run in copies:
            lines = "".join(f"{e},{dice.format(run.name[-1])}\n" for e in range(1, 16))
            (run / "history.csv").write_text("epoch,val_dice\n" + lines)
        found = export.choose_runs(copies[::-1], SELECTED, named).values()
        return [run["run_id"].replace("-grouped-fold0-seed", " ") for run in found]

    assert chosen() == ["resunet 1", "unet 1"]
    assert chosen("unet-grouped-fold0-seed0") == ["resunet 1", "unet 0"]
    assert chosen(dice="0.5") == ["resunet 0", "unet 0"]  # of equals the first by name
    with pytest.raises(ValueError, match="run: got nobody, need one of resunet-grouped"):
        chosen("nobody")
    about = json.loads((copies[0] / "run.json").read_text("utf-8")) | {"reused": True}
    (copies[0] / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"no weights of {copies[0].name}.*reuse to false"):
        chosen()


def test_a_network_trained_on_all_groups_is_released_alone(study, tmp_path, command):
    """It needs no weights of the runs, and its confidence is fitted on what they had not seen."""
    copy = shutil.copytree(study, tmp_path / "tiny")
    for weights in copy.glob("runs/*/model.pt"):
        weights.unlink()
    for run in copy.glob("runs/resunet-*"):
        about = json.loads((run / "run.json").read_text("utf-8"))
        about |= {"reused": "other", "selection": "val", "selected_epoch": 4, "temperature": 0.5}
        (run / "run.json").write_text(json.dumps(about))
    assert command(copy, tmp_path / "out", "--retrain", "--threads", "1") == 0
    release = json.loads((tmp_path / "out" / "release.json").read_text("utf-8"))
    assert [*release["models"]] == ["resunet"]
    settings = json.loads((tmp_path / "out" / "parameters.json").read_text("utf-8"))["resunet"]
    assert (settings["epochs"], settings["protocol"], settings["val_share"]) == (4, "all", 0)
    assert settings["cases"] == {"train": len(open_store(study / "store")), "val": 0, "test": 0}
    rows = pd.read_csv(copy / "runs/resunet-grouped-fold0-seed0/scores.csv", dtype={"group": str})
    line = confidence.fit_confidence(*(rows[x].to_numpy() for x in ("confidence", "dice", "group")))
    about = Predictor.open(tmp_path / "out").about
    # by which the rows' confidence was made, too
    assert (about["confidence"], about["temperature"]) == (line, 0.5)
    sure = confidence.calibrated(rows["confidence"], line)
    assert about["confidence_low"] == pytest.approx(np.percentile(sure, 5), abs=1e-4)
    card = (tmp_path / "out" / "model_card.md").read_text("utf-8")
    assert f"trained once more: 4 epochs on all {settings['cases']['train']} frames" in card
    assert "## What was released\n\n- The selected model" in card
    assert f"from {len(rows)} frames" in card
    assert release["runs"]["resunet"]["int8"]["measured_on"] == "train"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ensemble": ["resunet"]}, "retrain: selected is resunet, which is no single network"),
        ({"variant": "vnet"}, "there is no run of resunet: run the study first"),
        ({"protocol": "random"}, "retrain: random tests groups that it trained on: run protocol"),
    ],
)
def test_what_cannot_be_trained_again_is_refused(change, said, study, tmp_path, command, capsys):
    copy = shutil.copytree(study, tmp_path / "tiny")
    for run in copy.glob("runs/resunet-*"):
        about = json.loads((run / "run.json").read_text("utf-8")) | change
        (run / "run.json").write_text(json.dumps(about))
    if "protocol" in change:
        selected = json.dumps(SELECTED | change | {"provisional": True})
        write_file(copy / "compare" / "selected.json", selected)
    assert command(copy, tmp_path / "out", "--retrain") == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        command(copy, tmp_path / "out", "--retrain", "--run", "resunet-grouped-fold0-seed0")
    assert "give one of them" in capsys.readouterr().err


def test_without_validation_a_group_is_measured_from_the_others():
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(low, low + 90, (20, 16, 16)).astype(np.uint8) for low in (0, 160))
    both, group = np.concatenate([dark, bright]), np.repeat(["a", "b"], 20)
    apart, together = (describe_frames(both, both[:0], each) for each in (group, None))
    other = describe_frames(dark, bright)
    assert apart["reach"] >= 0.9 * other["reach"] > 5 * together["reach"]
    assert apart["mean"] == together["mean"]


def test_no_test_case_takes_part(study, made, tmp_path, monkeypatch, command, capfd):
    """With other references of the test cases, and other test scores, it has the same bytes."""
    other = shutil.copytree(study, tmp_path / "tiny")
    for scores in other.glob("runs/*/scores.csv"):
        scores.write_text("nothing\n")
    store = open_store(other / "store")
    sides = split_cases(store.index, **{key: HOW[key] for key in SPLIT if key in HOW})
    bits = np.load(other / "store" / "reference.npy")
    for row in np.flatnonzero(sides == "test"):
        start = store.index["offset"].iloc[row]
        bits[start : start + 40] = 255
    np.save(other / "store" / "reference.npy", bits)
    monkeypatch.setattr(export, "open_store", lambda folder: open_store(folder, verify=False))
    monkeypatch.setattr(export, "DICE_OFF", 2.0)
    assert command(other, tmp_path / "out", "--threads", "1") == 0
    assert (tmp_path / "out" / "SHA256SUMS").read_text() == (made[0] / "SHA256SUMS").read_text()
    assert capfd.readouterr().err == ""  # no warning, no progress


def test_int8_is_smaller_and_its_gate_measures_dice_on_validation(study, made):
    out, released = made
    gate, change = released.about["runs"]["resunet"]["int8"], np.diff(released.int8.iloc[:, 1:])
    assert gate["released"]
    assert gate["change"] == pytest.approx(change.mean(), abs=1e-5)
    assert (out / "resunet-int8.onnx").stat().st_size < (out / "resunet.onnx").stat().st_size
    both = [Predictor.open(out, precision=each) for each in ("fp32", "int8")]
    assert export.agree(*both, open_store(study / "store"))["pixels"] < 0.05


def test_a_release_replaces_the_one_before_and_nothing_else(study, made, tmp_path, monkeypatch):
    """And leaves int8 out where Dice changes by more than the limit."""
    monkeypatch.setattr(export, "DICE_OFF", -1.0)
    out = tmp_path / "out"
    killed = "vnet.onnx", "release.json", "release.json.41.partial", "unet.onnx.42.partial"
    for name in killed:
        write_file(out / name, "of an export that was killed")
    write_file(out / "SHA256SUMS", "0  vnet.onnx\n0  release.json\n0  unet.onnx\n")
    make(study, out)
    names = {f.name for f in made[0].iterdir()}
    assert {f.name for f in out.iterdir()} == names - {"resunet-int8.onnx"}
    assert "**not** released" in (out / "model_card.md").read_text("utf-8")
    for name in ("thesis.tex", "yolo.onnx"):
        write_file(tmp_path / "own" / name, "years of work")
        with pytest.raises(ValueError, match=f"holds {name}: give a folder for the release alone"):
            make(study, tmp_path / "own")
        (tmp_path / "own" / name).unlink()


@pytest.mark.parametrize("failing", ["unet.onnx", "SHA256SUMS", "README.md"])
def test_a_full_disk_or_a_kill_leaves_no_release(made, tmp_path, monkeypatch, failing):
    out, released = made
    names = json.loads((out / "release.json").read_text())["files"]
    files = {name: (out / name).read_bytes() for name in names}
    copy = shutil.copytree(out, tmp_path / "copy")

    def full(path, content):
        if Path(path).name == failing:
            raise OSError(28, "the disk is full: free some space", str(path))
        return write_file(path, content)

    monkeypatch.setattr(export, "write_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        export.write_release(copy, files, released.about)
    with pytest.raises(FileNotFoundError, match=r"no release in"):
        Predictor.open(copy)


@pytest.mark.parametrize("gone", UNFINISHED)
def test_what_cannot_be_released_is_one_sentence(
    gone, study, tmp_path, capsys, monkeypatch, command
):
    copy = shutil.copytree(study, tmp_path / "copy")
    for path in copy.glob(gone):
        path.unlink()
    monkeypatch.setattr(export, "PROB_OFF", -1.0)
    assert command(copy, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert UNFINISHED[gone] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def by_its_own_words(path, image: np.ndarray) -> np.ndarray:
    """The mask as the metadata of an .onnx describe it, in ONNX Runtime, Pillow and NumPy alone."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert about["resize"] == "square"
    size, bilinear = (about["size"], about["size"]), Image.Resampling.BILINEAR
    fitted = np.float32(Image.fromarray(image).resize(size, bilinear)) / np.float32(255)
    logits = session.run(["logits"], {"image": fitted[None, None]})[0][0, 0]
    prob = Image.fromarray((1 / (1 + np.exp(-logits))).astype(np.float32))
    return np.asarray(prob.resize(image.shape[::-1], bilinear)) > about["threshold"]


def from_the_command(model: Path, images: Path, out: Path, *absent: str) -> None:
    code = (
        f"import sys; sys.modules |= dict.fromkeys({absent!r})\n"
        "from thyroid_lib.deploy import predict_folder; sys.exit(predict_folder.main())"
    )
    words = ["--model", model, "--images", images, "--out", out]
    subprocess.run([sys.executable, "-c", code, *words], check=True)


def test_notebook_export_command_page_and_dicom_give_the_same_mask(
    study, made, tiny_store, tmp_path
):
    chosen = study / "runs" / made[1].about["runs"]["resunet"]["run_id"]
    release, predictor = made[0], Predictor.open(made[0])
    on_page = app.open_models(release, 0)["resunet"]
    images = tiny_store.folder.parent / "data" / "images"
    others = "torch", "pandas", "onnx", "matplotlib", "pydicom", "streamlit", "yaml", "seaborn"
    from_the_command(release, images, tmp_path / "release", *others)
    from_the_command(chosen / "model.pt", images, tmp_path / "model.pt")
    for case in ("a00", "b03", "d05"):
        path = images / f"{case}.png"
        content = dicoms.to_bytes(dicoms.make_us(frames.read_gray(path)))
        upload = app.read_upload(path.read_bytes(), ".png")
        seg = app.make_segmentation(app.read_upload(content, ".dcm"), on_page, None)
        answered = answer(dicom.read_file(content), predictor)
        found = {
            "3-train, by torch": segment_case(chosen, tiny_store, case),
            "6-deploy": predictor.predict(read_picture(path)).mask,
            "the export by itself": by_its_own_words(release / "resunet.onnx", upload.frames[0]),
            "command, release": frames.read_gray(tmp_path / f"release/masks/{case}.png") > 127,
            "command, model.pt": frames.read_gray(tmp_path / f"model.pt/masks/{case}.png") > 127,
            "page, PNG": on_page.predict(upload.frames[0]).mask,
            "page, DICOM": pydicom.dcmread(BytesIO(seg)).pixel_array > 0,
            "DICOM answer": answered[0].pixel_array > 0,
        }
        first = found["6-deploy"]
        assert 0 < first.sum() < first.size
        for name, mask in found.items():
            assert np.array_equal(mask, first), f"{case}: {name}"


def test_the_confidence_by_hand():
    prob = np.array([[0.9, 0.8, 0.3]], np.float32)
    assert confidence.expected_dice(prob, prob > 0.5) == pytest.approx(2 * 1.7 / (2 + 2.0))
    assert confidence.expected_dice(prob, prob > 0.95) == pytest.approx(0.1)
    # two groups: (0.8, 0.4) and (0.9, 0.7): slope 3, whatever the number of frames
    expected, dice = np.array([0.8, 0.8, 0.8, 0.9]), np.array([0.4, 0.4, 0.4, 0.7])
    line = confidence.fit_confidence(expected, dice, np.array(["a", "a", "a", "b"]))
    assert (line["slope"], line["offset"]) == (pytest.approx(3), pytest.approx(-2))
    # each by the other's: moved alone, 0.4 + 0.1 for 0.7, and 0.7 - 0.1 for 0.4
    assert line["error"] == pytest.approx(0.2)
    alone = confidence.fit_confidence(expected, dice, np.array(["a"] * 4))
    assert (alone["slope"], alone["groups"]) == (1, 1)
    assert alone["offset"] == pytest.approx(0.475 - 0.825)
    assert confidence.calibrated(0.9, line) == pytest.approx(0.7)
    assert confidence.calibrated(0.5, line) == 0
    assert confidence.calibrated(0.5, None) == 0.5


def test_real_frames_of_other_sweeps_pass_and_what_is_none_is_refused(shared_data, tmp_path):
    """What docs/deploy.md says of the distance, on every fold of the sample."""
    how = {"folder": tmp_path, "sweeps": 1, "frames": 1, "seed": 0, "text": False}
    cases = load_cases("tg3k", str(shared_data / "tg3k-sample"), **how)
    store = build_store(cases, tmp_path / "store", size=128)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (128, 128)).astype(np.uint8) for _ in range(3)]
    ramp = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (128, 1))
    for fold in range(3):
        sides = split_cases(store.index, protocol="grouped", fold=fold, folds=3)
        train, val, test = (store.images[sides == side][::3] for side in ("train", "val", "test"))
        known = describe_frames(train, val)
        assert (np.array([distance(known, frame) for frame in test]) > TOO_FAR).mean() <= 0.02
        nonsense = [*noise, ramp, *(255 - frame for frame in test[::20])]
        assert min(distance(known, frame) for frame in nonsense) > TOO_FAR
        blurred = [ndimage.gaussian_filter(frame, 3) for frame in test[::20]]
        assert min(distance(known, frame) for frame in blurred) > 1
