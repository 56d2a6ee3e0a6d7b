"""Locks end with their process, however that ends."""

import errno
import fcntl
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from thyroid_lib.files import locks

HOLDER = """
import sys
from thyroid_lib.files import locks
with locks.{lock}:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_each_run_takes_a_gpu_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    held = []
    for expected in ("4", "7", "7"):  # at the third both are taken, until one is free
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        assert locks.visible_gpus() == ["4", "7"]
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: held[1].close())
        held.append(locks.claim_gpu("3-train-run"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    assert capsys.readouterr().err.count("3-train-run: other runs hold GPU 4, 7; waiting") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert locks.visible_gpus() == []
    assert locks.claim_gpu("3-train-run") is None


def holder(lock: str, *arguments) -> subprocess.Popen:
    """A process that holds a lock until it gets a line, or is killed."""
    command = [sys.executable, "-c", HOLDER.format(lock=lock), *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_ends_with_its_process(tmp_path):
    with holder("take(sys.argv[1])", tmp_path / "lock") as process:
        assert locks.take(tmp_path / "lock") is None
        process.kill()
    with locks.take(tmp_path / "lock") as held:
        assert held is not None
        assert locks.take(tmp_path / "lock") is None
        if not (pid := os.fork()):  # a worker that ends does not release its parent's lock
            try:
                held.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert locks.take(tmp_path / "lock") is None
    locks.take(tmp_path / "lock").close()


def test_a_folder_is_waited_for_and_swept(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.csv.12.partial").write_text("half")
    (tmp_path / "a.csv").write_text("whole")
    with holder("folder_lock(sys.argv[1])", tmp_path) as process:
        noted = locks.print_note

        def note_and_free(text):
            noted(text)
            process.stdin.write("\n")

        monkeypatch.setattr(locks, "print_note", note_and_free)
        with locks.folder_lock(tmp_path):
            assert "another process is at it; waiting" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_disk_without_locks_is_a_note(tmp_path, monkeypatch, capsys):
    for code in (errno.ENOSYS, errno.ENOLCK, errno.ENOLCK):  # the second one left nothing locked
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(code, os.strerror(code))))
        with locks.take(tmp_path / "lock"):
            assert "cannot be locked here" in capsys.readouterr().err


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        locks.take(tmp_path / "file" / "lock")
