import numpy as np
import pytest
import torch

from thyroid_lib import checkpoint

LABELS = np.array(["train", "test"])


def key(**changed):
    asked = {"data": "abc", "labels": LABELS, "parameters": {"lr": 1e-4, "threads": 1}}
    return checkpoint.run_key(**(asked | changed))


def test_key_follows_data_split_and_parameters():
    assert key() == key()
    others = {
        key(data="abd"),
        key(labels=LABELS[::-1]),
        key(parameters={"lr": 1e-3, "threads": 1}),
        key(parameters={"lr": 1e-4, "threads": 2}),
    }
    assert len(others | {key()}) == 5


def test_state_comes_back_under_its_own_key_only(tmp_path):
    path = checkpoint.save(tmp_path / "run" / "checkpoint.pt", {"key": "k", "x": torch.ones(2)})
    assert torch.equal(checkpoint.load(path, key="k")["x"], torch.ones(2))
    assert checkpoint.load(path, key="other") is None
    assert checkpoint.load(tmp_path / "none.pt", key="k") is None
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "code"])
def test_a_broken_file_is_named_and_passed_over(tmp_path, damage):
    path = checkpoint.save(tmp_path / "checkpoint.pt", {"key": "k", "x": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[:64] = bytes(64)
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:  # a pickle that would run code when loaded without weights_only
        torch.save({"key": "k", "x": print}, path)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt of .* cannot be read"):
        assert checkpoint.load(path, key="k") is None
