"""Coverage of the intervals, and false differences, in simulated studies: a table of the docs.

    python tools/coverage.py --studies 10000

simulates studies of this project's designs in which two models do not differ, and writes the table
of `docs/statistics.md`. Groups and frames deviate roughly as in the committed runs on real frames
(`results/reference/tg3k-sample`); how runs deviate is assumed, see `DEVIATIONS`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from marks import with_part
from thyroid_lib.compare.bootstrap import SEEN, TAILS, Cube, Draws, draw, macro_means

# Dice. REML of the group means of U-Net and Residual U-Net under `grouped` gives groups 0.080 and
# model × group with the rest 0.054, here split in two, 0.045² + 0.030² = 0.054². Frames of a group,
# between two models: 0.129. What one run deviates from another of its kind cannot be told from runs
# of one seed: 0.020 is an assumption, and so every design is simulated with twice as much, too.
DEVIATIONS = {"group": 0.080, "model_group": 0.045, "run": 0.020, "rest": 0.030, "frame": 0.129}
FRAMES = 48  # per group, as in that sample
PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"


@dataclass(frozen=True)
class Design:
    """What a study tests: groups dealt into folds, each fold trained with so many seeds."""

    name: str
    groups: int
    folds: int
    seeds: int
    run: float = DEVIATIONS["run"]


DESIGNS = [
    Design(name, groups, folds, seeds, run)
    for run in (DEVIATIONS["run"], 2 * DEVIATIONS["run"])
    for name, groups, folds, of_seeds in (
        ("single split", 4, 1, (1, 3, 5)),
        ("3 folds", 12, 3, (1, 3, 5)),
        ("4 folds", 16, 4, (1, 3, 5)),
        ("leave one out", 12, 12, (1, 3)),
        ("single split", 8, 1, (5,)),
        ("single split", 12, 1, (1, 5)),
        ("single split", 20, 1, (5,)),
    )
    for seeds in of_seeds
]


# Of the protocol external: its groups and seeds, after those of the grouped protocol beside it.
EXTERNAL = [
    (Design("3 folds", inside, 3, seeds, run), Design("external", outside, 1, seeds, run))
    for run in (DEVIATIONS["run"], 2 * DEVIATIONS["run"])
    for inside, outside, seeds in ((9, 3, 1), (9, 3, 2), (9, 3, 5), (12, 8, 5), (12, 20, 5))
]


def simulate(design: Design, studies: int, rng: np.random.Generator) -> np.ndarray:
    """Draw two models' group means, both of true mean 0: (2,N,F,S,G), NaN where not tested."""
    shape = (2, studies, design.folds, design.seeds, design.groups)
    values = rng.normal(0, DEVIATIONS["group"], (1, studies, 1, 1, design.groups))
    values = values + rng.normal(0, DEVIATIONS["model_group"], (2, studies, 1, 1, design.groups))
    values = values + rng.normal(0, design.run, (*shape[:4], 1))  # shared by the fold's groups
    values = values + rng.normal(0, DEVIATIONS["rest"], shape)
    fold_of = np.arange(design.groups) % design.folds
    tested = fold_of == np.arange(design.folds)[:, None]  # (F,G)
    return np.where(tested[:, None], values, np.nan)


def bounds(values: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval and standard error of the macro mean of each study's (N,F,S,G): (N,) each."""
    parts = []
    for start in range(0, len(values), 1000):
        means = macro_means(values[start : start + 1000], draws)  # (B,n)
        parts.append((*np.quantile(means, TAILS, axis=0), means.std(axis=0)))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def measure(
    design: Design, *, studies: int, seed: int, resamples: int = 2000, rivals: bool = True
) -> dict:
    """Simulate one design; shares of the studies in per cent.

    "mean covered": a model's true mean lies in its interval. Then how often a true "no difference"
    is rejected at 0.05: by the crossed bootstrap and, with `rivals`, by others. "smallest gap" is
    the mean of what the studies state (Dice), "it is seen" how many see a true gap of that size.
    """
    rng = np.random.default_rng([seed, design.groups, design.folds, design.seeds])
    values = simulate(design, studies, rng)
    gap = values[0] - values[1]  # (N,F,S,G)
    axes = [tuple(range(size)) for size in gap.shape[1:]]
    draws = draw(Cube("", ("a", "b"), *axes, values[:, 0]), resamples=resamples, seed=seed)
    low, high, se = bounds(gap, draws)
    low_mean, high_mean, _ = bounds(values[0], draws)
    seen = SEEN * se.mean()
    shares = {
        "mean covered": (low_mean < 0) & (high_mean > 0),
        "groups × seeds": (low > 0) | (high < 0),
    }
    if rivals:
        shares |= _rivals(gap, draws, rng)
    return (
        {"design": design.name, "groups": design.groups, "folds": design.folds,
         "seeds": design.seeds, "run SD": f"{design.run:.2f}"}
        | {name: f"{100 * share.mean():.1f}" for name, share in shares.items()}
        | {"smallest gap": f"{seen:.3f}", "it is seen": f"{100 * (low + seen > 0).mean():.1f}"}
    )  # fmt: skip


def measure_drop(inside: Design, outside: Design, *, studies: int, seed: int) -> dict:
    """Simulate a study with an external data set on which Dice does not fall.

    "drop covered": the share of studies, in per cent, whose interval of the drop holds 0.
    """
    rng = np.random.default_rng([seed, outside.groups, outside.seeds])
    means = []
    for number, design in enumerate((inside, outside)):
        values = simulate(design, studies, rng)[0]  # (N,F,S,G)
        axes = [tuple(range(size)) for size in values.shape[1:]]
        draws = draw(Cube("", ("a",), *axes, values[:1]), resamples=2000, seed=number)
        means.append(macro_means(values, draws))
    low, high = np.quantile(means[0] - means[1], TAILS, axis=0)
    return {
        "groups inside": inside.groups, "external groups": outside.groups, "seeds": outside.seeds,
        "run SD": f"{outside.run:.2f}", "width of the interval": f"{(high - low).mean():.3f}",
        "drop covered": f"{100 * ((low < 0) & (high > 0)).mean():.1f}",
    }  # fmt: skip


def _rivals(gap: np.ndarray, draws: Draws, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What other tests reject, bool (N,) each."""
    every_seed = np.broadcast_to(np.arange(gap.shape[2]), draws.seeds.shape)
    low, high, _ = bounds(gap, Draws(draws.groups, every_seed))
    means = np.nanmean(gap, axis=(1, 2))  # (N,G)
    images = rng.normal(0, DEVIATIONS["frame"], (*means.shape, FRAMES))
    images += (means - images.mean(axis=2))[..., None]

    def wilcoxon(values: np.ndarray, **how) -> np.ndarray:
        return stats.wilcoxon(values, axis=1, **how).pvalue

    return {
        "groups alone": (low > 0) | (high < 0),
        "Wilcoxon, groups": wilcoxon(means) < 0.05,
        "Wilcoxon, images": wilcoxon(images.reshape(len(images), -1), method="asymptotic") < 0.05,
    }


def main() -> None:
    """Simulate every design and put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=10_000, help="simulated per design")
    parser.add_argument("--tables", nargs="+", default=["coverage", "external"])
    args = parser.parse_args()
    how = {"studies": args.studies, "seed": 1}
    parts = {
        "coverage": (measure(design, **how) for design in DESIGNS),
        "external": (measure_drop(*designs, **how) for designs in EXTERNAL),
    }
    for name in args.tables:
        table = pd.DataFrame(parts[name]).to_markdown(index=False, disable_numparse=True)
        PAGE.write_text(with_part(PAGE.read_text("utf-8"), name, f"{table}\n"), "utf-8")


if __name__ == "__main__":
    main()
