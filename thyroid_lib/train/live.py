"""What shows a training while it runs: the progress bar and, on request, TensorBoard event files.

    %load_ext tensorboard
    %tensorboard --logdir results/tg3k/runs

Event files hold times, so no two runs have the same ones; no table is made from them.
"""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from tqdm import tqdm

FOLDER = "tensorboard"  # in a run's folder


class Line:
    """A line in the output of a notebook's cell that a bar writes over; all else there stays."""

    encoding = "utf-8"  # by it tqdm chooses how to draw
    of_cell: tuple = (None, None)  # the last cell with bars and its line, which all of them share

    def write(self, text: str) -> None:
        from IPython import display, get_ipython

        cell, shown = get_ipython().execution_count, {"text/plain": text.strip()}
        if Line.of_cell[0] != cell:
            Line.of_cell = cell, display.display({"text/plain": ""}, raw=True, display_id=True)
        Line.of_cell[1].update(shown, raw=True)

    def flush(self) -> None:
        """Do nothing: each piece was shown."""


@contextmanager
def progress(name: str, *, steps: int, done: int) -> Iterator[tqdm]:
    """Show a bar with the time left; at its end nothing of it is left."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    file = Line() if hasattr(shell, "kernel") else None  # else the terminal
    how = {"unit": "batch", "leave": False, "file": file, "mininterval": 0.5 if file else 0.1}
    with tqdm(desc=name, total=steps, initial=done, **how) as bar:
        yield bar


@contextmanager
def curves(run: Path, *, wanted: bool, done: int) -> Iterator[Callable[[dict], None]]:
    """Open the event file of a run after `done` epochs; yield a function that writes an epoch's."""
    if not wanted:
        yield lambda numbers: None
        return
    from torch.utils.tensorboard import SummaryWriter

    for old in (run / FOLDER).glob("events.out.tfevents.*") if not done else ():
        old.unlink()
    with patch.object(socket, "gethostname", lambda: "localhost"):  # it goes into the name
        writer = SummaryWriter(str(run / FOLDER), purge_step=done + 1)

    def show(numbers: dict) -> None:
        with suppress(OSError):  # a full disk ends the curves, and not the training
            for name in numbers.keys() - {"epoch"}:
                side, _, measure = name.partition("_")  # train_loss -> loss/train
                tag = f"{measure}/{side}" if side in ("train", "val", "test") else name
                writer.add_scalar(tag, numbers[name], numbers["epoch"])
            writer.flush()

    with writer:
        yield show
