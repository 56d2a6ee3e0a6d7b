"""Locks end with their process, however that ends."""

import os
import subprocess
import sys
import time

from thyroid_lib.files import locks


def test_each_run_takes_a_gpu_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert locks.visible_gpus() == ["4", "7"]
    name = "3-train-run"
    first = locks.claim_gpu(name)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    second = locks.claim_gpu(name)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: second.close())
    third = locks.claim_gpu(name)  # both are taken: it waits until one is free
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert "3-train-run: other runs hold GPU 4, 7; waiting" in capsys.readouterr().err
    for lock in (first, third):
        lock.close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert locks.visible_gpus() == []
    assert locks.claim_gpu(name) is None


HOLDER = """
import sys, time
from thyroid_lib.files import locks
held = locks.take(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert locks.take(tmp_path / "lock") is None
        holder.kill()
    with locks.take(tmp_path / "lock") as held:
        assert held is not None
        assert locks.take(tmp_path / "lock") is None
    locks.take(tmp_path / "lock").close()


def test_alone_waits_and_takes_half_written_files_away(tmp_path, capsys):
    (tmp_path / "a.csv.12.partial").write_text("half")
    (tmp_path / "a.csv").write_text("whole")
    began = time.monotonic()
    code = (
        "import sys, time; from thyroid_lib.files.locks import folder_lock\n"
        "with folder_lock(sys.argv[1]): print('in', flush=True); time.sleep(1.5)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "in\n"
        with locks.folder_lock(tmp_path):
            assert first.wait(5) == 0
    assert time.monotonic() - began > 1.5
    assert "another process is at it; waiting" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_disk_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    import fcntl

    def none_here(lock, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none_here)
    locks.take(tmp_path / "lock").close()
