"""The short form of `make torture` on a smaller study: three kills, and what costs little more.

First what finds losses is tested: a harness that sees none proves nothing.
"""

import signal
import subprocess
import sys
from itertools import pairwise

import pytest

pytest.importorskip("snakemake")
if sys.platform != "linux":
    pytest.skip("processes are looked for in /proc", allow_module_level=True)

from faults import assert_resumed, epochs_kept, flip, second_start, steps_of, truncate
from kills import Deck, kill_at_random
from tiny_study import ROOT
from tortured import Bench, assert_same, line_with

pytestmark = pytest.mark.study
SHORT = {
    "phantom_sweeps": 4, "phantom_frames": 6, "models": "[unet]", "protocols": "[grouped]",
    "epochs": 40, "batch_size": 6, "resamples": 200,
}  # fmt: skip
RUN = "runs/unet-grouped-fold0-seed0"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("torture"), SHORT)
    bench.run_undisturbed()
    yield bench
    for study in (bench.undisturbed, *bench.copies):
        study.remove()


LOSSES = {
    "a bit of the weights": lambda top: flip(top / RUN / "model.pt"),
    "the end of a table": lambda top: truncate(top / "compare" / "differences.csv"),
    "the end of the report": lambda top: truncate(top / "report.html"),
    "a figure": lambda top: (top / "compare" / "frames.png").unlink(),
    "a file more": lambda top: (top / "store" / "more.npy").touch(),
    "half a file": lambda top: (top / "store" / "index.csv.123.partial").touch(),
    "a checkpoint": lambda top: (top / RUN / "checkpoint.pt").touch(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_seen(loss, bench):
    study = bench.finished()
    assert assert_same(study, bench.undisturbed)[0] > 40
    LOSSES[loss](study.results)
    with pytest.raises(AssertionError):
        assert_same(study, bench.undisturbed)


def test_the_long_form_starts():
    command = [sys.executable, ROOT / "tests" / "torture.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--kills N" in done.stdout


def test_a_deck_deals_every_kind_to_every_part_of_a_step():
    steps = ["1-preprocess", "2-audit", "3-train-a", "4-compare", "report"]
    deck = Deck(("workflow", "tree", "runner", "kernel", "worker"), steps, seed=1)
    dealt = [(step, deck.kind(step), deck.moment(step)) for _ in range(8) for step in steps]
    for step in steps:
        moments = sorted(moment for at, _, moment in dealt if at == step)
        assert max(after - before for before, after in pairwise(moments)) < 0.3
    kinds = {step: {kind for at, kind, _ in dealt if at == step} for step in steps}
    assert kinds["3-train-a"] == {"workflow", "tree", "runner", "kernel"}
    assert kinds["1-preprocess"] > {"worker"}


def test_three_kills_lose_nothing(bench):
    kills = kill_at_random(bench, 3, seed=1, kinds=("workflow", "tree", "kernel"))
    assert {kind for _, kind, _ in kills} == {"workflow", "tree", "kernel"}


def test_one_study_at_a_time_which_stops_at_a_signal_and_repairs_its_files(bench):
    study, (run,) = bench.prepared(), bench.undisturbed.runs
    study.start()
    study.wait_for(study.training)
    second_start(study)
    study.workflow.send_signal(signal.SIGTERM)
    study.wait_until_alone()
    code, said = study.end()
    if code:  # else it was finished before the second start was
        line_with(said, run)  # and no traceback
        assert epochs_kept(study, run) >= 1
    bench.restart(study)
    assert_resumed(study, run)
    flip(study.results / "compare" / "summary.csv")
    said = study.finish()
    line_with(said, "note: ", "compare/summary.csv")
    assert steps_of(said) == {"compare": 1, "report": 1}
    (study.results / "compare" / "summary.csv.damaged").unlink()
    bench.compare(study)
