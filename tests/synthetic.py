"""A made-up study with known answers, in the shape in which `tables.load_runs` gives a real one."""

import numpy as np
import pandas as pd

from thyroid_lib.compare.tables import METRICS, Results

COST = {"unet": (1_900_000, 750), "segnet": (1_800_000, 630), "resunet": (520_000, 710)}


def study(
    means=None,
    *,
    groups=12,
    folds=3,
    seeds=3,
    frames=6,
    protocol="grouped",
    seed_sd=None,
    model_group_sd=0.03,
    seed=0,
) -> Results:
    """Draw a study: Dice = mean of the model + group + model × group + run + frame.

    `seed_sd` gives a model's deviation between runs. Under "random" every fold tests all groups.
    """
    means = means or {"unet": 0.75, "segnet": 0.60, "resunet": 0.74}
    rng = np.random.default_rng(seed)
    group_effects = rng.normal(0, 0.05, groups)
    scores, histories, runs = [], [], []
    for model, mean in means.items():
        effects = group_effects + rng.normal(0, model_group_sd, groups)
        for fold, of_seed in np.ndindex(folds, seeds):
            run = {
                "run_id": f"{model}-{protocol}-fold{fold}-seed{of_seed}", "model": model,
                "protocol": protocol, "fold": fold, "seed": of_seed,
            }  # fmt: skip
            luck = rng.normal(0, (seed_sd or {}).get(model, 0.01))
            for group in range(groups):
                if protocol == "random" or group % folds == fold:
                    dice = mean + effects[group] + luck + rng.normal(0, 0.05, frames)
                    names = [f"g{group:02}f{i}" for i in range(frames)]
                    part = {"case_id": names, "dataset": "phantom", "group": f"g{group:02}"}
                    scores.append(pd.DataFrame(run | part | {"dice": dice.clip(0, 1)}))
            epochs = np.arange(1, 16)
            history = {
                "epoch": epochs, "train_loss": 1 / epochs, "val_loss": 1 / epochs + 0.1,
                "val_dice": 1 - 1 / epochs + rng.normal(0, 0.01, 15),
            }  # fmt: skip
            histories.append(pd.DataFrame(run | history))
            runs.append(run | _about(model))
    scores = pd.concat(scores, ignore_index=True)
    return Results(
        pd.DataFrame(runs), pd.concat(histories, ignore_index=True), complete(scores),
        thresholds_of(scores), calibration_of(scores),
    )  # fmt: skip


def _about(model: str) -> dict:
    parameters, multiply_adds = COST.get(model, (1000, 10))
    return {
        "parameters": parameters, "multiply_adds": multiply_adds, "selection": "last",
        "train_seconds": 1.0, "images_per_second": 2.0, "peak_memory_mib": 3, "epochs": 15,
        "augment": "none", "precision": "fp32",
        "temperature": 1.25, "data_fingerprint": "f" * 64, "training_version": 1,
        "cases": {"train": 40, "val": 8, "test": 24}, "versions": {"torch": "2.13.0"},
    }  # fmt: skip


def complete(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the other metrics, each a function of Dice: Dice itself where no other is named."""
    dice = scores["dice"]
    return scores.assign(**dict.fromkeys(METRICS, dice)).assign(
        brier=(1 - dice) / 10,
        missed_parts=(dice < 0.5).astype(int),
        false_parts=(dice < 0.6).astype(int),
    )


def thresholds_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice falls with the distance from one half, by 0.04 at the ends: that is threshold_range."""
    keys = [c for c in scores if c not in ("dice", "dataset")]
    fall = {f"{t / 100:.2f}": (t - 50) ** 2 / 1e4 for t in range(30, 71, 5)}
    fallen = {name: (scores["dice"] - x).clip(0, 1) for name, x in fall.items()}
    return scores[keys].assign(**fallen)


def calibration_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Two bins per run and group: 90 pixels that are right, 10 that are 0.5 too sure: ECE 0.05."""
    keys = [c for c in ("run_id", "model", "protocol", "fold", "seed", "group") if c in scores]
    once = scores[keys].drop_duplicates()
    right = once.assign(bin=0, pixels=90, mean_prob=0.05, share=0.05)
    wrong = once.assign(bin=14, pixels=10, mean_prob=0.95, share=0.45)
    return pd.concat([right, wrong], ignore_index=True)


def shuffled(table: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    return table.sample(frac=1, random_state=seed)
