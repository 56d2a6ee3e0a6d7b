"""What shows a training while it runs: the progress bar and, on request, TensorBoard event files.

    %load_ext tensorboard
    %tensorboard --logdir results/tg3k/runs

Event files hold times, so no two runs have the same ones; no table is made from them.
"""

import importlib.util
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tqdm import tqdm

from thyroid_lib.files.writing import print_note, write_error

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


def check_tensorboard(wanted: bool) -> None:
    """Raise ValueError if event files are wanted and TensorBoard is not installed."""
    if wanted and not importlib.util.find_spec("tensorboard"):
        raise ValueError(
            "tensorboard: is not installed: `pip install tensorboard`, or set tensorboard to false"
        )


@contextmanager
def curves(run: str | Path, *, wanted: bool, done: int) -> Iterator[Callable[[dict, float], None]]:
    """Open the event file of a run that has trained `done` epochs; close it at any end.

    Later points, of an attempt that was killed, are taken back. Yields a function that writes an
    epoch's record (as in `history.csv`) and the images per second; if it fails, the curves end with
    a note and the training goes on. OSError: the folder cannot be written.
    """
    if not wanted:
        yield lambda record, images_per_second: None
        return
    from torch.utils.tensorboard import SummaryWriter

    folder, failed = Path(run) / FOLDER, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*") if not done else ():
            old.unlink()
        with patch.object(socket, "gethostname", lambda: "localhost"):  # it goes into the name
            writer = SummaryWriter(str(folder), purge_step=done + 1)
        writer.flush()
    except OSError as error:
        raise write_error(error, folder) from error

    def attempt(write: Callable[[], None]) -> None:
        try:
            if not failed:
                write()
        except OSError as error:
            failed.append(error)
            print_note(f"{Path(run).name}: no more live curves ({error}); the training goes on")

    def show(record: dict, images_per_second: float) -> None:
        points = record | {"images_per_second": images_per_second}
        for name in points.keys() - {"epoch"}:
            side, _, measure = name.partition("_")  # train_loss -> loss/train
            tag = f"{measure}/{side}" if side in ("train", "val", "test") else name
            writer.add_scalar(tag, points[name], record["epoch"])
        writer.flush()

    try:
        yield lambda record, speed: attempt(lambda: show(record, speed))
    finally:
        attempt(writer.close)
