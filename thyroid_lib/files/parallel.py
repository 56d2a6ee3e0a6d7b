"""A map over processes that gives results in order and keeps few of them in memory.

Not over threads: frames take many short calls, between which threads wait for Python's lock.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

AHEAD = 2  # finished results that may wait, per worker
MAX_WORKERS = 8  # unless another limit is given
MIN_ITEMS = 128  # for each worker; fewer are not worth its start


def count_workers(items: int, limit: int = 0) -> int:
    """Return how many workers to start for so many items: one per core at most, or this limit."""
    return max(1, min(limit or MAX_WORKERS, cores(), items // MIN_ITEMS))


def cores() -> int:
    """Return how many cores this process may use: at most OMP_NUM_THREADS, a step's threads."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(threads) if threads.isdecimal() else 0
    return min(available or 1, limit or sys.maxsize)


def map_in_order(work: Callable, items: Iterable, workers: int) -> Iterator:
    """Map over worker processes, results in order; one worker is this process itself.

    `work` is a function of a module, or a `partial` of one. Items are taken as workers become free;
    these stay until the iterator is exhausted or closed. What `work` raises is raised here;
    RuntimeError if a worker was killed.
    """
    if workers == 1:
        yield from map(work, items)
        return
    if sys.platform == "linux":
        how = {"initializer": _watch_parent, "initargs": (os.getpid(),)}
        pool = ProcessPoolExecutor(workers, get_context("fork"), **how)
    else:  # a new interpreter would run the caller's script again
        pool = ThreadPoolExecutor(workers)
    waiting = deque()
    gc.freeze()  # a collection, here or in a worker, would copy the memory that they share
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        advice = "free memory, or allow fewer cores (OMP_NUM_THREADS=1)"
        raise RuntimeError(f"a worker process was killed (out of memory?): {advice}") from error
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()


def _watch_parent(parent: int) -> None:
    """End this worker when its parent ends, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
