"""The benchmarks measure what they say, on a few frames; their page says what was measured."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
import bits
import data
import loops
import ours
import page
import preprocessing
import scoring
import training
from thyroid_lib.data.store import open_store
from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.models import to_input

ROOT = Path(__file__).parents[2]
SIZE = 64
CPU = torch.device("cpu")
MACHINE = {
    "slug": "toy-2-cores", "processor": "Toy", "instructions": "AVX2", "cores": 2, "threads": 2,
    "memory_gib": 8, "system": "Linux",
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


@pytest.mark.study
@pytest.mark.parametrize("name", training.usable())
def test_every_loop_trains(setting, name):
    assert training.LOOPS[name][0](setting)(2) == 8


def test_the_bare_step_equals_the_projects(setting):
    nets, store = (setting.make_model(), setting.make_model()), setting.store
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1)).numpy()  # of epoch 1
    images, masks = (torch.from_numpy(part[order]) for part in (store.images, store.masks))
    loops.equal_step(nets[0], setting)(to_input(images), masks.unsqueeze(1).float())
    next(ours.train(nets[1], store, np.arange(4), device=CPU, precision="fp32", batch_size=4))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


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


TRAINING = {
    "how": {"width": 16, "size": 256, "batch": 16, "steps": 8, "repeats": 2},
    "rates": {"bare": [10.0, 10.0], "project": [9.8, 10.2], "reported": [5.0, 5.0]},
    "precision": "bf16", "peaks": {"bf16": 1e12, "fp32": 5e11},
    "operations": 5e10, "frames": 3585, "cache_seconds": None,
    "memory": {"bare": 400, "project": 410.4, "reported": None},
}  # fmt: skip


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


@pytest.mark.parametrize(
    ("file", "part"), [("README.md", "speed"), ("results/reference/README.md", "bits")]
)
def test_the_readmes_quote_what_was_measured(file, part):
    text = (ROOT / file).read_text("utf-8")
    quoted = text.split(f"<!-- {part} -->")[1].split(f"<!-- /{part} -->")[0]
    measurements = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    figures = re.findall(r"\d+\.\d+", quoted)
    assert len(figures) >= 3
    assert [figure for figure in figures if figure not in measurements] == []


def test_the_page_is_made_of_the_committed_results_by_sections_that_can_be_measured():
    folder = ROOT / "benchmarks"
    assert page.render(folder / "results") == (folder / "README.md").read_text("utf-8")
    for name in page.SECTIONS:
        section = importlib.import_module(name)
        assert all(callable(getattr(section, part)) for part in ("measure", "show", "goals"))


def seen_run(path: Path, logits: list, *, dice: float = 0.5, weights: str = "w") -> Path:
    """A run as `bits.look` writes it, with logits of two frames of 2 x 2 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), np.array(logits, np.float32).reshape(2, 2, 2))
    about = {"weights": weights, "scores": f"{dice}", "dice": dice, "threshold": 0.5}
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
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
