"""The short form of `make torture` on a smaller study: three kills, and what costs little more."""

import signal
import sys

import pytest

pytest.importorskip("snakemake")
if sys.platform != "linux":
    pytest.skip("processes are found and stopped as on Linux", allow_module_level=True)

from faults import assert_resumed, epochs_kept, second_start, truncate
from kills import kill_at_random
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
    "report.html differs": lambda top: truncate(top / "report.html"),
    "index.csv.123.partial": lambda top: (top / "store" / "index.csv.123.partial").touch(),
    "checkpoint.pt": lambda top: (top / RUN / "checkpoint.pt").touch(),
}


def test_every_loss_is_seen(bench):
    assert assert_same(bench.finished(), bench.undisturbed)[0] > 40
    for words, lose in LOSSES.items():
        study = bench.finished()
        lose(study.results)
        with pytest.raises(AssertionError, match=words):
            assert_same(study, bench.undisturbed)


def test_three_kills_lose_nothing(bench):
    kills = kill_at_random(bench, 3, seed=1, kinds=("workflow", "tree", "kernel"))
    assert len(kills) == 3  # of which kinds, a busy machine decides


def test_one_study_at_a_time_which_stops_at_a_signal(bench):
    study, (run,) = bench.prepared(), bench.undisturbed.runs
    study.start()
    study.wait_for(study.training)
    second_start(study)
    study.workflow.send_signal(signal.SIGTERM)
    study.wait_until_alone()
    code, said = study.end()
    if code:  # else it was finished before the second start was
        line_with(said, "start again and it goes on")  # and no traceback
        trained = (study.results / "runs" / run / "run.json").is_file()
        assert trained or epochs_kept(study, run) >= 1
    bench.restart(study)
    assert_resumed(study, run)
