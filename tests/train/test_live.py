"""Event files are read back as TensorBoard reads them; nothing else may depend on them."""

import importlib.util
import json
import os
import sys
from unittest.mock import Mock

import nbformat
import pytest
from conftest import SMALL
from nbclient import NotebookClient
from test_run import TABLES, happen_at, happen_once_kept, same_weights

from thyroid_lib.models import checkpoint
from thyroid_lib.study.tidy import tidy_notebook
from thyroid_lib.train import live
from thyroid_lib.train.run import score_run, train_model

SETTINGS = SMALL | {"epochs": 4, "val_share": 0.3}
needs_tensorboard = pytest.mark.skipif(
    not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed"
)
CELL = """
import sys
from thyroid_lib.train import live
print("note: no GPU", file=sys.stderr, flush=True)
for name in "ab":
    with live.progress(name, steps=2, done=0) as bar:
        bar.update(2)
"""


def read_points(folder) -> dict[str, list[tuple]]:
    """(step, value) of each curve, as TensorBoard would draw it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / live.FOLDER))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def check_points(folder, history):
    points = read_points(folder)
    speeds = points.pop("images_per_second")
    assert [step for step, value in speeds if value > 0] == list(history.epoch)
    names = {"lr": "lr", "loss/train": "train_loss", "loss/val": "val_loss", "dice/val": "val_dice"}
    assert points.keys() == names.keys()
    for tag, name in names.items():
        steps, values = zip(*points[tag], strict=True)
        assert list(steps) == list(history.epoch), tag
        assert values == pytest.approx(list(history[name]), rel=1e-6), tag


@pytest.fixture(scope="module")
def plain(tiny_store, tmp_path_factory):
    """A run without event files, scored."""
    run = train_model(tiny_store, out=tmp_path_factory.mktemp("plain") / "run", **SETTINGS)
    score_run(run, tiny_store)
    return run


@needs_tensorboard
def test_the_curves_are_those_of_the_history_and_change_nothing(plain, tiny_store, tmp_path):
    watched = train_model(tiny_store, out=tmp_path / "run", **SETTINGS, tensorboard=True)
    check_points(watched.out, watched.history)
    assert plain.meta["key"] == watched.meta["key"]
    assert same_weights(plain, watched)
    score_run(watched, tiny_store)
    for name in TABLES:
        assert (plain.out / name).read_bytes() == (watched.out / name).read_bytes()
    other = SETTINGS | {"epochs": 2, "seed": 1}  # another training begins its curves anew
    again = train_model(tiny_store, out=watched.out, **other, tensorboard=True)
    check_points(again.out, again.history)


@needs_tensorboard
@pytest.mark.parametrize("how", ["in an epoch", "before it is kept", "in a write"])
def test_what_goes_on_has_every_point_once(tiny_store, tmp_path, monkeypatch, how):
    """Killed in epoch 3; or with its points written and its state not; or with half a point."""
    folder = tmp_path / "run"

    monkeypatch.setattr("thyroid_lib.train.run.KEEP_SECONDS", 0)  # however long keeping takes
    kill = Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patch:
        if how == "before it is kept":
            happen_once_kept(2, lambda: patch.setattr(checkpoint, "keep", kill), patch)
        else:
            happen_at(3 * 2 + 2, kill, patch)  # three steps an epoch
        with pytest.raises(KeyboardInterrupt):
            train_model(tiny_store, out=folder, **SETTINGS, tensorboard=True)
    if how == "in a write":
        (events,) = (folder / live.FOLDER).iterdir()
        os.truncate(events, events.stat().st_size - 5)
    resumed = train_model(tiny_store, out=folder, **SETTINGS, tensorboard=True)
    assert resumed.meta["trained_epochs"] == 2
    steps = [step for step, _ in read_points(resumed.out)["dice/val"]]
    assert steps == sorted(set(steps))
    assert set(steps) >= {1, 3, 4}
    assert len(steps) == 4 or how == "in a write"


@needs_tensorboard
def test_a_disk_that_takes_no_more_ends_the_curves_alone(plain, tiny_store, tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    monkeypatch.setattr(SummaryWriter, "flush", full)
    watched = train_model(tiny_store, out=tmp_path / "run", **SETTINGS, tensorboard=True)
    assert same_weights(plain, watched)


def test_without_tensorboard_it_is_said_before_anything_is_done(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard: tensorboard not installed: `pip install"):
        train_model(tiny_store, out=tmp_path / "run", **SETTINGS, tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.study
def test_in_a_notebook_bars_leave_nothing_and_clear_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, kernel_name="python3").execute()
    note, bars = notebook.cells[0].outputs
    assert note["text"] == "note: no GPU\n"
    assert bars["data"] == {"text/plain": ""}
    nbformat.write(notebook, tmp_path / "n.ipynb")
    tidied = json.loads(tidy_notebook(tmp_path / "n.ipynb", source=tmp_path / "n.ipynb"))
    assert tidied["cells"][0]["outputs"] == []
