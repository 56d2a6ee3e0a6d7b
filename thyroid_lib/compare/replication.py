"""The replication of the reported study: its flaws are mended one by one, and each is measured.

Runs of protocol "reported" repeat the study; those of "random" and "grouped" mend it. A step keeps
the networks, seeds and recipe of the one before, and both resample the same groups.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import Cube, Draws
from thyroid_lib.compare.stability import MEASURES, OF_CURVES, measure_curve
from thyroid_lib.compare.tables import SHARED, Results, load_runs, read_run, read_table
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
    """Return the reported learning curves, one run of each network, as its log has them."""
    return pd.read_csv(Path(__file__).with_name("reported_curves.csv"))


def load_steps(reported: list, fair: list) -> tuple[dict[str, pd.DataFrame], Results]:
    """Load the runs of protocol "reported", and of "random" and "grouped".

    Of the others only those of models that were run as reported. Returns for each of `STEPS` the
    scores, one row per run and test case; and the reported runs. ValueError: a step has no run, or
    settings, seeds or test cases differ.
    """
    flawed = load_runs(reported)
    models = set(flawed.runs["model"])
    mended = load_runs([run for run in fair if read_run(Path(run))["model"] in models] or fair)
    of_val = pd.concat([read_table(f, read_run(f), "scores_val.csv") for f in map(Path, reported)])
    by_protocol = dict(list(mended.scores.groupby("protocol")))
    if absent := [name for name in ("random", "grouped") if name not in by_protocol]:
        raise ValueError(f"no run of protocol {', '.join(absent)}: train them, or name them")
    changed = {"data_fingerprint", "mend", "selection"}  # by the steps
    for field in [name for name in ("seed", *SHARED) if name not in changed]:
        has, other = (sorted(set(results.runs[field])) for results in (flawed, mended))
        if has != other:
            raise ValueError(f"{field} differs: reported runs have {has}, fair ones {other}")
    if other := sorted(set(flawed.scores["case_id"]) ^ set(by_protocol["random"]["case_id"])):
        what = "is tested by the reported or the random runs alone, as mending empties its mask"
        raise ValueError(f"{other[0]} {what}: take it out of the source")
    tables = flawed.scores, flawed.scores, of_val, by_protocol["random"], by_protocol["grouped"]
    return dict(zip(STEPS, tables, strict=True)), flawed


def measure_steps(scores: dict[str, pd.DataFrame], *, resamples: int = 10_000) -> pd.DataFrame:
    """Measure Dice at every step, and what the step changed, with 95 % intervals.

    "as reported" pools frames into batches at the network's size (`metrics.pooled_dice`); the other
    steps average cases at native size within groups, then groups. Models and groups that some step
    lacks are left out. Returns one row per step and model: step, selection ("test" or "val"),
    model, dice, low, high, groups, seeds; change, change_low, change_high (NaN at the first).
    """
    models, groups = (
        set.intersection(*(set(table[name]) for table in scores.values()))
        for name in ("model", "group")
    )
    parts, before = [], (np.nan, np.nan)
    for step, table in scores.items():
        table = table[table["model"].isin(models) & table["group"].isin(groups)]
        of = bootstrap.cube(table, table["protocol"].iloc[0])
        draws = bootstrap.draw(of, resamples=resamples)
        now = bootstrap.macro_estimate(of.values), bootstrap.macro_means(of.values, draws)
        now = _pooled(table, of, draws) if step == "as reported" else now
        part = {"step": step, "selection": "test" if step in ON_TEST else "val"}
        part |= {"model": of.models, "dice": now[0]}
        part["low"], part["high"] = bootstrap.bounds(now[1], of)
        part |= {"groups": len(of.groups), "seeds": len(of.seeds), "change": now[0] - before[0]}
        part["change_low"], part["change_high"] = bootstrap.bounds(now[1] - before[1], of)
        parts.append(pd.DataFrame(part))
        before = now
    return bootstrap.mark_groups(pd.concat(parts, ignore_index=True), table)


def _pooled(table: pd.DataFrame, of: Cube, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Reported Dice of each model (M,) and resample (B,M), frames drawn with their group."""
    table = bootstrap.sort_rows(table)  # the order of batches
    table["group"] = np.searchsorted(of.groups, table["group"])
    names = ["group", "square_both", "square_total"]
    runs = {key: part[names].to_numpy().T for key, part in table.groupby(["model", "seed"])}

    def dice(model: str, seeds, counts: np.ndarray) -> float:
        each = (runs[model, of.seeds[seed]] for seed in seeds)  # (3,N)
        drawn = (np.repeat(run[1:], counts[run[0].astype(int)], axis=1) for run in each)
        return np.mean([pooled_dice(*run) for run in drawn])

    once, all_seeds = np.ones(len(of.groups), int), range(len(of.seeds))
    resampled = zip(draws.seeds[:, 0], draws.groups, strict=True)
    samples = [[dice(model, *one) for model in of.models] for one in resampled]
    return np.array([dice(model, all_seeds, once) for model in of.models]), np.array(samples)


def best_reported(curves: pd.DataFrame) -> pd.Series:
    """Return the best reported test Dice, by the name that its network has here."""
    return curves.groupby(curves["model"].map(NAMES))["test_dice"].max()


def show_steps(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Turn `measure_steps` into the table for people; the first row has the report's own Dice."""
    known, order = list(NAMES.values()), set(table["model"])
    models = [m for m in known if m in order] + sorted(order - set(known))
    best, mark = best_reported(curves), " (epoch picked on test)"
    rows = {f"the report itself{mark}": [f"{best[m]:.3f}" if m in best else "–" for m in models]}
    changed = " ({0.change:+z.3f}: {0.change_low:+z.3f} to {0.change_high:+z.3f})"
    for step, part in table.groupby("step", sort=False):
        cells = [
            f"{row.dice:.3f}" + ("" if np.isnan(row.change) else changed.format(row))
            for row in part.set_index("model").loc[models].itertuples()
        ]
        rows[step + mark * (step in ON_TEST)] = [cell.replace("-", "−") for cell in cells]
    return pd.DataFrame.from_dict(rows, orient="index", columns=models).rename_axis("step")


def steps_sentence(table: pd.DataFrame) -> str:
    """Say what changed from the first step to the last, and by how much."""
    dice = table.pivot(index="model", columns="step", values="dice")[list(table["step"].unique())]
    each = [f"{row.name} {row.iloc[0]:.3f} to {row.iloc[-1]:.3f}" for _, row in dice.iterrows()]
    apart = (table["change_low"] > 0) | (table["change_high"] < 0)
    steps = table.assign(apart=apart).dropna(subset="change").groupby("step", sort=False)
    changes = steps["change"].mean().sort_values(key=abs, ascending=False, kind="stable")
    worth = [f"{step} {change:+z.3f}" for step, change in changes.items()]
    counts = steps["apart"].sum().items()
    sure = [f"{step} ({count} of {len(dice)})" for step, count in counts if count]
    sure = f"Zero lies outside the interval of: {', '.join(sure) or 'no step'}"
    if table["change_low"].isna().all():
        sure = "A single group gives no interval"
    elif table["seeds"].min() == 1:
        sure += "; with one seed all intervals hold for the trained runs alone"
    return (
        f"From the first step to the last: {', '.join(each)}. What each step was worth on average "
        f"over the networks: {', '.join(worth)}. {sure}."
    ).replace(" -", " −")


def floors(flawed: Results) -> pd.DataFrame:
    """Compare the reported SegNet's loss with the floor that its last ReLU sets.

    Every probability is at least 0.5, so the loss is at least (1 − f)·ln 2, f the training masks'
    share of foreground. Returns one row per run with and without the last ReLU: model, seed, floor,
    lowest and last training loss, below (whether the lowest is under the floor).
    """
    runs = flawed.runs[flawed.runs["model"].isin(["segnet_reported", WITHOUT_RELU])]
    loss = flawed.histories.groupby("run_id")["train_loss"].agg(lowest="min", last="last")
    table = runs[["model", "seed", "run_id"]].join(loss, on="run_id").drop(columns="run_id")
    table.insert(2, "floor", (1 - runs["train_foreground"]) * np.log(2))
    return table.assign(below=table["lowest"] < table["floor"]).reset_index(drop=True)


def floor_sentence(table: pd.DataFrame) -> str:
    """Say whether the floor held the reported SegNet, and what came of lifting it."""
    with_relu, without = (table[table["model"] == m] for m in ("segnet_reported", WITHOUT_RELU))
    if with_relu.empty:
        return "The reported SegNet is not among these runs."
    fell = f"{'fell' if with_relu['below'].any() else 'never fell'} below its floor"
    floor, gap = with_relu["floor"].mean(), (with_relu["last"] - with_relu["floor"]).max()
    ended = f"ended {abs(gap):.3f} {'above' if gap > 0 else 'below'} it"
    text = f"With its last ReLU the reported SegNet {fell} of {floor:.3f} and {ended}"
    if len(without):
        side = "below" if without["below"].all() else "not below"
        text += "; without that ReLU, and nothing else changed, it ended at "
        text += f"{without['last'].mean():.3f}, {side} it"
    return f"{text}."


def reported_stability(curves: pd.DataFrame) -> pd.DataFrame:
    """Measure `stability.MEASURES` on the report's curves; NaN where seeds or cases are needed."""
    runs = curves.sort_values("epoch").groupby("model", sort=False)["test_dice"]
    rows = {model: measure_curve(run.to_numpy()) for model, run in runs}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=OF_CURVES)
    return table.loc[curves["model"].unique(), :].reindex(columns=[*MEASURES]).rename_axis("model")


def curves_sentence(stability: pd.DataFrame) -> str:
    """Say what the report's own curves show of stability."""
    falls, changes = stability["largest_fall"], stability["epoch_change"]
    text = f"The largest fall is {falls.idxmax()}'s, by {falls.max():.3f}; the calmest curve is"
    once = "One run of each network says nothing of another run of the same."
    return f"{text} {changes.idxmin()}'s. {once}"


def save_tables(out: Path, *, shown: pd.DataFrame, sentence: str, **tables: pd.DataFrame) -> None:
    """Write steps.md (what `show_steps` gives, and a sentence) and each table as <name>.csv."""
    write_file(out / "steps.md", f"{shown.to_markdown(disable_numparse=True)}\n\n{sentence}\n")
    for name, table in tables.items():
        write_table(out / f"{name}.csv", table.reset_index() if table.index.name else table)
