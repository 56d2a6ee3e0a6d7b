"""SIGKILL at random moments, in every step of a study and to each of its processes."""

import time
from collections import Counter

from tortured import Bench, Study

KINDS = ("workflow", "tree", "runner", "kernel", "worker")
GOLDEN = 0.618034  # moments that follow each other by it never come to lie close together


def kinds_of(step: str) -> set[str]:
    """Return what can be killed: only one step has store workers, and the report has no kernel."""
    fits = {"1-preprocess": {"worker", "workflow", "tree"}, "report": {"workflow", "tree"}}
    return fits.get(step, {"workflow", "tree", "runner", "kernel"})


def kill_at_random(
    bench: Bench, count: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> list[tuple[str, str, str]]:
    """Kill each step of a study once, restarting it until it is finished; then begin another.

    Each time it is the kind that was killed least so far, at another part of the step. Return step,
    what was killed, and what a run was doing, for each kill. All studies were compared.
    """
    kills, killed_kinds = [], Counter(dict.fromkeys(kinds, 0))
    while len(kills) < count:
        study, left = bench.fresh(), set(bench.undisturbed.steps)
        study.start()
        killed = False  # since this start
        while True:
            if study.workflow.poll() is not None:
                code, said = study.end()
                if code == 0:
                    break
                assert killed, f"a plain restart ended with {code}:\n{said[-4000:]}"
                study.start()
                killed = False
            ready = left.intersection(study.steps_at_work())
            if ready and len(kills) < count:
                step = min(sorted(ready), key=[at for at, _, _ in kills].count)  # least killed yet
                left.discard(step)
                kind = min(kinds_of(step) & set(kinds) or kinds, key=lambda k: (killed_kinds[k], k))
                share = (seed + len(kills) + 1) * GOLDEN % 1  # of the step's usual time
                seconds = (0.02 + 0.94 * share) * bench.usual[step]
                if where := _kill(study, step, kind, seconds):
                    kills.append((step, kind, where))
                    killed_kinds[kind] += 1
                    bench.killed, killed = len(kills), True
            time.sleep(0.05)
        study.wait_until_alone()
        bench.compare(study)
        study.remove()
    return kills


def _kill(study: Study, step: str, kind: str, seconds: float) -> str:
    """Kill after so many seconds of the step; return what it did, "" if it ended before."""
    moment = time.monotonic() + seconds
    while (pids := study.steps_at_work().get(step)) and study.workflow.poll() is None:
        victim = {
            "workflow": study.workflow.pid, "tree": study.workflow.pid, "runner": pids.runner,
            "kernel": pids.kernel, "worker": next(iter(pids.workers), None),
        }[kind]  # fmt: skip
        # a worker lives for a second or two: it dies wherever in its work it is found
        if victim and (kind == "worker" or time.monotonic() >= moment):
            break
        time.sleep(0.03)
    else:
        return ""
    folder, where = study.run_folder(step.removeprefix("3-train-")), "no run"
    if step.startswith("3-train-"):
        where = "training" if list(folder.glob("checkpoint*")) else "starting"
        where = "scoring" if (folder / "model.pt").exists() else where
    if kind == "tree":
        study.lose_power()
    else:
        study.kill(victim)
    if kind == "workflow":
        study.workflow.wait()
    return where
