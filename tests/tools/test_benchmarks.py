"""The benchmarks measure what they say, on a few frames; their page says what was measured."""

import getpass
import json
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bench
import bits
import cost
import data
import loops
import machine
import page
import peers
import preprocessing
import scoring
import timing
import training
from thyroid_lib.data import frames
from thyroid_lib.data.store import open_store
from thyroid_lib.evaluate.metrics import dice

ROOT = Path(__file__).parents[2]
SIZE = 64
MACHINE = {
    "slug": "toy-2-cores", "processor": "Toy", "instructions": "AVX2", "cores": 2, "threads": 2,
    "memory_gib": 8, "system": "Linux",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return data.draw_frames(tmp_path_factory.mktemp("bench"), sweeps=3, frames=2)


@pytest.fixture(scope="module")
def setting(drawn) -> loops.Setting:
    store = training.open_built(drawn, SIZE)
    return loops.Setting(drawn, store, torch.device("cpu"), "fp32", width=2, size=SIZE, batch=4)


def test_frames_are_drawn_once_and_whole(drawn, monkeypatch):
    assert len(data.list_pairs(drawn)) == 6
    assert len((drawn / "groups.csv").read_text(encoding="utf-8").split()) == 7
    monkeypatch.setattr(data, "_draw_sweep", None)  # drawing again would fail
    assert data.draw_frames(drawn.parent, sweeps=3, frames=2) == drawn
    many = data.link_frames(drawn, 3)
    assert len(data.list_pairs(many)) == 18
    assert len(set((many / "groups.csv").read_text(encoding="utf-8").split())) == 19


def test_turns_rotate_and_ratios_pair():
    order = []
    turns = {name: (lambda name=name: order.append(name) or len(order)) for name in "abc"}
    answers = timing.take_turns(turns, 3)
    assert "".join(order) == "abcbcacab"
    assert answers == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert timing.ratios([4, 9], [2, 3]) == [2, 3]
    assert timing.spread([1.0, 2.0, 4.0]) == "2.00 (1.00–4.00)"
    assert [timing.figure(value) for value in (0.01234, 1.934, 99.96, 1234.5)] == [
        "0.0123", "1.93", "100", "1234",
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_memory_of_a_child_and_its_workers_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "HERE", tmp_path)
    # 64 MiB in the parent, which a fork shares, and 32 MiB of the fork's own
    script = (
        "import os, time\nheld = b'1' * 2**26\nif os.fork() == 0:\n    own = b'1' * 2**25\n"
        "    time.sleep(0.5)\n    os._exit(0)\nos.wait()\nprint('{\"done\": 1}')\n"
    )
    (tmp_path / "toy.py").write_text(script, encoding="utf-8")
    answer = timing.run_child("toy")
    assert answer["done"] == 1
    assert 96 <= answer["peak_mib"] <= 125


def test_preprocessing_makes_equal_arrays_both_ways(drawn, tmp_path):
    for name, mend in preprocessing.MENDS.items():
        preprocessing.make_plainly(drawn, tmp_path / name, SIZE, mend)
        store = preprocessing.build(drawn, tmp_path / f"{name}-store", SIZE, mend)
        preprocessing.check_equal(tmp_path / name, store)
        assert bool(store.mended["text"]) == bool(mend)  # there was something to mend
    masks = np.load(tmp_path / name / "masks.npy")
    masks[3, 5, 5] ^= 1
    np.save(tmp_path / name / "masks.npy", masks)
    with pytest.raises(RuntimeError, match="masks: the plain loop and build_store"):
        preprocessing.check_equal(tmp_path / name, store)


def test_every_loop_reads_the_same_frames(setting):
    store = setting.store
    ours = store.images / np.float32(255)
    for dataset in (
        loops.ReportedFrames(setting.frames, SIZE), peers.SmpFrames(setting.frames, SIZE)
    ):  # fmt: skip
        for row in range(len(dataset)):
            image, mask = (np.asarray(part) for part in parts_of(dataset[row]))
            scale = 255 if image.dtype == np.uint8 else 1
            np.testing.assert_allclose(image[0] / np.float32(scale), ours[row], atol=1e-6)
            # the store has burnt-in text mended, and the three resize a mask in another order
            assert np.mean((mask[0] > 0.5) != (store.masks[row] > 0)) < 0.02


def parts_of(item) -> tuple:
    return tuple(item.values()) if isinstance(item, dict) else item


def test_monais_cache_holds_the_same_frames(setting):
    pytest.importorskip("monai")
    peers.filled.clear()
    cached = peers.monai_cache(setting)
    for row in range(len(cached)):
        image, mask = (cached[row][key].numpy()[0].T for key in ("image", "mask"))  # it turns them
        ours = setting.store.images[row] / np.float32(255)
        ours = (ours - ours.min()) / (ours.max() - ours.min())
        assert np.abs(image - ours).mean() < 0.06  # its resize is not antialiased
        assert np.mean((mask > 0.5) != (setting.store.masks[row] > 0)) < 0.02
    peers.filled.clear()


@pytest.mark.parametrize("name", training.usable())
def test_every_loop_trains(setting, name):
    run = training.LOOPS[name][0](setting)
    assert run(2) == 8


def test_the_bare_step_is_the_projects(setting):
    """From the same weights, one step of each on the same batch ends in the same weights."""
    from thyroid_lib.models import to_input

    rows = torch.arange(4)
    images = torch.from_numpy(setting.store.images[:4])
    masks = torch.from_numpy(setting.store.masks[:4])
    nets = setting.make_model(), setting.make_model()
    step = loops.equal_step(nets[0], setting)
    order = rows[torch.randperm(4, generator=torch.Generator().manual_seed(1))]
    step(to_input(images[order]), masks[order].unsqueeze(1).float())
    optimiser = torch.optim.Adam(nets[1].parameters(), lr=1e-4, fused=True)
    from thyroid_lib.train.recipe import train_epoch

    train_epoch(nets[1], optimiser, images, masks, rows, batch_size=4, seed=0, epoch=1)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_libraries_score_as_the_project(drawn):
    pytest.importorskip("monai")
    (pred, ref), *_ = scoring.make_pairs(drawn, 2)
    ours = scoring.by_project(pred, ref)
    np.testing.assert_allclose(scoring.by_monai(pred, ref), ours, rtol=1e-5)
    pytest.importorskip("torchmetrics")
    assert scoring.torchmetrics_dice(pred, ref) == pytest.approx(ours[0], rel=1e-5)


def test_the_stub_model_gives_its_masks_back(drawn, tmp_path):
    score, only_predict = scoring.whole_case(drawn, tmp_path / "store", 3, SIZE)
    score()  # raises if a probability map has no case
    masks = open_store(tmp_path / "store").masks > 0
    assert 0.4 < dice(only_predict() > 0.5, masks) < 1  # moved by a few of 64 px


def result(section: str) -> dict:
    """A section's result as it would be measured, small and with known ratios."""
    rates = {"bare": [10.0, 10.0], "project": [9.8, 10.2], "reported": [5.0, 5.0]}
    if section == "training":
        return {
            "how": {"width": 16, "size": 256, "batch": 16, "steps": 8, "repeats": 2},
            "precision": "bf16", "rates": rates, "peaks": {"bf16": 1e12, "fp32": 5e11},
            "operations": 5e10, "frames": 3585, "cache_seconds": None,
            "memory": {"bare": 400, "project": 410.4, "reported": None},
        }  # fmt: skip
    took = {"plain": [3.0, 3.0], "store": [2.0, 2.0]}
    return {
        "seconds": {preprocessing.DEFAULT: took},
        "up_to_date": [0.5],
        "frames": 9,
        "size": 64,
        "workers": 1,
    }


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(machine, "describe", lambda: MACHINE)
    for section in ("training", "preprocessing"):
        bench.save(section, result(section), 61, tmp_path, "python benchmarks/bench.py")
    return tmp_path


def test_the_page_says_what_was_measured(measured):
    text = (measured / "README.md").read_text(encoding="utf-8")
    assert "## Toy\n\n2 cores (AVX2), 8 GiB of memory, Linux; PyTorch on 2 threads." in text
    # 10 frames/s x 5e10 operations over 1e12 a second
    assert "| bf16 | 10.0 (9.80–10.2) |  | 50% | 410 |" in text
    assert "| the reported loop | fp32 | 5.00 (5.00–5.00) | 2.00 (1.96–2.04) | 50% | – |" in text
    assert "- met: rate over the reported loop's, at least 1.8; reached 2.00." in text
    assert "- not measured: rate over MONAI's, as documented, above 1." in text
    assert "- **not met**: rate over the plain loop's, by default, at least 1.7" in text
    assert "at least 3" not in text  # that is asked of a GPU
    assert text.index("### Training") < text.index("### Preprocessing")


def test_a_section_alone_keeps_the_others_and_newer_machines_come_first(measured, monkeypatch):
    other = MACHINE | {"slug": "new", "processor": "New", "gpu": "G1", "gpu_memory_gib": 80}
    monkeypatch.setattr(machine, "describe", lambda: other | {"cuda": "13.0"})
    about = {"date": "2999-01-01", "command": "", "versions": {"torch": "9"}}
    monkeypatch.setattr(machine, "circumstances", lambda command: about)
    bench.save("training", result("training"), 5, measured, "")
    text = (measured / "README.md").read_text(encoding="utf-8")
    assert text.index("## G1, New") < text.index("## Toy")
    assert "- **not met**: rate over the reported loop's, at least 3; reached 2.00." in text
    kept = json.loads((measured / "results" / "toy-2-cores.json").read_text(encoding="utf-8"))
    assert set(kept["sections"]) == {"training", "preprocessing"}


@pytest.mark.parametrize(
    ("file", "part"), [("README.md", "speed"), ("results/reference/README.md", "bits")]
)
def test_the_readmes_quote_what_was_measured(file, part):
    text = (ROOT / file).read_text(encoding="utf-8")
    quoted = text.split(f"<!-- {part} -->")[1].split(f"<!-- /{part} -->")[0]
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d+", quoted)
    assert len(figures) >= 3
    assert [figure for figure in figures if figure not in page] == []


def test_the_page_is_made_of_the_committed_results():
    folder = ROOT / "benchmarks"
    assert page.render(folder / "results", bench.judge) == (folder / "README.md").read_text("utf-8")


def test_no_file_tells_whose_machine_it_was():
    about = machine.describe()
    assert set(about) >= set(MACHINE)
    told = json.dumps([about, machine.circumstances("python benchmarks/bench.py")])
    assert str(ROOT) not in told
    assert sys.executable not in told
    assert platform.node() not in told
    assert getpass.getuser() not in json.dumps(about).split()


@pytest.mark.parametrize("section", list(bench.GOALS))
def test_every_goal_names_something_that_is_measured(section):
    source = (ROOT / "benchmarks" / f"{section}.py").read_text(encoding="utf-8")
    for name, where, sign, _, _ in bench.GOALS[section]:
        words = name.replace("monai", "{peer}").replace("smp", "{peer}")
        words = words.replace("memory, preprocess", "memory, {name}")
        assert f'"{words.replace("memory, train", "memory, {name}")}"' in source
        assert where in ("any", "cpu", "gpu")
        assert bench.is_met(1.0, sign, 1.0) == (sign in (">=", "<="))


def test_the_quick_form_of_a_cheap_section(drawn):
    asked = SimpleNamespace(device=torch.device("cpu"), quick=True, frames=drawn)
    found = cost.measure(asked)
    assert {row["model"] for row in found["rows"]} == set(cost.MODELS)
    assert all(row["rate"] > 0 for row in found["rows"])
    assert "| 4 | 32 |" in cost.show(found)
    assert set(page.SECTIONS) >= set(bench.GOALS)


def seen_run(place: Path, logits: list, *, dice: float = 0.5, weights: str = "w") -> Path:
    """What `bits.look` leaves of a run, made by hand; logits of two frames of 2 x 2 px."""
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place.with_suffix(".npy"), np.array(logits, np.float32).reshape(2, 2, 2))
    about = {"weights": weights, "scores": f"{dice}", "dice": dice, "threshold": 0.5}
    place.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return place


def test_how_far_two_runs_are_apart(tmp_path):
    logits = [1, -1, 2, -2, 3, -3, 0.25, -0.25]
    before = seen_run(tmp_path / "demo" / "unet-0", logits)
    again = seen_run(tmp_path / "again" / "unet-0", logits)
    equal = {"same": True, "pixels": 0.0, "dice": 0.0, "logit": 0.0}
    assert bits.apart(before, again) == equal
    assert not bits.apart(before, seen_run(again, logits, weights="others"))["same"]
    moved = seen_run(again, [*logits[:6], -0.5, -0.25], dice=0.375)  # over the threshold: 1 of 8
    assert bits.apart(before, moved) == {
        "same": False, "pixels": 0.125, "dice": -0.125, "logit": 0.75,
    }  # fmt: skip
    nearly = seen_run(again, [*logits[:7], np.nextafter(np.float32(-0.25), np.float32(0))])
    assert not bits.apart(before, nearly)["same"]
    assert bits.apart(before, nearly)["pixels"] == 0


def test_the_table_of_bits_says_yes_no_and_not_measured():
    equal = {"run": "unet-0", "same": True, "pixels": 0.0, "dice": 0.0, "logit": 0.0}
    apart = {"run": "unet-1", "same": False, "pixels": 0.02, "dice": -0.004, "logit": 1.5}
    rows = [
        {"title": "nothing", "must": True, "runs": [equal, equal]},
        {"title": "kill", "must": True, "runs": [equal, apart]},
        {"title": "threads", "must": False, "runs": [apart]},
        {"title": bits.OTHER_SEED, "must": False, "runs": [apart | {"pixels": 0.04}]},
        {"title": "GPU", "must": True, "missing": "no GPU here"},
    ]
    how = {"width": 8, "size": 64, "epochs": 20, "batch_size": 6, "lr": 0.006, "models": ["unet"]}
    found = {"rows": rows, "how": how, "instructions": {"demo": "AVX2"}, "torch": "2.13.0"}
    lines = bits.show(found).splitlines()
    assert lines[0].startswith("torch 2.13.0; unet of width 8 at 64×64 px, 20 epochs, batch 6")
    assert lines[-7:] == [
        "| nothing | yes, 2 of 2 | 0 | 0 | 0 | 0 |",
        "| kill | not always, 1 of 2 | 1.0 (0–2.0)% | 0.0020 (0–0.0040) | −0.0020 | 0.75 (0–1.5) |",
        "| threads | no, 0 of 1 | 2.0% | 0.0040 | −0.0040 | 1.5 |",
        "| for comparison: another seed | no, 0 of 1 | 4.0% | 0.0040 | – | 1.5 |",
        "| GPU | not measured: no GPU here | | | | |",
        "",
        "The median of pixels that differ, over that of another seed: kill (0.25); threads (0.50).",
    ]
    assert bits.reached(found) == {"same bits": 0.75}
    (_, goal) = bench.judge("bits", bits.reached(found), {})[1:]
    assert goal.startswith("- **not met**: share of the runs that must repeat to the bit")


def test_every_row_of_bits_names_two_ways_that_are_trained():
    ways = [name for process in bits.PROCESSES for name in process.ways]
    assert len(set(ways)) == len(ways)
    assert {name for _, *pair, _ in bits.ROWS for name in pair} == set(ways)
    for process in bits.PROCESSES:
        for way in process.ways.values():
            assert not way.weights or way.weights in process.ways


@pytest.mark.slow
def test_the_quick_form_of_bits_trains_kills_and_compares():
    titles = {
        ("demo", "same process"): True,
        ("demo", "killed"): True,
        ("demo", "two workers"): True,
        ("demo", "two threads"): None,  # as the machine has it
    }
    rows = tuple(row for row in bits.ROWS if row[1:3] in titles)
    found = bits.measure(SimpleNamespace(quick=True), rows=rows)
    for row, (_, before, after, _) in zip(found["rows"], rows, strict=False):
        names = {each["run"] for each in row["runs"]}
        assert {name.split("-")[0] for name in names} == {"unet", "segnet", "resunet"}
        if titles[before, after] is not None:
            assert all(each["same"] for each in row["runs"]), row["title"]
    others = found["rows"][-1]
    assert others["title"] == bits.OTHER_SEED
    assert not any(each["same"] for each in others["runs"])
    assert bits.reached(found) == {"same bits": 1.0}
    assert "| threads: 2 for 1 | " in bits.show(found)


def test_text_is_taken_out_as_the_library_does(drawn):
    rng = np.random.default_rng(0)
    for _, path in data.list_pairs(drawn):
        mask = frames.read_mask(path)
        mask[2:6, rng.integers(2, 30)] = True  # one more letter
        np.testing.assert_array_equal(preprocessing.take_out_text(mask), frames.mend_text(mask)[0])
