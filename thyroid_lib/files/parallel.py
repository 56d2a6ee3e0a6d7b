"""Work over processes: results in order, few of them in memory, and none that outlives its parent.

Processes and not threads: to read or to score one frame takes many short calls, and threads wait
for Python's lock between them.
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
MOST = 8  # workers, unless another limit is asked for
FEWEST = 128  # items that a worker must have to be started


def count_workers(items: int, limit: int = 0) -> int:
    """Return how many workers serve so many items: one per core at most, or this limit."""
    return max(1, min(limit or MOST, cores(), items // FEWEST))


def cores() -> int:
    """Number of cores that this process may use: a scheduler's, or OMP_NUM_THREADS if fewer.

    Snakemake sets that variable to a step's threads.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(there or 1, int(asked)) if asked.isdecimal() and int(asked) else there or 1


def map_in_order(work: Callable, items: Iterable, workers: int) -> Iterator:
    """Map over workers, in order; one worker is this process itself.

    Close the iterator, or take all of it: until then the workers stay.

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
            "a worker process was killed (out of memory?): free memory, or allow fewer cores "
            "(OMP_NUM_THREADS=1)"
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
