"""How often are the intervals right, and how often is a difference seen where there is none?

    python benchmarks/coverage.py --studies 20000 > docs/statistics-table.md

simulates studies of this project's own designs in which two models do not differ, and counts. The
deviations are roughly those of the committed runs on real frames (results/reference/tg3k-sample):
see `DEVIATIONS`. `tests/test_coverage.py` repeats it with other seeds.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from scipy import stats

from thyroid_lib.statistics import SEEN, Cube, Draws, draw, interval, macro_estimate, macro_means

# Dice. From REML of the group means of U-Net and Residual U-Net: groups 0.080 under `grouped`, a
# run 0.019 under `random` (0.000 to 0.008 under `grouped`, where three folds hardly tell it from
# the groups), model × group with what is left 0.054, here split in two: 0.045² + 0.030² = 0.054².
# Frames within a group, between two models: 0.129.
DEVIATIONS = {"group": 0.080, "model_group": 0.045, "run": 0.020, "rest": 0.030, "frame": 0.129}
FRAMES = 48  # per group, as in that sample
MEAN = 0.70


@dataclass(frozen=True)
class Design:
    """What a study tests: `groups` dealt into `folds`, of which `run` are trained, × `seeds`."""

    name: str
    groups: int
    folds: int
    seeds: int
    run_sd: float = DEVIATIONS["run"]

    @property
    def fold_of(self) -> np.ndarray:
        return np.arange(self.groups) % self.folds


def simulate(design: Design, studies: int, rng: np.random.Generator) -> np.ndarray:
    """Draw group means of two models that do not differ: (2,N,F,S,G), NaN where not tested."""
    shape = (2, studies, design.folds, design.seeds, design.groups)
    values = MEAN + rng.normal(0, DEVIATIONS["group"], (1, studies, 1, 1, design.groups))
    values = values + rng.normal(0, DEVIATIONS["model_group"], (2, studies, 1, 1, design.groups))
    values = values + rng.normal(0, design.run_sd, (*shape[:4], 1))
    values = values + rng.normal(0, DEVIATIONS["rest"], shape)
    tested = design.fold_of == np.arange(design.folds)[:, None]  # (F,G)
    return np.where(tested[:, None], values, np.nan)
