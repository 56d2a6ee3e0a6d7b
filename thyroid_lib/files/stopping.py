"""Stopping a training early: at a signal, or at the end of its time budget."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 3  # seconds


class Stopped(Exception):
    """A training was asked to stop; its state is kept, and the next start goes on from there."""


def deadline(budget_minutes: float = 0) -> float:
    """Return the Unix time at which to stop: after so many minutes (0: no limit), or at
    THYROID_DEADLINE, which the workflow sets for all of its runs, if that is earlier.
    """
    end = time.time() + 60 * budget_minutes if budget_minutes else math.inf
    return min(end, float(os.environ.get("THYROID_DEADLINE") or "inf"))


def set_deadline(minutes: float) -> None:
    """Let all trainings of this process stop after so many minutes in sum; 0: at no time."""
    os.environ["THYROID_DEADLINE"] = str(time.time() + 60 * minutes) if minutes else ""


def signals() -> list[int]:
    """Return the signals that ask for an end; not those ignored, as SIGHUP is after `nohup`."""
    names = {"SIGINT", "SIGTERM", "SIGHUP"} & set(signal.Signals.__members__)  # Windows lacks one
    numbers = [signal.Signals[name] for name in sorted(names)]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def stop_requests(budget_minutes: float = 0) -> Iterator[Callable[[], str]]:
    """Within this context, remember signals that ask for an end instead of obeying them.

    It yields a function that returns the reason to stop, "" if there is none yet. A second signal
    is obeyed if it comes `GRACE` seconds later: a batch system signals a process and its parent,
    which passes the signal on. Outside the main thread only the deadline counts.
    """
    end, arrived, before = deadline(budget_minutes), [], {}

    def remember(number, frame):
        arrived.append(time.monotonic())
        if arrived[-1] - arrived[0] >= GRACE:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    def stop_reason() -> str:
        if arrived:
            return "it was told to"
        return "its time budget is used up" if time.time() >= end else ""

    if threading.current_thread() is threading.main_thread():
        for number in signals():
            before[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, remember)
    try:
        yield stop_reason
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
