"""When a training stops before its end: told by a signal, or because its time is used up."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 3  # seconds
TOLD = "it was told to"


class Stopped(Exception):
    """It was asked to stop; what it reached is kept, and the next start goes on from there."""


def deadline(budget_minutes: float = 0) -> float:
    """Return when to stop, Unix time: after so many minutes (0: no limit) or at the study's end.

    The latter is THYROID_DEADLINE, Unix time, which the workflow sets for all of its runs.

    Raises:
        ValueError: THYROID_DEADLINE is no number.
    """
    end = time.time() + 60 * budget_minutes if budget_minutes else float("inf")
    given = os.environ.get("THYROID_DEADLINE") or "inf"
    try:
        if math.isnan(float(given)):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"THYROID_DEADLINE: got {given!r}, need seconds of Unix time; unset it for no limit"
        ) from None
    return min(end, float(given))


def signals() -> list[int]:
    """Return the signals that ask for an end: Ctrl-C, SIGTERM, a closed terminal's, if not ignored.

    `nohup` lets SIGHUP be ignored, and a shell SIGINT of what runs in its background.
    """
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def told_to_stop(budget_minutes: float = 0) -> Iterator[Callable[[], str]]:
    """Within it, Ctrl-C, a notebook's stop button and SIGTERM are remembered instead of obeyed.

    Another one is obeyed as ever, at once, if it comes `GRACE` seconds later or more: a batch
    system signals a process and whoever started it, who passes it on. Signals reach the main thread
    alone.

    Yields:
        A function that says why to stop, "" as long as nobody asked.
    """
    end, told, before = deadline(budget_minutes), [], {}

    def remember(number, frame):
        now = time.monotonic()
        told.append(now)
        if now - told[0] >= GRACE:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    def why() -> str:
        late = time.time() >= end
        return TOLD if told else "its time budget is used up" if late else ""

    if threading.current_thread() is threading.main_thread():
        for number in signals():
            before[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, remember)
    try:
        yield why
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
