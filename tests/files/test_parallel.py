"""A map over processes: order, memory, errors, and the end of the workers."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tiny_study import processes_with, wait_until

from thyroid_lib.files import parallel
from thyroid_lib.files.parallel import count_workers, map_in_order

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems get threads")


def square(item):
    time.sleep(0.01 * (item % 3 == 0))  # later results are ready first
    return item**2


def refuse(item, bad):
    if item == bad:
        raise KeyError(f"item {item}")
    return item


def die(item):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order(workers):
    assert list(map_in_order(square, range(50), workers)) == [item**2 for item in range(50)]
    assert list(map_in_order(square, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_few_wait_in_memory(workers):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    for given, _ in enumerate(map_in_order(square, items(), workers), start=1):
        assert len(taken) - given <= parallel.AHEAD * workers + 1
    assert given == 100


@pytest.mark.parametrize("workers", [1, 2])
def test_what_work_raises_is_raised(workers):
    with pytest.raises(KeyError, match="item 7"):
        list(map_in_order(partial(refuse, bad=7), range(50), workers))


@pytest.mark.study
@linux
def test_work_is_done_in_other_processes_of_which_a_killed_one_is_named():
    assert os.getpid() not in set(map_in_order(pid_and_wait, range(4), 2))
    with pytest.raises(RuntimeError, match="a worker process was killed"):
        list(map_in_order(die, range(9), 2))


@pytest.mark.study
@linux
def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys; sys.path += ['tests', 'tests/files']; import test_parallel as t\n"
        "for pid in t.map_in_order(t.pid_and_wait, range(9), 2): print(pid, flush=True)"
    )
    command, variables = [sys.executable, "-c", code], os.environ | {"MARK": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, text=True, env=variables) as parent:
        assert parent.stdout.readline()
        parent.kill()
    wait_until(lambda: not processes_with("MARK", str(tmp_path)), "the workers end", 60)


def pid_and_wait(item):
    time.sleep(0.3)
    return os.getpid()


def test_few_items_need_no_workers(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 16)
    assert [count_workers(n) for n in (0, 1, 255, 256, 400, 10**6)] == [1, 1, 1, 2, 3, 8]
    assert count_workers(10**6, limit=2) == 2
    assert count_workers(10**6, limit=64) == 16
