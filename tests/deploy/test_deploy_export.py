"""Releases of small networks: they agree with torch, and are whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_run import SMALL

from thyroid_lib.data.store import open_store
from thyroid_lib.deploy.predictor import METADATA, Predictor
from thyroid_lib.evaluate import confidence
from thyroid_lib.evaluate.familiarity import TOO_FAR, describe_frames, distance
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import initialise, to_input, user_networks
from thyroid_lib.train.run import score_run, train_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
export = pytest.importorskip("thyroid_lib.deploy.export")

ROOT = Path(__file__).parents[2]
HOW = SMALL | {"val_share": 0.3, "epochs": 2, "device": "cpu", "precision": "fp32", "threads": 1}


def write_study(top: Path, store, *, models=("unet", "resunet"), seeds=(0, 1), **how) -> Path:
    """Train a small study; its comparison is written by hand."""
    shutil.copytree(store.folder, top / "store")
    for name in models:
        for seed in seeds:
            out = top / "runs" / f"{name}-grouped-fold0-seed{seed}"
            each = {"model": name, "seed": seed, "protocol": "grouped", "fold": 0}
            score_run(train_model(store, out=out, **HOW | each | how), store)
    selected = {"model": "resunet", "protocol": "grouped"}
    write_file(top / "compare" / "selected.json", json.dumps(selected))
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
    """Its release: the folder, and what the function gives back."""
    out = tmp_path_factory.mktemp("made") / "release"
    return out, make(study, out)


def command(study: Path, out: Path, *words: str) -> list[str]:
    module = "thyroid_lib.deploy.export"
    return [sys.executable, "-m", module, "--study", str(study), "--out", str(out), *words]


@pytest.mark.parametrize("name", ["unet", "segnet", "resunet", "segnet_reported"])
def test_every_network_gives_what_torch_gives(name, tmp_path):
    net = user_networks.build(name, width=4)
    initialise(net, seed=3)
    frames = np.random.default_rng(1).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    net.train()(to_input(torch.from_numpy(frames)))  # statistics of batch norm that are not 0 and 1
    about = {"model": name, "size": 32, "resize": "square", "threshold": 0.5}
    export.write_onnx(tmp_path / "a.onnx", export.to_onnx(net, 32), about)
    with torch.inference_mode():
        wanted = net.eval()(to_input(torch.from_numpy(frames)))[:, 0].numpy()
    given = Predictor.open(tmp_path / "a.onnx")
    np.testing.assert_allclose(given.network(frames), wanted, atol=2e-5)
    for frame, logits in zip(frames, wanted, strict=True):  # any number of frames
        np.testing.assert_allclose(given.network(frame[None])[0], logits, atol=2e-5)


def test_an_export_is_the_same_bytes_and_names_no_place(study, made, tmp_path):
    out, _ = made
    done = subprocess.run(command(study, tmp_path / "b", "--threads", "1"), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""  # no warning, no progress
    first, second = ({f.name: f.read_bytes() for f in p.iterdir()} for p in (out, tmp_path / "b"))
    assert first == second
    for name, content in first.items():
        for place in (str(ROOT), sys.prefix, str(Path.home()), str(study), '.py"'):
            assert place.encode() not in content, f"{name} names {place}"


def test_what_is_in_a_release(study, made):
    out, released = made
    about = json.loads((out / "release.json").read_text("utf-8"))
    assert about == json.loads(json.dumps(released.about | {"files": about["files"]}))
    assert about["selected"] == "resunet"
    assert set(about["models"]) == {"unet", "resunet"}
    names = {"model_card.md", "parameters.json", "requirements.txt", "README.md"}
    names |= {file for files in about["models"].values() for file in files.values()}
    assert set(about["files"]) == names
    assert {f.name for f in out.iterdir()} == names | {"release.json", "SHA256SUMS"}
    assert all(file_digest(out / name) == digest for name, digest in about["files"].items())
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.count(": OK") == len(names) + 1
    card = (out / "model_card.md").read_text("utf-8")
    assert card.startswith("# Model card: resunet")
    for run in about["runs"].values():
        assert run["agreement"]["agrees"]
        assert run["run_id"] in card
    assert "torch" not in (out / "requirements.txt").read_text("utf-8")
    assert json.loads((out / "parameters.json").read_text())["unet"]["epochs"] == 2


def test_what_a_network_says_of_itself(study, made):
    out, _ = made
    proto = onnx.load(out / "unet.onnx")
    assert 18 <= proto.opset_import[0].version <= 20
    (told,) = proto.metadata_props
    about = json.loads(told.value)
    assert told.key == METADATA
    store = open_store(study / "store")
    assert about["data_fingerprint"] == store.fingerprint
    assert (about["size"], about["resize"], about["threshold"]) == (32, "square", 0.5)
    for word in ("bilinear", "255", "letterbox"):
        assert word in about["preprocessing"]
    assert "strictly above" in about["postprocessing"]
    assert {"slope", "offset", "error", "groups", "frames"} == set(about["confidence"])
    assert "path" not in told.value


def test_the_run_with_the_best_dice_on_validation_is_released(study, made):
    _, released = made
    best = {}
    for run in sorted((study / "runs").iterdir()):
        about = json.loads((run / "run.json").read_text())
        history = pd.read_csv(run / "history.csv").set_index("epoch")
        best.setdefault(about["model"], []).append(
            (-history.val_dice[about["selected_epoch"]], run.name)
        )
    for name, runs in best.items():
        assert released.about["runs"][name]["run_id"] == min(runs)[1]


def test_no_test_case_has_a_part_in_it(study, made, tmp_path):
    """With other references of the test cases, and other test scores, it is the same release."""
    from thyroid_lib.data.splits import split_cases

    other = shutil.copytree(study, tmp_path / "tiny")
    for scores in other.glob("runs/*/scores.csv"):
        scores.write_text("nothing\n")
    store = open_store(other / "store")
    how = {key: HOW[key] for key in ("folds", "val_share") if key in HOW}
    labels = split_cases(store.index, protocol="grouped", fold=0, **how)
    bits = np.load(other / "store" / "reference.npy")
    for row in np.flatnonzero(labels == "test"):
        start = store.index["offset"].iloc[row]
        bits[start : start + 40] = 255
    np.save(other / "store" / "reference.npy", bits)
    unverified = export.open_store
    try:
        export.open_store = lambda folder: open_store(folder, verify=False)
        make(other, tmp_path / "out")
    finally:
        export.open_store = unverified
    out, _ = made
    assert (tmp_path / "out" / "SHA256SUMS").read_text() == (out / "SHA256SUMS").read_text()


def test_a_run_can_be_named(study, tmp_path):
    runs = sorted((study / "runs").iterdir())
    selected = {"model": "resunet", "protocol": "grouped"}
    for seed in (0, 1):
        name = f"unet-grouped-fold0-seed{seed}"
        assert export.choose_runs(runs, selected, (name,))["unet"]["run_id"] == name
    with pytest.raises(ValueError, match="run: got nobody, need one of resunet-grouped"):
        export.choose_runs(runs, selected, ("nobody",))


def test_equal_runs_go_by_name(study, tmp_path):
    runs = [shutil.copytree(p, tmp_path / p.name) for p in sorted((study / "runs").iterdir())]
    for run in runs:
        (run / "history.csv").write_text("epoch,val_dice\n1,0.5\n2,0.5\n")
    chosen = export.choose_runs(runs[::-1], {"model": "unet", "protocol": "grouped"})
    assert {run["run_id"] for run in chosen.values()} == {
        "resunet-grouped-fold0-seed0", "unet-grouped-fold0-seed0",
    }  # fmt: skip


@pytest.mark.parametrize(("limit", "released"), [(2.0, True), (-1.0, False)])
def test_int8_is_released_only_within_the_limit(limit, released, study, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "DICE_OFF", limit)
    found = make(study, tmp_path / "out")
    gate = found.about["runs"]["resunet"]["int8"]
    assert gate["released"] == released
    assert gate["change"] == pytest.approx(
        (found.int8["int8"] - found.int8["fp32"]).mean(), abs=1e-5
    )
    assert (tmp_path / "out" / "resunet-int8.onnx").exists() == released
    assert ("int8" in found.about["models"]["resunet"]) == released
    card = (tmp_path / "out" / "model_card.md").read_text("utf-8")
    assert ("**not** released" in card) != released
    if not released:
        with pytest.raises(ValueError, match="this release has fp32"):
            Predictor.open(tmp_path / "out", precision="int8")


def test_int8_is_whole_numbers_and_near(study, made):
    out, _ = made
    if not (out / "resunet-int8.onnx").exists():
        pytest.skip("these two epochs lost too much by it")
    kinds = [node.op_type for node in onnx.load(out / "resunet-int8.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > 10
    assert (out / "resunet-int8.onnx").stat().st_size < (out / "resunet.onnx").stat().st_size
    both = [Predictor.open(out, precision=each) for each in ("fp32", "int8")]
    store = open_store(study / "store")
    assert export.agree(*both, store)["pixels"] < 0.05


def test_an_export_that_is_off_stops_the_release(study, tmp_path, monkeypatch):
    def wrong(model, size):
        proto = usual(model, size)
        head = next(each for each in proto.graph.initializer if each.name.startswith("head.bias"))
        bias = onnx.numpy_helper.to_array(head) + np.float32(0.5)
        head.CopyFrom(onnx.numpy_helper.from_array(bias, head.name))
        return proto

    usual = export.to_onnx
    monkeypatch.setattr(export, "to_onnx", wrong)
    with pytest.raises(RuntimeError, match="its export does not agree with torch"):
        make(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_second_release_replaces_the_first(study, made, tmp_path):
    out = tmp_path / "out"
    write_file(out / "vnet.onnx", made[0].joinpath("unet.onnx").read_bytes())
    for name in ("release.json", "release.json.41.partial", "unet.onnx.42.partial"):
        write_file(out / name, "of an export that was killed")
    make(study, out)
    assert {f.name for f in out.iterdir()} == {f.name for f in made[0].iterdir()}


@pytest.mark.parametrize("name", ["thesis.tex", "yolo.onnx", "film.mp4.7.partial"])
def test_a_folder_with_other_things_is_left_alone(name, study, tmp_path):
    write_file(tmp_path / name, "years of work")
    done = subprocess.run(command(study, tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"holds {name}: give a folder for the release alone" in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_a_full_disk_leaves_nothing_that_vouches(study, made, tmp_path, monkeypatch):
    out, released = made
    files = {f.name: f.read_bytes() for f in out.iterdir() if f.name not in export.OWN[1:5:3]}
    copy = shutil.copytree(out, tmp_path / "copy")

    def full(path, content):
        if Path(path).name == "unet.onnx":
            raise OSError(28, "the disk is full: free some space", str(path))
        return write_file(path, content)

    monkeypatch.setattr(export, "write_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        export.write_release(copy, files, released.about)
    assert not (copy / "release.json").exists()
    with pytest.raises(FileNotFoundError, match=r"release\.json is missing"):
        Predictor.open(copy)


@pytest.mark.slow
def test_a_killed_export_leaves_a_whole_release_or_none(study, made, tmp_path):
    out = shutil.copytree(made[0], tmp_path / "out")
    sums = (out / "SHA256SUMS").read_text()
    for wait in (3, 6, 8, 9, 10):
        process = subprocess.Popen(command(study, out, "--threads", "1"))
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (out / "release.json").exists():
            about = json.loads((out / "release.json").read_text())
            assert all(file_digest(out / n) == d for n, d in about["files"].items())
    assert subprocess.run(command(study, out, "--threads", "1")).returncode == 0
    assert (out / "SHA256SUMS").read_text() == sums


def broken(study: Path, tmp_path: Path, what: str) -> Path:
    copy = shutil.copytree(study, tmp_path / "copy")
    if what == "selected":
        (copy / "compare" / "selected.json").unlink()
    elif what == "damaged selection":
        (copy / "compare" / "selected.json").write_text("{")
    elif what == "card":
        (copy / "compare" / "model_card.md").unlink()
    elif what == "weights":
        for run in (copy / "runs").iterdir():
            (run / "model.pt").unlink()
    elif what == "damaged weights":
        for run in (copy / "runs").iterdir():
            (run / "model.pt").write_bytes(b"none")
    elif what == "store":
        shutil.rmtree(copy / "store")
    elif what == "runs":
        shutil.rmtree(copy / "runs")
    return copy


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("selected", "selected.json is missing: run the study first"),
        ("damaged selection", "selected.json is damaged"),
        ("card", "model_card.md is missing: run the study first"),
        ("weights", "no model at"),
        ("damaged weights", "is not a model of this project"),
        ("store", "no store at"),
        ("runs", "there is no run of resunet: run the study first"),
    ],
)
def test_what_is_no_finished_study_is_one_sentence(
    what, said, study, tmp_path, capsys, monkeypatch
):
    words = command(broken(study, tmp_path, what), tmp_path / "out")[3:]
    monkeypatch.setattr(sys, "argv", ["export", *words])
    assert export.main() == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_runs_with_nothing_but_what_it_asks_for(made, tmp_path):
    """In a folder of its own, with every other package of this environment out of reach."""
    from PIL import Image

    out = shutil.copytree(made[0], tmp_path / "release")
    image = np.random.default_rng(0).integers(0, 200, (50, 70)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    needed = {line.split(">")[0] for line in (out / "requirements.txt").read_text().split()}
    allowed = needed - {"pillow"} | {"PIL", "thyroid_lib"}
    # what those import themselves
    allowed |= {"flatbuffers", "google", "packaging", "numpy", "coloredlogs", "sympy", "mpmath"}
    code = (
        "import sys, importlib.abc, sysconfig\n"
        f"allowed = {sorted(allowed)!r}\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        known = top in sys.stdlib_module_names or top.startswith('_sysconfigdata')\n"
        "        if top not in allowed and not known:\n"
        "            raise ImportError(f'{name} is not there')\n"
        "sys.meta_path.insert(0, No())\n"
        "from thyroid_lib.deploy import predict_folder\n"
        "assert not {'torch', 'pandas', 'onnx', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(predict_folder.main())"
    )
    words = ["--model", ".", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=out, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mask = np.array(Image.open(tmp_path / "out" / "masks" / "a.png")) > 0
    assert np.array_equal(mask, Predictor.open(out).predict(image).mask)


def test_the_line_of_the_confidence_by_hand():
    fit = confidence.fit_confidence
    # two groups: (0.8, 0.4) and (0.9, 0.7): slope 3, whatever the number of frames
    expected, dice = np.array([0.8, 0.8, 0.8, 0.9]), np.array([0.4, 0.4, 0.4, 0.7])
    line = fit(expected, dice, np.array(["a", "a", "a", "b"]))
    assert (line["slope"], line["offset"]) == (pytest.approx(3), pytest.approx(-2))
    # each by the other's: moved alone, 0.4 + 0.1 for 0.7, and 0.7 - 0.1 for 0.4
    assert line["error"] == pytest.approx(0.2)
    falling = fit(expected, 1 - dice, np.array(["a", "a", "a", "b"]))
    assert falling["slope"] == 0
    assert falling["offset"] == pytest.approx(0.45)
    alone = fit(expected, dice, np.array(["a"] * 4))
    assert alone["slope"] == 1
    assert alone["offset"] == pytest.approx(0.475 - 0.825)
    assert alone["groups"] == 1
    assert confidence.calibrated(0.9, line) == pytest.approx(0.7)
    assert confidence.calibrated(0.5, line) == 0
    assert confidence.calibrated(0.5, None) == 0.5


def test_confidence_in_a_release_is_calibrated(study, made):
    out, released = made
    store, predictor = open_store(study / "store"), Predictor.open(out)
    mine = released.val[released.val["model"] == "resunet"]
    rows = np.flatnonzero(store.index["case_id"].isin(mine["case_id"]))
    shapes = store.index[["height", "width"]].to_numpy()
    told = [predictor.segment(store.images[row], tuple(shapes[row]), 0.5)[2] for row in rows]
    np.testing.assert_allclose(told, mine["confidence"], atol=1e-3)
    low = released.about["runs"]["resunet"]["confidence_low"]
    assert low == pytest.approx(np.percentile(told, 5), abs=2e-3)
    if mine["confidence"].between(0.01, 0.99).all():  # where nothing was clipped
        means = mine.groupby("group")[["confidence", "dice"]].mean().mean()
        assert means["confidence"] == pytest.approx(means["dice"], abs=1e-3)


def test_real_frames_of_other_sweeps_pass_and_what_is_none_is_refused(shared_data, tmp_path):
    """What docs/deploy.md says of the distance, on every fold of the sample."""
    from scipy import ndimage

    from thyroid_lib.data.splits import split_cases
    from thyroid_lib.data.store import build_store, load_cases

    cases = load_cases("tg3k", str(shared_data / "tg3k-sample"), folder=tmp_path, sweeps=1,
                       frames=1, seed=0, text=False)  # fmt: skip
    store = build_store(cases, tmp_path / "store", size=128)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (128, 128)).astype(np.uint8) for _ in range(3)]
    ramp = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (128, 1))
    for fold in range(3):
        labels = split_cases(store.index, protocol="grouped", fold=fold, folds=3)
        sides = [store.images[labels == side][::3] for side in ("train", "val", "test")]
        known = describe_frames(*sides[:2])
        unseen = np.array([distance(known, frame) for frame in sides[2]])
        assert (unseen > TOO_FAR).mean() <= 0.02
        nonsense = [*noise, ramp, *(255 - frame for frame in sides[2][::20])]
        assert min(distance(known, frame) for frame in nonsense) > TOO_FAR
        blurred = [ndimage.gaussian_filter(frame, 3) for frame in sides[2][::20]]
        assert min(distance(known, frame) for frame in blurred) > 1


def test_without_the_exporter_it_is_said_before_anything_is_done(monkeypatch):
    from thyroid_lib.settings import check_deploy

    check_deploy(True)
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    check_deploy(False)
    with pytest.raises(ValueError, match="deploy: onnxruntime, onnxscript not installed: `pip ins"):
        check_deploy(True)
