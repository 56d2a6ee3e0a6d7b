"""What both fuzz tests use: a limit of time for each item, and counts of what became of it."""

import signal
from contextlib import contextmanager

LIMIT = 20  # seconds that one item may take, on a machine with other work


class Hang(BaseException):
    """No Exception: nothing that a reader catches."""


@contextmanager
def limited():
    """End what takes longer than it may."""

    def stop(*_):
        raise Hang(f"took more than {LIMIT} s")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def attempt(counts, kind, work, *args):
    """Return what the work gives and None, or None and the words in which it refuses; count both.

    Any other error than the two that are meant for users fails the test.
    """
    with limited():
        try:
            result, said = work(*args), None
        except (ValueError, FileNotFoundError) as error:
            result, said = None, str(error)
    counts[f"{kind} {'accepted' if said is None else 'refused'}"] += 1
    return result, said
