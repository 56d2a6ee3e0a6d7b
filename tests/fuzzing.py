"""For fuzz tests: random damage, a limit of time for each item, counts of the outcomes."""

import signal
from contextlib import contextmanager

import numpy as np

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


def attempt(counts, read, *args):
    """Return what is read and None, or None and the line in which it is refused; count both.

    Any other error than the two that are meant for users fails the test.
    """
    with limited():
        try:
            result, said = read(*args), None
        except (ValueError, FileNotFoundError) as error:
            result, said = None, str(error)
            assert len(said.splitlines()) == 1
    counts[f"files {'accepted' if said is None else 'refused'}"] += 1
    return result, said


def damaged(seed: int, content: bytes, rounds: int):
    """Yield kinds of damage and the damaged content, each kind so many times."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        start = int(rng.integers(len(content)))
        end = start + int(rng.integers(1, 200))
        flipped = content[start] ^ 1 << int(rng.integers(8))
        yield "flip", content[:start] + bytes([flipped]) + content[start + 1 :]
        yield "cut", content[:start]
        part = content[start:end]
        new = (bytes(len(part)), b"", part * 2, rng.bytes(20))[int(rng.integers(4))]
        yield "replace", content[:start] + new + content[end:]
        yield "rubbish behind", content + rng.bytes(int(rng.integers(1, 500)))
