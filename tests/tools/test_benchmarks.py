"""The benchmarks measure what they say, on a few frames; their page says what was measured."""

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bench
import bits
import data
import gpu
import loops
import ours
import page
import preprocessing
import scoring
import training
from thyroid_lib.data.store import open_store
from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import to_input

ROOT = Path(__file__).parents[2]
SIZE = 64
CPU = torch.device("cpu")
MACHINE = {
    "slug": "toy-2-cores", "processor": "Toy", "instructions": "AVX2", "cores": 2, "threads": 2,
    "memory_gib": 8, "system": "Linux",
}  # fmt: skip
TRAINING = {
    "how": {"width": 16, "size": 256, "batch": 16, "steps": 8, "repeats": 2},
    "rates": {"bare": [10.0, 10.0], "project": [9.8, 10.2], "reported": [5.0, 5.0]},
    "precision": "bf16", "peaks": {"bf16": 1e12, "fp32": 5e11},
    "operations": 5e10, "frames": 3585, "cache_seconds": None,
    "memory": {"bare": 400, "project": 410.4, "reported": None},
}  # fmt: skip
HOW = gpu.TINY | {
    "device": "cpu", "precision": "bf16", "learned": 2, "repeats": 1, "epochs": 1, "frames": 8,
    "drawn": {"sweeps": 3, "frames": 2}, "checked": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return data.draw_frames(tmp_path_factory.mktemp("bench"), sweeps=3, frames=2)


@pytest.fixture(scope="module")
def setting(drawn) -> loops.Setting:
    return loops.Setting(drawn, data.store_of(drawn, SIZE), CPU, "fp32", 2, SIZE, batch=4)


def test_frames_are_drawn_once_and_whole(drawn, monkeypatch):
    monkeypatch.setattr(data, "_draw_sweep", None)  # drawing again would fail
    assert data.draw_frames(drawn.parent, sweeps=3, frames=2) == drawn
    assert [len(data.list_pairs(each)) for each in (drawn, data.link_frames(drawn, 3))] == [6, 18]


def test_preprocessing_makes_equal_arrays_both_ways(drawn, tmp_path):
    for name, mend in preprocessing.MENDS.items():
        preprocessing.make_plainly(drawn, tmp_path / name, SIZE, mend)
        store = preprocessing.build(drawn, tmp_path / f"{name}-store", SIZE, mend)
        preprocessing.check_equal(tmp_path / name, store)
        assert bool(store.mended["text"]) == bool(mend)  # the frames hold text
    masks = np.load(tmp_path / name / "masks.npy")
    masks[3, 5, 5] ^= 1
    np.save(tmp_path / name / "masks.npy", masks)
    with pytest.raises(RuntimeError, match="masks: the plain loop and build_store"):
        preprocessing.check_equal(tmp_path / name, store)


@pytest.mark.parametrize("binary", [False, True])
def test_other_loops_read_the_same_frames(setting, binary):
    dataset = loops.FolderFrames(setting.frames, SIZE, binary)
    for row in range(len(dataset)):
        image, mask = (np.asarray(part) for part in dataset[row])
        scale = np.float32(255 if image.dtype == np.uint8 else 1)
        expected = setting.store.images[row] / np.float32(255)
        np.testing.assert_allclose(image[0] / scale, expected, atol=1e-6)
        # the store has burnt-in text mended, and resizes a mask in another order
        assert np.mean((mask[0] > 0.5) != (setting.store.masks[row] > 0)) < 0.02


def test_the_bare_step_equals_the_projects(setting):
    nets, store = (setting.make_model(), setting.make_model()), setting.store
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1)).numpy()  # of epoch 1
    images, masks = (torch.from_numpy(part[order]) for part in (store.images, store.masks))
    loops.equal_step(nets[0], setting)(to_input(images), masks.unsqueeze(1).float())
    next(ours.train(nets[1], store, np.arange(4), device=CPU, precision="fp32", batch_size=4))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.study
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_peers_score_like_the_project(drawn):
    (pred, ref), *_ = scoring.make_pairs(drawn, 2)
    expected = scoring.by_project(pred, ref)
    pytest.importorskip("monai")
    np.testing.assert_allclose(scoring.by_monai(pred, ref), expected, rtol=1e-5)
    pytest.importorskip("torchmetrics")
    found = scoring.by_torchmetrics("dice_score", pred, ref)
    assert found == pytest.approx(expected[0], rel=1e-5)


def test_the_model_with_given_logits_returns_its_masks(drawn, tmp_path):
    score, only_predict = scoring.whole_case(drawn, tmp_path / "store", 3, SIZE)
    score()  # raises an error if a probability map has no case
    masks = open_store(tmp_path / "store").masks > 0
    assert 0.4 < dice(only_predict() > 0.5, masks) < 1  # moved by a few of 64 px


def test_the_page_says_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "describe", lambda: MACHINE)
    bench.save("training", TRAINING, 61, tmp_path, "python benchmarks/bench.py")
    text = (tmp_path / "README.md").read_text("utf-8")
    # 10 frames/s x 5e10 operations over 1e12 a second
    assert "| bf16 | 10.0 (9.80–10.2) |  | 50% | 410 |" in text
    assert "| the reported loop | fp32 | 5.00 (5.00–5.00) | 2.00 (1.96–2.04) | 50% | – |" in text
    assert "- met: rate over the reported loop's, at least 1.8; reached 2.00." in text
    assert "- not measured: rate over MONAI's, as documented, above 1." in text
    # a machine measured later, with the goals of a GPU, comes first
    gpu = MACHINE | {"slug": "new", "gpu": "G1", "gpu_memory_gib": 80, "cuda": "13.0"}
    monkeypatch.setattr(page, "describe", lambda: gpu)
    about = {"date": "2999-01-01", "command": "", "versions": {"torch": "9"}}
    monkeypatch.setattr(page, "circumstances", lambda command: about)
    bench.save("training", TRAINING, 5, tmp_path, "")
    text = (tmp_path / "README.md").read_text("utf-8")
    assert re.findall(r"(?m)^## .*", text) == ["## G1, Toy", "## Toy"]
    assert "- **not met**: rate over the reported loop's, at least 3; reached 2.00." in text


def test_the_readmes_quote_what_was_measured():
    measurements = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for file, part in (("README.md", "speed"), ("results/reference/README.md", "bits")):
        text = (ROOT / file).read_text("utf-8")
        quoted = text.split(f"<!-- {part} -->")[1].split(f"<!-- /{part} -->")[0]
        figures = re.findall(r"\d+\.\d+", quoted)
        assert len(figures) >= 3
        assert [figure for figure in figures if figure not in measurements] == []


def test_the_readme_says_what_was_measured_on_gpus(tmp_path):
    readme, folder = (ROOT / "README.md").read_text("utf-8"), ROOT / "benchmarks" / "results"
    assert page.with_gpus(readme, folder) == readme
    rates = {"project": [600.0], "reported": [150.0]}
    rows = [{"model": name, "epochs": 5, "seconds": 10.0} for name in gpu.NETWORKS]
    found = {"how": gpu.FULL, "parts": {"rate": {"rates": rates}, "fullsize": {"rows": rows}}}
    about = {"machine": {"gpu": "G1"}, "sections": {"gpu": {"result": found}}}
    (tmp_path / "gpu-toy.json").write_text(json.dumps(about))
    text = " ".join(page.with_gpus(readme, tmp_path).split())
    assert page.NO_GPU not in text
    assert "On G1, U-Net at full width trains 4.00 times as fast as the reported loop" in text
    assert "take 150 s together" in text  # 5 of 25 epochs


def test_the_page_is_made_of_the_committed_results_by_sections_that_can_be_measured():
    folder = ROOT / "benchmarks"
    assert page.render(folder / "results") == (folder / "README.md").read_text("utf-8")
    for name in page.SECTIONS:
        section = importlib.import_module(name)
        assert all(callable(getattr(section, part)) for part in ("measure", "show", "goals"))


def seen_run(path: Path, logits: list, *, dice: float = 0.5, weights: str = "w") -> Path:
    """A run as `bits.look` writes it, with logits of two frames of 2 x 2 px."""
    about = {"weights": weights, "scores": f"{dice}", "dice": dice, "threshold": 0.5}
    write_file(path.with_suffix(".json"), json.dumps(about))
    np.save(path.with_suffix(".npy"), np.array(logits, np.float32).reshape(2, 2, 2))
    return path


def test_the_distance_of_two_runs(tmp_path):
    logits = [1, -1, 2, -2, 3, -3, 0.25, -0.25]
    before = seen_run(tmp_path / "demo" / "unet-0", logits)
    again = seen_run(tmp_path / "again" / "unet-0", logits)
    assert bits.apart(before, again) == {"same": True, "pixels": 0.0, "dice": 0.0, "logit": 0.0}
    assert not bits.apart(before, seen_run(again, logits, weights="others"))["same"]
    moved = seen_run(again, [*logits[:6], -0.5, -0.25], dice=0.375)  # over the threshold: 1 of 8
    expected = {"same": False, "pixels": 0.125, "dice": -0.125, "logit": 0.75}
    assert bits.apart(before, moved) == expected


@pytest.mark.study
def test_every_part_of_the_gpu_section_gives_results_that_the_page_shows(drawn, monkeypatch):
    monkeypatch.setattr(gpu, "DRAWN", lambda **_: drawn)
    found = {"how": HOW, "parts": {}}
    for name in ("correctness", "rate", "fullsize", "small"):
        for part in gpu.PARTS[name][0](HOW | {"until": time.time()}):
            found["parts"][name] = part
            text = gpu.show(json.loads(json.dumps(found)))  # after each result
    rows = found["parts"]["correctness"]["rows"]
    assert [row["its Dice"] >= 0 for row in rows] == [True] * 9
    assert all(row["weights"] == 0 for row in rows[:3]), "fp32 on a CPU against fp32 on a CPU"
    assert all(row["weights"] > 0 for row in rows[3:])
    assert found["parts"]["rate"]["rates"].keys() == set(training.usable())
    assert [row["epochs"] for row in found["parts"]["fullsize"]["rows"]] == [1, 1, 1]
    assert text.count("failed:") == 5, "on a CPU there are no CUDA graphs"
    assert "| unet | bf16 |" in text
    assert "| segnet | 1 |" in text


@pytest.mark.slow
def test_make_gpu_runs_whole_at_tiny_sizes(tmp_path):
    words = ["SIZE=tiny", "SECONDS=9000", f"PYTHON={sys.executable}", f"INTO={tmp_path}"]
    done = subprocess.run(["make", "gpu", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").glob("gpu-*.json")
    found = json.loads(file.read_text("utf-8"))["sections"]["gpu"]["result"]
    assert found["parts"].keys() == gpu.PARTS.keys()
    assert found["parts"]["resume"]["apart"] == 0
    assert found["parts"]["resume"]["kept"] > 0


@pytest.mark.study
def test_what_was_measured_is_there_when_the_machine_is_taken_away(tmp_path):
    words = [sys.executable, ROOT / "benchmarks" / "bench.py", "gpu", "--quick", "--out", tmp_path]
    process = subprocess.Popen([*words, "--cache", tmp_path], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    while not (files := [*tmp_path.glob("results/gpu-*.json")]):
        assert process.poll() is None, "it ended without a result"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = json.loads(files[0].read_text("utf-8"))["sections"]["gpu"]["result"]
    first = found["parts"]["correctness"]["rows"][0]
    assert (first["model"], first["way"], first["first loss"]) == ("unet", "fp32", 0)


def ends(tmp_path, monkeypatch, code: str, seconds: float = 600) -> dict:
    """The page's parts of a section whose only part runs this code."""
    program = tmp_path / "part.py"
    program.write_text(code)
    monkeypatch.setattr(gpu, "__file__", str(program))
    monkeypatch.setattr(gpu, "PARTS", {"small": (None, 1.0)})
    args = SimpleNamespace(quick=True, device=CPU, seconds=seconds)
    return [each["parts"]["small"] for each in gpu.measure(args)]


def test_a_part_of_the_gpu_section_that_fails_or_is_cut_is_a_sentence(tmp_path, monkeypatch):
    report = "print('{\"rows\": [1]}', flush=True)\n"
    first, last = ends(tmp_path, monkeypatch, f"{report}raise OSError('no disk')")
    assert first == {"rows": [1]}
    assert re.fullmatch(r"ended with 1 after \d+ s: OSError: no disk", last.pop("stopped"))
    assert last == first
    *_, last = ends(tmp_path, monkeypatch, "import time\ntime.sleep(900)", seconds=0.0)
    assert re.fullmatch(r"cut after \d+ s, at the end of its share.*", last["stopped"])


def test_an_error_within_a_part_keeps_what_it_has_found(monkeypatch, capsys):
    def part(how):
        yield {"rows": [how["width"]]}
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(gpu, "PARTS", {"rate": (part, 1.0)})
    gpu.main("rate", json.dumps({"width": 4}))
    *_, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last == {"rows": [4], "stopped": "RuntimeError: CUDA out of memory"}
    text = gpu.show({"how": HOW, "parts": {"small": {"stopped": last["stopped"]}}})
    assert text.endswith("Not to its end: RuntimeError: CUDA out of memory.")
