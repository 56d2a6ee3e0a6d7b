"""SIGKILL at random moments, over every step of a study and over whatever makes it."""

import time

import numpy as np
from tortured import SECONDS, Bench, Study

KINDS = ("workflow", "tree", "runner", "kernel", "worker")
GOLDEN = 0.618034  # moments that follow each other by it never come to lie close together


class Deck:
    """Whom to kill and when, drawn so that every kind and every part of a step has its turn."""

    def __init__(self, kinds: tuple[str, ...], steps: list[str], seed: int):
        self.random = np.random.default_rng(seed)
        self.kinds, self.waiting = kinds, []
        self.share = {step: self.random.random() for step in steps}

    def kind(self, step: str) -> str:
        """Store workers are there in one step alone, and the report has no kernel."""
        fits = {"1-preprocess": {"worker", "workflow", "tree"}, "report": {"workflow", "tree"}}
        fits = fits.get(step, {"workflow", "tree", "runner", "kernel"}) & set(self.kinds)
        fits = fits or set(self.kinds)
        if not fits & set(self.waiting):
            self.waiting += self.random.permutation(self.kinds).tolist()
        kind = next(kind for kind in self.waiting if kind in fits)
        self.waiting.remove(kind)
        return kind

    def moment(self, step: str) -> float:
        """Share of the step's usual time."""
        self.share[step] = (self.share[step] + GOLDEN) % 1
        return 0.02 + 0.94 * self.share[step]


def kill_at_random(
    bench: Bench, count: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> list[tuple[str, str, str]]:
    """Kill again and again, each step of a study once, until it is finished; then begin another.

    Returns:
        Step, what was killed, and where the step was, for each kill. Studies were compared.
    """
    deck, kills = Deck(kinds, bench.undisturbed.steps, seed), []
    while len(kills) < count:
        study, left = bench.fresh(), set(bench.undisturbed.steps)
        study.start()
        hit = False  # since this start
        while True:
            if study.workflow.poll() is not None:
                code, said = study.end()
                if code == 0:
                    break
                assert hit, f"a plain restart ended with {code}:\n{said[-4000:]}"
                study.start()
                hit = False
            ready = left.intersection(study.making())
            if ready and len(kills) < count:
                step = min(sorted(ready), key=[at for at, _, _ in kills].count)  # the one least hit
                left.discard(step)
                kind, seconds = deck.kind(step), deck.moment(step) * bench.usual[step]
                if where := _kill(study, step, kind, seconds):
                    kills.append((step, kind, where))
                    bench.outcome.kills, hit = len(kills), True
                else:
                    deck.waiting.insert(0, kind)
            time.sleep(0.05)
        study.wait_until_alone(SECONDS)
        bench.compare(study)
        study.remove()
    return kills


def _kill(study: Study, step: str, kind: str, seconds: float) -> str | None:
    """Let the step go on for so long and kill; where it was, or None if it was done before."""
    moment = time.monotonic() + seconds
    while (making := study.making().get(step)) and study.workflow.poll() is None:
        victim = {
            "workflow": study.workflow.pid,
            "tree": study.workflow.pid,
            "runner": making.runner,
            "kernel": making.kernel,
            "worker": next(iter(making.workers), None),
        }[kind]
        # a worker lives for a second or two: it dies wherever in its work it is found
        if victim and (kind == "worker" or time.monotonic() >= moment):
            break
        time.sleep(0.03)
    else:
        return None
    where = _progress(study, step)
    if kind == "tree":
        study.lose_power()
    else:
        study.kill(victim)
    if kind == "workflow":
        study.workflow.wait()
    return where


def _progress(study: Study, step: str) -> str:
    folder = study.results / "runs" / step.removeprefix("3-train-")
    if not step.startswith("3-train-"):
        return "-"
    if (folder / "model.pt").exists():
        return "scoring"
    return "training" if list(folder.glob("checkpoint*")) else "starting"
