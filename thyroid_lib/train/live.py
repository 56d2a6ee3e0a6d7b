"""Live curves of a long run, on request: TensorBoard event files beside its results.

    %load_ext tensorboard
    %tensorboard --logdir results/tg3k/runs

They are there to be watched, and hold times: no table is made from them, and no two runs of one
study have the same. A training that goes on takes back the points after the epoch it goes on from.
"""

import importlib.util
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thyroid_lib.files.writing import print_note, write_error

FOLDER = "tensorboard"  # in a run's folder


def check_tensorboard(wanted: bool) -> None:
    """Raise ValueError if event files are wanted and there is nothing to write them with."""
    if wanted and not importlib.util.find_spec("tensorboard"):
        raise ValueError(
            "tensorboard: is not installed: `pip install tensorboard`, or set tensorboard to false"
        )


@contextmanager
def _nowhere() -> Iterator[None]:
    """Keep this machine's name out of the file's, which TensorBoard's writer would put there."""
    name = socket.gethostname
    socket.gethostname = lambda: "localhost"
    try:
        yield
    finally:
        socket.gethostname = name


@contextmanager
def curves(run: str | Path, *, wanted: bool, done: int) -> Iterator[Callable[[dict, float], None]]:
    """Open the event file of a run that has `done` epochs behind it; close it at any end.

    Args:
        run: the run's folder; with 0 epochs done, event files of an earlier training go away.
        wanted: whether to write at all.

    Yields:
        A function of an epoch's record (as in `history.csv`) and of the images per second. It
        writes them at once. Where that fails, the curves end, and the training goes on.

    Raises:
        OSError: the folder cannot be written; before any training.
    """
    if not wanted:
        yield lambda record, speed: None
        return
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(run) / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*") if not done else ():
            old.unlink()
        with _nowhere():
            writer = SummaryWriter(str(folder), purge_step=done + 1)
        writer.flush()
    except OSError as error:
        raise write_error(error, folder) from error
    broken = []

    def show(record: dict, speed: float) -> None:
        if broken:
            return
        try:
            for name, value in ({"images_per_second": speed} | record).items():
                side, _, measure = name.partition("_")  # train_loss -> loss/train
                tag = f"{measure}/{side}" if side in ("train", "val", "test") else name
                if name != "epoch":
                    writer.add_scalar(tag, value, record["epoch"])
            writer.flush()
        except OSError as error:
            broken.append(error)
            print_note(f"{Path(run).name}: no more live curves ({error}); the training goes on")

    try:
        yield show
    finally:
        try:
            writer.close()
        except OSError as error:
            if not broken:
                print_note(f"{Path(run).name}: the live curves may lack their end ({error})")
