"""Releases of small networks: they agree with torch, and are whole or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from test_run import SMALL

from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import build_store, load_cases, open_store
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.evaluate import confidence
from thyroid_lib.evaluate.familiarity import TOO_FAR, describe_frames, distance
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import build_model, initialise, to_input
from thyroid_lib.study.parameters import check_deploy
from thyroid_lib.train.run import score_run, train_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
export = pytest.importorskip("thyroid_lib.deploy.export")

pytestmark = pytest.mark.study  # networks are trained and exported
ROOT = Path(__file__).parents[2]
HOW = SMALL | {"val_share": 0.3, "epochs": 2, "device": "cpu", "precision": "fp32", "threads": 1}
SELECTED = {"model": "resunet", "protocol": "grouped"}


def write_study(top: Path, store, *, models=("unet", "resunet"), seeds=(0, 1), **how) -> Path:
    """Train a small study; its comparison is written by hand."""
    shutil.copytree(store.folder, top / "store")
    for name in models:
        for seed in seeds:
            out = top / "runs" / f"{name}-grouped-fold0-seed{seed}"
            each = {"model": name, "seed": seed, "protocol": "grouped", "fold": 0}
            score_run(train_model(store, out=out, **HOW | each | how), store)
    write_file(top / "compare" / "selected.json", json.dumps(SELECTED | {"provisional": True}))
    write_file(top / "compare" / "model_card.md", "# Model card: resunet\n")
    return top


@pytest.fixture(scope="module")
def study(tiny_store, tmp_path_factory) -> Path:
    """A study of two models and two seeds."""
    return write_study(tmp_path_factory.mktemp("study") / "tiny", tiny_store)


def make(study: Path, out: Path, **how):
    runs = sorted((study / "runs").iterdir())
    places = {"store": study / "store", "compare": study / "compare", "out": out}
    return export.release(runs, **places, **{"threads": 1} | how)


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """Its release: the folder, and what the function returns."""
    out = tmp_path_factory.mktemp("made") / "release"
    return out, make(study, out)


def command(study: Path, out: Path, *words: str) -> list[str]:
    module = "thyroid_lib.deploy.export"
    return [sys.executable, "-m", module, "--study", str(study), "--out", str(out), *words]


@pytest.mark.parametrize("name", ["unet", "segnet", "resunet", "segnet_reported"])
def test_every_network_gives_what_torch_gives(name, tmp_path):
    net = build_model(name, width=4)
    initialise(net, seed=3)
    frames = np.random.default_rng(1).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    net.train()(to_input(torch.from_numpy(frames)))  # statistics of batch norm that are not 0 and 1
    about = {"model": name, "size": 32, "resize": "square", "threshold": 0.5}
    export.write_onnx(tmp_path / "a.onnx", export.to_onnx(net, 32), about)
    with torch.inference_mode():
        expected = net.eval()(to_input(torch.from_numpy(frames)))[:, 0].numpy()
    network = Predictor.open(tmp_path / "a.onnx").network
    np.testing.assert_allclose(network(frames), expected, atol=2e-5)
    for frame, logits in zip(frames, expected, strict=True):  # any number of frames
        np.testing.assert_allclose(network(frame[None])[0], logits, atol=2e-5)


def test_an_export_has_the_same_bytes_and_names_no_place(study, made, tmp_path):
    out, _ = made
    done = subprocess.run(command(study, tmp_path / "b", "--threads", "1"), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")  # no warning, no progress
    first, second = ({f.name: f.read_bytes() for f in p.iterdir()} for p in (out, tmp_path / "b"))
    assert first == second
    for name, content in first.items():
        for place in (str(ROOT), sys.prefix, str(Path.home()), str(study), '.py"'):
            assert place.encode() not in content, f"{name} names {place}"


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
    card = (out / "model_card.md").read_text("utf-8")
    assert card.startswith("# Model card: resunet")
    for run in about["runs"].values():
        assert run["agreement"]["agrees"]
        assert run["run_id"] in card
    assert json.loads((out / "parameters.json").read_text())["unet"]["epochs"] == 2
    about = Predictor.open(out, model="unet").about
    assert about["data_fingerprint"] == open_store(study / "store").fingerprint
    assert (about["size"], about["resize"], about["threshold"]) == (32, "square", 0.5)
    assert all(word in about["preprocessing"] for word in ("bilinear", "255", "letterbox"))


def test_the_run_with_the_best_dice_on_validation_is_released(study, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in (study / "runs").iterdir()]

    def chosen(*named) -> list[str]:
        found = export.choose_runs(copies[::-1], SELECTED, named).values()
        return [run["run_id"].replace("-grouped-fold0-seed", " ") for run in found]

    for run in copies:
        (run / "history.csv").write_text(
            f"epoch,val_dice\n1,0.{run.name[-1]}5\n2,0.{run.name[-1]}5\n"
        )
    assert chosen() == ["resunet 1", "unet 1"]
    assert chosen("unet-grouped-fold0-seed0") == ["resunet 1", "unet 0"]
    with pytest.raises(ValueError, match="run: got nobody, need one of resunet-grouped"):
        chosen("nobody")
    for run in copies:  # of equals the first by name
        (run / "history.csv").write_text("epoch,val_dice\n1,0.5\n2,0.5\n")
    assert chosen() == ["resunet 0", "unet 0"]


def test_no_test_case_takes_part(study, made, tmp_path, monkeypatch):
    """With other references of the test cases, and other test scores, it is the same release."""
    other = shutil.copytree(study, tmp_path / "tiny")
    for scores in other.glob("runs/*/scores.csv"):
        scores.write_text("nothing\n")
    store = open_store(other / "store")
    how = {key: HOW[key] for key in ("folds", "val_share") if key in HOW}
    sides = split_cases(store.index, protocol="grouped", fold=0, **how)
    bits = np.load(other / "store" / "reference.npy")
    for row in np.flatnonzero(sides == "test"):
        start = store.index["offset"].iloc[row]
        bits[start : start + 40] = 255
    np.save(other / "store" / "reference.npy", bits)
    monkeypatch.setattr(export, "open_store", lambda folder: open_store(folder, verify=False))
    make(other, tmp_path / "out")
    assert (tmp_path / "out" / "SHA256SUMS").read_text() == (made[0] / "SHA256SUMS").read_text()


@pytest.mark.parametrize(("limit", "released"), [(2.0, True), (-1.0, False)])
def test_int8_is_released_only_within_the_limit(limit, released, study, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "DICE_OFF", limit)
    out, found = tmp_path / "out", make(study, tmp_path / "out")
    gate, change = found.about["runs"]["resunet"]["int8"], found.int8["int8"] - found.int8["fp32"]
    assert gate["released"] == released
    assert gate["change"] == pytest.approx(change.mean(), abs=1e-5)
    assert (out / "resunet-int8.onnx").exists() == released
    assert ("int8" in found.about["models"]["resunet"]) == released
    assert ("**not** released" in (out / "model_card.md").read_text("utf-8")) != released
    if not released:
        with pytest.raises(ValueError, match="this release has fp32"):
            Predictor.open(out, precision="int8")
        return
    kinds = [node.op_type for node in onnx.load(out / "resunet-int8.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > 10
    assert (out / "resunet-int8.onnx").stat().st_size < (out / "resunet.onnx").stat().st_size
    both = [Predictor.open(out, precision=each) for each in ("fp32", "int8")]
    assert export.agree(*both, open_store(study / "store"))["pixels"] < 0.05


def test_an_export_that_is_off_stops_the_release(study, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PROB_OFF", -1.0)
    with pytest.raises(RuntimeError, match="its export does not agree with torch"):
        make(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failing", ["unet.onnx", "SHA256SUMS", "README.md"])
def test_a_full_disk_or_a_kill_leaves_no_release(made, tmp_path, monkeypatch, failing):
    out, released = made
    files = {
        name: (out / name).read_bytes()
        for name in json.loads((out / "release.json").read_text())["files"]
    }
    copy = shutil.copytree(out, tmp_path / "copy")

    def full(path, content):
        if Path(path).name == failing:
            raise OSError(28, "the disk is full: free some space", str(path))
        return write_file(path, content)

    monkeypatch.setattr(export, "write_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        export.write_release(copy, files, released.about)
    with pytest.raises(FileNotFoundError, match=r"release\.json is missing"):
        Predictor.open(copy)


def test_a_release_replaces_the_one_before_and_nothing_else(study, made, tmp_path):
    out = tmp_path / "out"
    write_file(out / "vnet.onnx", made[0].joinpath("unet.onnx").read_bytes())
    for name in ("release.json", "release.json.41.partial", "unet.onnx.42.partial"):
        write_file(out / name, "of an export that was killed")
    make(study, out)
    assert {f.name for f in out.iterdir()} == {f.name for f in made[0].iterdir()}
    for name in ("thesis.tex", "yolo.onnx", "film.mp4.7.partial"):
        write_file(tmp_path / "own" / name, "years of work")
        with pytest.raises(ValueError, match=f"holds {name}: give a folder for the release alone"):
            make(study, tmp_path / "own")
        (tmp_path / "own" / name).unlink()


UNFINISHED = {  # what is gone or damaged: its files, their content, what is said
    "selected": ("compare/selected.json", None, "selected.json is missing: run the study first"),
    "no protocol": ("compare/selected.json", '{"model": "unet"}', "selected.json is damaged"),
    "card": ("compare/model_card.md", None, "model_card.md is missing: run the study first"),
    "weights": ("runs/*/model.pt", None, "no model at"),
    "store": ("store/*", None, "no store at"),
    "runs": ("runs/*/run.json", None, "there is no run of resunet: run the study first"),
}


@pytest.mark.parametrize("case", UNFINISHED)
def test_what_is_no_finished_study_is_one_sentence(case, study, tmp_path, capsys, monkeypatch):
    pattern, content, text = UNFINISHED[case]
    copy = shutil.copytree(study, tmp_path / "copy")
    for path in copy.glob(pattern):
        path.unlink() if content is None else path.write_text(content)
    words = command(copy, tmp_path / "out")[3:]
    monkeypatch.setattr(sys, "argv", ["export", *words])
    assert export.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_runs_with_nothing_but_what_it_requires(made, tmp_path):
    """With the project's other packages out of reach."""
    out, image = made[0], np.random.default_rng(0).integers(0, 200, (50, 70)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    others = {"torch", "pandas", "onnx", "matplotlib", "pydicom", "streamlit", "yaml", "seaborn"}
    needs = {line.split(">")[0] for line in (out / "requirements.txt").read_text().split()}
    assert not needs & others
    code = (
        f"import sys; sys.modules |= dict.fromkeys({sorted(others)!r})\n"
        "from thyroid_lib.deploy import predict_folder; sys.exit(predict_folder.main())"
    )
    words = ["--model", str(out), "--images", tmp_path / "images", "--out", tmp_path / "out"]
    subprocess.run([sys.executable, "-c", code, *words], check=True)
    mask = np.array(Image.open(tmp_path / "out" / "masks" / "a.png")) > 0
    assert np.array_equal(mask, Predictor.open(out).predict(image).mask)


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
    falling = confidence.fit_confidence(expected, 1 - dice, np.array(["a", "a", "a", "b"]))
    assert (falling["slope"], falling["offset"]) == (0, pytest.approx(0.45))
    alone = confidence.fit_confidence(expected, dice, np.array(["a"] * 4))
    assert (alone["slope"], alone["groups"]) == (1, 1)
    assert alone["offset"] == pytest.approx(0.475 - 0.825)
    assert confidence.calibrated(0.9, line) == pytest.approx(0.7)
    assert confidence.calibrated(0.5, line) == 0
    assert confidence.calibrated(0.5, None) == 0.5


def test_confidence_in_a_release_is_calibrated(study, made):
    out, released = made
    store, predictor = open_store(study / "store"), Predictor.open(out)
    mine = released.val[released.val["model"] == "resunet"]
    rows = np.flatnonzero(store.index["case_id"].isin(mine["case_id"]))
    shapes = store.index[["height", "width"]].to_numpy()
    given = [predictor.segment(store.images[row], tuple(shapes[row]), 0.5)[2] for row in rows]
    np.testing.assert_allclose(given, mine["confidence"], atol=1e-3)
    low = released.about["runs"]["resunet"]["confidence_low"]
    assert low == pytest.approx(np.percentile(given, 5), abs=2e-3)
    if mine["confidence"].between(0.01, 0.99).all():  # where nothing was clipped
        means = mine.groupby("group")[["confidence", "dice"]].mean().mean()
        assert means["confidence"] == pytest.approx(means["dice"], abs=1e-3)


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


def test_a_missing_exporter_is_named_before_any_work(monkeypatch):
    check_deploy(True)
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    check_deploy(False)
    with pytest.raises(ValueError, match="deploy: onnxruntime, onnxscript not installed: `pip ins"):
        check_deploy(True)
