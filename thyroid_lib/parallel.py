"""Work over processes: results in order, few of them in memory, and none that outlives its parent.

Processes and not threads: to read or to score one frame takes many short calls, and threads that
wait for Python's lock between them gain a quarter on two cores where processes halve the time.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

AHEAD = 2  # results per worker that may wait
MOST = 8  # workers unless more are asked for: beyond, one process cannot feed them
FEWEST = 128  # items a worker must have for its start to pay


def count_workers(items: int, limit: int = 0) -> int:
    """Return how many workers serve so many items: one per core at most, or this limit."""
    return max(1, min(limit or MOST, cores(), items // FEWEST))


def cores() -> int:
    """Number of cores that this process may use; a scheduler may have given it a few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(work: Callable, items: Iterable, workers: int) -> Iterator:
    """Map over workers, in order; one worker is this process itself.

    Args:
        work: a function of a module, or a `partial` of one; what it takes and gives is pickled.
        items: taken one by one, as workers become free.

    Raises:
        RuntimeError: a worker was killed. What `work` raises is raised here.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool, waiting = _pool(workers), deque()
    gc.freeze()  # a collection, here or in a worker, would copy the memory that they share
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed (out of memory?): use fewer workers, or free memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()


def _pool(workers: int) -> Executor:
    if sys.platform != "linux":  # a new interpreter per worker would start by running the caller
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, get_context("fork"), _watch_parent, (os.getpid(),))


def _watch_parent(parent: int) -> None:
    """Let a worker end with its parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
