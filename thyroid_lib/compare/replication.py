"""The replication of the reported study: its flaws are mended one by one, and each is measured.

Runs of protocol "reported" repeat the study, flaws and all; those of "random" and "grouped" mend
its flaws, one step after the other. Every step keeps the networks, seeds and recipe of the one
before, so that a change belongs to its step; its interval comes from resampling groups, the same
ones at both ends, and seeds. `reported_curves.csv` has the report's own curves, one run each.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.compare.bootstrap import (
    Cube,
    Draws,
    bounds,
    cube,
    draw,
    macro_estimate,
    macro_means,
    sort_rows,
)
from thyroid_lib.compare.sentences import SHOWN
from thyroid_lib.compare.stability import MEASURES, OF_CURVES, measure_curve
from thyroid_lib.compare.tables import RUN, SHARED, Results, load_runs, read_table
from thyroid_lib.evaluate.metrics import pooled_dice
from thyroid_lib.files.writing import write_file, write_table

STEPS = (
    "as reported",
    "each case by itself",
    "epoch picked on validation",
    "burnt-in text mended",
    "whole sweeps held out",
)
ON_TEST = STEPS[:2]  # their weights were picked on the test set
NAMES = {"U-Net": "unet", "SegNet": "segnet_reported", "Residual U-Net": "resunet_reported"}
WITHOUT_RELU = "segnet_reported_no_relu"


def reported_curves() -> pd.DataFrame:
    """Return the report's own learning curves, one run of each network, as its log has them."""
    return pd.read_csv(Path(__file__).with_name("reported_curves.csv"))


def load_steps(
    reported: list[str | Path], fair: list[str | Path]
) -> tuple[dict[str, pd.DataFrame], Results]:
    """Load the runs of a replication, or refuse those that differ in more than their step.

    Args:
        reported, fair: folders of the runs of protocol "reported", and of "random" and "grouped".

    Returns:
        For each of `STEPS` the scores, one row per run and test case; and the reported runs.

    Raises:
        FileNotFoundError, ValueError: see `tables.load_runs`; or no run for a step, or reported and
            fair runs of other settings, seeds or (under random) test cases.
    """
    flawed, mended = load_runs(reported), load_runs(fair)
    if set(flawed.runs["protocol"]) != {"reported"}:
        raise ValueError("the first folders must be runs of protocol reported, and nothing else")
    folder_of = {Path(folder).name: Path(folder) for folder in reported}
    runs = flawed.runs[RUN].to_dict("records")
    of_val = pd.concat([read_table(folder_of[r["run_id"]], r, "scores_val.csv") for r in runs])
    by_protocol = dict(list(mended.scores.groupby("protocol")))
    if absent := [name for name in ("random", "grouped") if name not in by_protocol]:
        raise ValueError(f"no run of protocol {', '.join(absent)}: train them, or name them")
    _check_alike(flawed, mended)
    tables = flawed.scores, flawed.scores, of_val, by_protocol["random"], by_protocol["grouped"]
    return dict(zip(STEPS, tables, strict=True)), flawed


def _check_alike(flawed: Results, mended: Results) -> None:
    changed = {"data_fingerprint", "mend", "selection"}  # by the steps
    for field in ("seed", *SHARED):
        sides = [set(results.runs[field]) for results in (flawed, mended)]
        if field not in changed and sides[0] != sides[1]:
            raise ValueError(
                f"{field} differs: the reported runs have {sorted(sides[0])}, the fair ones "
                f"{sorted(sides[1])}; train them again with equal settings"
            )
    drawn = mended.scores[mended.scores["protocol"] == "random"]
    if other := sorted(set(flawed.scores["case_id"]) ^ set(drawn["case_id"])):
        raise ValueError(
            f"{len(other)} test cases, {other[0]} among them, are tested by the reported or the "
            "random runs alone: mending empties a mask, which changes the splits; take its case "
            "out of the source"
        )


def measure_steps(scores: dict[str, pd.DataFrame], *, resamples: int = 10_000) -> pd.DataFrame:
    """Measure Dice at every step, and what the step changed.

    "as reported" pools frames into batches at the network's size (`metrics.pooled_dice`); the other
    steps average cases at native size within groups, then groups. Models and groups that some step
    lacks are left out; ValueError if none is left.

    Returns:
        One row per step and model: step, selection ("test" or "val"), model, dice, low, high,
        change, change_low, change_high (against the step before; NaN at the first), groups, seeds.
        95 % intervals; those of one seed hold for the trained runs alone.
    """
    shared = {
        name: sorted(set.intersection(*(set(table[name]) for table in scores.values())))
        for name in ("model", "group")
    }
    if absent := [name for name, common in shared.items() if not common]:
        raise ValueError(f"the steps share no {' and no '.join(absent)}: nothing to compare")
    parts, before = [], None
    for step, table in scores.items():
        (protocol,) = table["protocol"].unique()
        table = table[table["model"].isin(shared["model"]) & table["group"].isin(shared["group"])]
        of = cube(table, protocol)
        draws = draw(of, resamples=resamples)
        if step == "as reported":
            dice, samples = _pooled(table, of, draws)
        else:
            dice, samples = macro_estimate(of.values), macro_means(of.values, draws)
        columns = {"step": step, "selection": "test" if step in ON_TEST else "val"}
        columns |= {"model": of.models, "dice": dice, **_bounds("", samples, of)}
        columns |= {"groups": len(of.groups), "seeds": len(of.seeds)}
        if before:
            columns |= {"change": dice - before[0], **_bounds("change_", samples - before[1], of)}
        parts.append(pd.DataFrame(columns))
        before = dice, samples
    return pd.concat(parts, ignore_index=True)


def _bounds(name: str, samples: np.ndarray, of: Cube) -> dict:
    return dict(zip((f"{name}low", f"{name}high"), bounds(samples, of), strict=True))


def _pooled(table: pd.DataFrame, of: Cube, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Reported Dice of each model (M,) and resample (B,M), frames drawn with their group."""
    runs = {}  # (model, seed): group, intersection and total of each frame
    for key, part in sort_rows(table).groupby(
        ["model", "seed"]
    ):  # order decides who shares a batch
        columns = part["square_both"].to_numpy(), part["square_total"].to_numpy()
        runs[key] = np.searchsorted(of.groups, part["group"]), *columns
    samples = np.empty((len(draws.groups), len(of.models)))
    for b, (counts, seeds) in enumerate(zip(draws.groups, draws.seeds[:, 0], strict=True)):
        for i, model in enumerate(of.models):
            drawn = []
            for seed in seeds:
                group, both, total = runs[model, of.seeds[seed]]
                frames = np.repeat(np.arange(len(group)), counts[group])
                drawn.append(pooled_dice(both[frames], total[frames]))
            samples[b, i] = np.mean(drawn)
    values = [[pooled_dice(*runs[model, seed][1:]) for seed in of.seeds] for model in of.models]
    return np.mean(values, axis=1), samples


def best_reported(curves: pd.DataFrame) -> pd.Series:
    """Return the report's own best test Dice, by the name that its network has here."""
    return curves.groupby(curves["model"].map(NAMES))["test_dice"].max()


def show_steps(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Turn `measure_steps` into the table for people; the first row has the report's own Dice."""
    models = [m for m in NAMES.values() if m in set(table["model"])]
    models += sorted(set(table["model"]) - set(models))
    best = best_reported(curves)
    mark = " (epoch picked on test)"
    rows = {f"the report itself{mark}": [f"{best[m]:.3f}" if m in best else "–" for m in models]}
    for step, part in table.groupby("step", sort=False):
        each = part.set_index("model").loc[models]
        cells = each["dice"].map("{:.3f}".format)
        if each["change"].notna().all():
            cells += [
                f" ({row.change:+z.3f}: {row.change_low:+z.3f} to {row.change_high:+z.3f})"
                for row in each.itertuples()
            ]
        rows[step + mark * (step in ON_TEST)] = [cell.replace("-", "−") for cell in cells]
    return pd.DataFrame.from_dict(rows, orient="index", columns=models).rename_axis("step")


def steps_sentence(table: pd.DataFrame) -> str:
    """Say what changed from the first step to the last, and by how much."""
    dice = table.pivot(index="model", columns="step", values="dice")[list(table["step"].unique())]
    each = [f"{row.name} {row.iloc[0]:.3f} to {row.iloc[-1]:.3f}" for _, row in dice.iterrows()]
    steps = table.dropna(subset="change").groupby("step", sort=False)
    changes = steps["change"].mean().sort_values(key=abs, ascending=False, kind="stable")
    worth = [f"{step} {change:+z.3f}" for step, change in changes.items()]
    apart = table.assign(apart=(table["change_low"] > 0) | (table["change_high"] < 0))
    counts = apart.groupby("step", sort=False)["apart"].sum()
    sure = [f"{step} ({count} of {len(dice)})" for step, count in counts.items() if count]
    sure = f"Zero lies outside the interval of: {', '.join(sure) or 'no step'}"
    if table["change_low"].isna().all():
        sure = "A single group gives no interval"
    elif table["seeds"].min() == 1:
        sure += "; with one seed all intervals hold for the trained runs alone"
    text = (
        f"From the first step to the last: {', '.join(each)}. What each step was worth on average "
        f"over the networks: {', '.join(worth)}. {sure}."
    )
    return text.replace(" -", " −")


def floors(flawed: Results) -> pd.DataFrame:
    """Compare the reported SegNet's loss with the floor that its last ReLU sets.

    Where every probability is at least 0.5, background costs ln 2 a pixel at least, so the mean
    loss cannot fall below (1 − f)·ln 2, f the training masks' share of foreground.

    Returns:
        One row per run of the network with and without the last ReLU: model, seed, floor, lowest
        and last training loss, below (whether the lowest is under the floor).
    """
    runs = flawed.runs[flawed.runs["model"].isin(["segnet_reported", WITHOUT_RELU])]
    loss = flawed.histories.groupby("run_id")["train_loss"]
    table = runs[["model", "seed"]].assign(floor=(1 - runs["train_foreground"]) * np.log(2))
    table = table.assign(
        lowest=runs["run_id"].map(loss.min()), last=runs["run_id"].map(loss.last())
    )
    return table.assign(below=table["lowest"] < table["floor"]).reset_index(drop=True)


def floor_sentence(table: pd.DataFrame) -> str:
    """Say whether the floor held the reported SegNet, and what came of lifting it."""
    with_relu = table[table["model"] == "segnet_reported"]
    without = table[table["model"] == WITHOUT_RELU]
    if with_relu.empty:
        return "The reported SegNet is not among these runs."
    fell = "fell" if with_relu["below"].any() else "never fell"
    gap = (with_relu["last"] - with_relu["floor"]).max()
    end = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} it"
    text = (
        f"With its last ReLU the reported SegNet {fell} below its floor of "
        f"{with_relu['floor'].mean():.3f} and ended {end}"
    )
    if without.empty:
        return f"{text}."
    side = "below" if without["below"].all() else "not below"
    return f"{text}; without that ReLU, and nothing else changed, it ended at " + (
        f"{without['last'].mean():.3f}, {side} it."
    )


def reported_stability(curves: pd.DataFrame) -> pd.DataFrame:
    """Measure stability on the report's own curves of test Dice, as far as one run each allows.

    One row per model, one column per key of `stability.MEASURES`; NaN where seeds, cases or
    probabilities are needed, which were not reported.
    """
    rows = {
        model: measure_curve(run.sort_values("epoch")["test_dice"].to_numpy())
        for model, run in curves.groupby("model", sort=False)
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=OF_CURVES)
    return table.reindex(columns=list(MEASURES)).rename_axis("model")


def curves_sentence(stability: pd.DataFrame) -> str:
    """Say what the report's own curves show of stability."""
    falls, changes = stability["largest_fall"], stability["epoch_change"]
    largest = f"The largest fall is {falls.idxmax()}'s, by {falls.max():.3f}"
    if falls.max() < SHOWN:
        largest = "No curve falls"
    return (
        f"{largest}; the calmest curve is {changes.idxmin()}'s. One run of each network says "
        "nothing of another run of the same."
    )


def save_tables(out: Path, *, shown: pd.DataFrame, sentence: str, **tables: pd.DataFrame) -> None:
    """Write steps.md (what `show_steps` gives, and a sentence) and each table as <name>.csv."""
    write_file(out / "steps.md", f"{shown.to_markdown(disable_numparse=True)}\n\n{sentence}\n")
    for name, table in tables.items():
        write_table(out / f"{name}.csv", table.reset_index() if table.index.name else table)
