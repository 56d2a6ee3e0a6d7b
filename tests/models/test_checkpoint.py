import errno
import os
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from fuzzing import attempt, damaged

from thyroid_lib.models import checkpoint

SIDES = np.array(["train", "test"])


def test_key_follows_data_split_and_parameters():
    same = {"data": "abc", "sides": SIDES, "parameters": {"lr": 1e-4, "threads": 1}}
    same |= {"training_version": 1, "architecture": {}}
    others = [{}, {"data": "abd"}, {"sides": SIDES[::-1]}, {"architecture": {"code": "abc"}}]
    others += [{"parameters": {"lr": lr, "threads": n}} for lr, n in ((1e-3, 1), (1e-4, 2))]
    others += [{"training_version": 2}, {}]
    assert len({checkpoint.run_key(**same | changed) for changed in others}) == 7


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":  # one bit of a weight, which torch itself reads without a word
        content[content.index(np.ones(1000, np.float32).tobytes()) + 2001] ^= 1
    cut, head = content[: len(content) // 2], bytes(64) + content[64:]
    path.write_bytes({"cut": cut, "head": head, "flip": content, "empty": b""}[how])


@pytest.mark.parametrize("how", ["cut", "head", "flip", "empty"])
def test_the_newest_undamaged_state_of_its_own_key_is_resumed(tmp_path, how, capsys):
    for epoch in (1, 2, 3):
        checkpoint.keep(tmp_path, {"key": "k", "epoch": epoch, "x": torch.ones(1000)})
    assert len(list(tmp_path.iterdir())) == 2  # never more
    state = checkpoint.resume(tmp_path, key="k")
    assert (state["epoch"], state["x"].sum()) == (3, 1000)
    damage(tmp_path / "checkpoint.pt", how)
    assert checkpoint.resume(tmp_path, key="k")["epoch"] == 2
    said = capsys.readouterr().err
    assert said.startswith(f"note: checkpoint.pt of {tmp_path.name} is damaged (")
    assert not (tmp_path / "checkpoint.pt").exists()
    assert checkpoint.resume(tmp_path, key="another") is None
    damage(tmp_path / "checkpoint-previous.pt", how)
    assert checkpoint.resume(tmp_path, key="k") is None
    checkpoint.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path, counts):
    state = {"key": "k", "x": torch.arange(60.0), "history": [{"epoch": 1, "dice": 0.5}]}
    path = checkpoint.save(tmp_path / "checkpoint.pt", state)
    content = path.read_bytes()
    for how, broken in damaged(0, content, 300):
        if how == "flip":
            path.write_bytes(broken)
            read, refused = attempt(counts, checkpoint.read, path)
            if not refused:
                assert torch.equal(read.pop("x"), state["x"])
                assert read == {name: state[name] for name in ("key", "history")}
    assert counts["files refused"] > 100


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_cannot_be_read_now_is_no_damage_and_stays(tmp_path, monkeypatch, error):
    path = checkpoint.save(tmp_path / "model.pt", {"key": "k"})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(type(error)):
            checkpoint.load(path, key="k")
    assert checkpoint.load(path, key="k") == {"key": "k"}


def test_a_disk_that_fills_up_costs_the_newest_state_alone(tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    for epoch in (1, 2):
        checkpoint.keep(tmp_path, {"key": "k", "epoch": epoch})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"disk is full: free some space; .*checkpoint\.pt"):
        checkpoint.keep(tmp_path, {"key": "k", "epoch": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-previous.pt"]
    assert checkpoint.resume(tmp_path, key="k")["epoch"] == 2
