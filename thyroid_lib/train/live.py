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


@contextmanager
def progress(name: str, *, steps: int, done: int) -> Iterator[tqdm]:
    """Show a bar with the time left; an executed notebook keeps nothing of it."""
    with tqdm(desc=name, total=steps, initial=done, unit="batch", leave=False) as bar:
        silent = bar.disable  # before it is closed
        yield bar
    if "ipykernel" in sys.modules and not silent:
        from IPython.display import clear_output

        clear_output()


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
