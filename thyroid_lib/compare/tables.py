"""From the runs' folders to tables: what was run, one row per model, per group, and the cost."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thyroid_lib.compare.bootstrap import (
    cube,
    intervals,
    macro_estimate,
    order_protocols,
    sort_rows,
)
from thyroid_lib.compare.stability import worst_decile
from thyroid_lib.files.fingerprint import file_digest

# What must agree between runs for their Dice to be comparable; the rest is what is compared.
SHARED = (
    "data_fingerprint", "size", "resize", "mend", "width", "epochs", "batch_size", "lr",
    "selection", "augment", "threshold", "tolerance_px", "folds", "val_share", "threads", "device",
    "precision", "training_version",
)  # fmt: skip
# What runs were that do not say it, being older than the choice.
BEFORE = {"augment": "none", "precision": "fp32"}
RUN = ["run_id", "model", "protocol", "fold", "seed"]
METRICS = ("nsd", "iou", "hd95_px", "assd_px", "brier", "missed_parts", "false_parts")
# The tables of a run's folder and the columns without which there is nothing to compare.
NEEDED = {
    "history.csv": ("epoch",),
    "scores.csv": ("case_id", "group", "dice", *METRICS),
    "thresholds.csv": ("case_id", "group", "0.50"),
    "calibration.csv": ("group", "bin", "pixels", "mean_prob", "share"),
}


class Results(NamedTuple):
    """What a study's runs left: one table per kind of file, all runs below each other."""

    runs: pd.DataFrame
    histories: pd.DataFrame
    scores: pd.DataFrame
    thresholds: pd.DataFrame
    calibration: pd.DataFrame


def load_runs(folders: list[Path]) -> Results:
    """Gather finished runs, or refuse and name what is missing or does not belong.

    Args:
        folders: one folder per run, each with `run.json` and the tables of `NEEDED`.

    Returns:
        runs: one row per run, the fields of `run.json`; the others: the tables of the same names
        (histories of `history.csv`), each row with the columns of `RUN` before its own. Rows are
        sorted: the order of the folders changes nothing.

    Raises:
        FileNotFoundError: runs without a result; all of them are named.
        ValueError: no run at all, a table that is not the one that was written, columns missing,
            settings that differ, or other test cases for other models.
    """
    folders = sorted(Path(folder) for folder in folders)
    if not folders:
        raise ValueError("no run was named: give the folders of at least one finished run")
    files = ("run.json", *NEEDED)
    missing = [f.name for f in folders if not all((f / name).is_file() for name in files)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(folders)} runs have no result: {', '.join(missing)}; each "
            f"needs {', '.join(files)}: run 3-train for them, then compare again"
        )
    about = [BEFORE | _read_json(folder / "run.json") for folder in folders]
    runs = pd.DataFrame(about)
    tables = {name: [] for name in NEEDED}
    for folder, run in zip(folders, about, strict=True):
        digests = run.get("files", {})  # older runs wrote none down
        run = {name: run[name] for name in RUN}
        for name, parts in tables.items():
            if name in digests and file_digest(folder / name) != digests[name]:
                raise ValueError(
                    f"{folder.name}/{name} is not the file that was written (damaged? edited?): "
                    "run 3-train again (it scores, and trains nothing anew)"
                )
            table = read_table(folder / name, run)
            if lacking := [column for column in NEEDED[name] if column not in table]:
                raise ValueError(
                    f"{folder.name}/{name} lacks {', '.join(lacking)}: it was made by an older "
                    "version; run 3-train again (it scores, and trains nothing anew)"
                )
            parts.append(table)
    loaded = [sort_rows(pd.concat(parts, ignore_index=True)) for parts in tables.values()]
    results = Results(runs.sort_values(RUN[1:], ignore_index=True), *loaded)
    _check_comparable(results.runs, results.scores)
    return results


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is damaged ({error}): run 3-train again (it scores, "
            "and trains nothing anew)"
        ) from error


def read_table(path: Path, run: dict) -> pd.DataFrame:
    """Read a run's table; each row has the run's columns before its own. Names stay text."""
    table = pd.read_csv(path, dtype={"case_id": str, "group": str})
    return pd.DataFrame(run, index=table.index).join(table)


def _check_comparable(runs: pd.DataFrame, scores: pd.DataFrame) -> None:
    twice = runs.run_id[runs.duplicated(RUN[1:])]
    if len(twice):
        raise ValueError(f"runs given twice: {', '.join(twice)}")
    for field in SHARED:
        usual = runs[field].mode()[0]
        odd = runs[runs[field] != usual]
        if len(odd):
            raise ValueError(
                f"{field} differs between runs: most have {usual}, but "
                + ", ".join(f"{row.run_id} has {getattr(row, field)}" for row in odd.itertuples())
                + "; train them again with equal settings (`auto` is not the same on all machines)"
            )
    cases = scores.groupby(RUN[1:])["case_id"].agg(lambda ids: "\n".join(sorted(ids)))
    for (protocol, fold), lists in cases.groupby(["protocol", "fold"]):
        if lists.nunique() > 1:
            raise ValueError(
                f"runs of protocol {protocol}, fold {fold} were tested on different cases: "
                "train them again on one store"
            )


def group_means(scores: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Average frames within groups, then over seeds and folds.

    Returns:
        One row per protocol, model and group; columns `metric` and `frames`.
    """
    keys = ["protocol", "model", "group"]
    each = sort_rows(scores).groupby([*keys, "fold", "seed"])[metric].agg(["mean", "size"])
    return (
        each.groupby(keys)
        .agg(**{metric: ("mean", "mean"), "frames": ("size", "first")})
        .reset_index()
    )


def calibration_errors(calibration: pd.DataFrame) -> pd.DataFrame:
    """Give ECE per run and group: the mean gap of probability and truth, weighed by pixels."""
    table = calibration.dropna(subset=["mean_prob", "share"])
    gap = table["pixels"] * (table["mean_prob"] - table["share"]).abs()
    keys = ["protocol", "model", "fold", "seed", "group"]
    sums = table.assign(gap=gap).groupby(keys)[["gap", "pixels"]].sum()
    return (sums["gap"] / sums["pixels"]).rename("ece").reset_index()


def summary(
    scores: pd.DataFrame,
    runs: pd.DataFrame,
    calibration: pd.DataFrame,
    *,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """Give one row per protocol and model, best Dice first within a protocol.

    Returns:
        protocol, model; selection: which epoch's weights were kept; dice, its 95 % interval
        dice_low and dice_high (see `statistics.intervals`) and whether it is conditional;
        dice_sd_groups, dice_sd_seeds: standard deviations between group means and between seeds
        (NaN for one); dice_worst_decile; nsd, iou, hd95_px, assd_px, brier, missed_parts,
        false_parts, ece: group-macro means, missed frames at the image's diagonal; missed: test
        frames with Dice 0, in all runs; groups, folds, seeds; parameters; multiply_adds per image.
    """
    known = intervals(scores, resamples=resamples)
    errors = calibration_errors(calibration)
    rows = []
    for row in known.to_dict("records"):
        protocol, model = row["protocol"], row["model"]
        part = scores[(scores["protocol"] == protocol) & (scores["model"] == model)]
        of_model = runs[(runs["model"] == model) & (runs["protocol"] == protocol)].iloc[0]
        values = cube(part, protocol).values  # (1,F,S,G)
        per_seed = np.nanmean(values, axis=1).mean(axis=2)[0]  # (S,)
        rows.append(
            {"protocol": protocol, "model": model, "selection": of_model["selection"],
             "dice": row["estimate"], "dice_low": row["low"], "dice_high": row["high"],
             "conditional": row["conditional"],
             "dice_sd_groups": pd.Series(np.nanmean(values, axis=(1, 2))[0]).std(),
             "dice_sd_seeds": pd.Series(per_seed).std(),
             "dice_worst_decile": worst_decile(part["dice"])}
            | {name: macro_estimate(cube(part, protocol, name).values)[0] for name in METRICS}
            | {"ece": macro_estimate(cube(_of(errors, protocol, model), protocol, "ece").values)[0],
               "missed": int((part["dice"] == 0).sum())}
            | {name: row[name] for name in ("groups", "folds", "seeds")}
            | {name: of_model[name] for name in ("parameters", "multiply_adds")}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    place = table["protocol"].map({p: i for i, p in enumerate(order_protocols(table["protocol"]))})
    return (
        table.assign(place=place)
        .sort_values(["place", "dice", "model"], ascending=[True, False, True], ignore_index=True)
        .drop(columns="place")
    )


def _of(table: pd.DataFrame, protocol: str, model: str) -> pd.DataFrame:
    return table[(table["protocol"] == protocol) & (table["model"] == model)]


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Give one row per model: training time and memory of its runs (medians), and its size."""
    table = runs.groupby("model").agg(
        runs=("run_id", "size"),
        precision=("precision", "first"),
        train_seconds=("train_seconds", "median"),
        images_per_second=("images_per_second", "median"),
        peak_memory_mib=("peak_memory_mib", "median"),
        parameters=("parameters", "first"),
        multiply_adds=("multiply_adds", "first"),
    )
    return table.reset_index()


def first_seed(scores: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Keep one protocol's scores of the smallest seed: each case once per model."""
    part = scores[scores["protocol"] == protocol]
    return part[part["seed"] == part["seed"].min()]
