"""From the runs' tables to the answer: one row per model, its spread, and the model to pick.

A frame is never a unit here: frames of one sweep are near-copies, so every mean is taken within
groups first ("group-macro") and every spread is between groups or between seeds.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import write_file

# What must agree between runs for their Dice to be comparable; the rest is what is compared.
SHARED = (
    "data_fingerprint", "size", "resize", "mend", "width", "epochs", "batch_size", "lr",
    "selection", "threshold", "tolerance_px", "folds", "val_share", "threads", "device",
)  # fmt: skip
SEEDS_FOR_STABILITY = 5
RUN = ["run_id", "model", "protocol", "fold", "seed"]


def load_runs(folders: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Gather finished runs, or refuse and name what is missing or does not belong.

    Args:
        folders: one folder per run, each with `run.json`, `scores.csv` and `history.csv`.

    Returns:
        runs: one row per run, the fields of `run.json`.
        scores: one row per run and test case; columns of `RUN`, then those of `scores.csv`.
        histories: one row per run and epoch; columns of `RUN`, then those of `history.csv`.

    Raises:
        FileNotFoundError: runs without a result; all of them are named.
        ValueError: no run at all, settings that differ, or other test cases for other models.
    """
    folders = [Path(folder) for folder in folders]
    if not folders:
        raise ValueError("no run was named: give the folders of at least one finished run")
    files = ("run.json", "scores.csv", "history.csv")
    missing = [f.name for f in folders if not all((f / name).is_file() for name in files)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(folders)} runs have no result: {', '.join(missing)}; "
            "run 3-train for them, then compare again"
        )
    runs = pd.DataFrame([json.loads((f / "run.json").read_text()) for f in folders])
    tables = {"scores.csv": [], "history.csv": []}
    for folder, run in zip(folders, runs[RUN].to_dict("records"), strict=True):
        for name, parts in tables.items():
            table = pd.read_csv(folder / name, dtype={"case_id": str, "group": str})
            parts.append(pd.DataFrame(run, index=table.index).join(table))
    scores, histories = (pd.concat(parts, ignore_index=True) for parts in tables.values())
    _check_comparable(runs, scores)
    return runs, scores, histories


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
                + "; train them again with equal settings"
            )
    cases = scores.groupby(RUN[1:])["case_id"].agg(lambda ids: "\n".join(sorted(ids)))
    for (protocol, fold), lists in cases.groupby(["protocol", "fold"]):
        if lists.nunique() > 1:
            raise ValueError(
                f"runs of protocol {protocol}, fold {fold} were tested on different cases: "
                "train them again on one store"
            )


def group_means(scores: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Average frames within groups, then over seeds.

    Returns:
        One row per protocol, model and group; columns `metric` and `frames`.
    """
    keys = ["protocol", "model", "group"]
    each = scores.groupby([*keys, "fold", "seed"])[metric].agg(["mean", "size"])
    return (
        each.groupby(keys)
        .agg(**{metric: ("mean", "mean"), "frames": ("size", "first")})
        .reset_index()
    )


def seed_means(scores: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Average frames within groups, then over groups: one row per protocol, model and seed."""
    keys = ["protocol", "model", "seed"]
    each = scores.groupby([*keys, "group"])[metric].mean()
    return each.groupby(keys).mean().reset_index()


def worst_decile(values: pd.Series) -> float:
    """Mean of the lowest tenth of the values (CVaR10), of at least one."""
    lowest = np.sort(values.to_numpy())[: max(1, len(values) // 10)]
    return float(lowest.mean())


def summary(scores: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Give one row per protocol and model, best Dice first within a protocol.

    Returns:
        protocol, model; selection: which epoch's weights were kept; dice, nsd, iou: group-macro
        means; dice_sd_groups: standard deviation
        between group means; dice_sd_seeds: between seeds (NaN for one seed); dice_worst_decile;
        hd95_px, assd_px: group-macro means, missed frames at the image's diagonal; missed: test
        frames with Dice 0; groups, seeds; parameters; multiply_adds per image.
    """
    rows = []
    for (protocol, model), part in scores.groupby(["protocol", "model"]):
        per_group = group_means(part)["dice"]
        per_seed = seed_means(part)["dice"]
        of_model = runs[(runs.model == model) & (runs.protocol == protocol)].iloc[0]
        macro = {
            name: group_means(part, name)[name].mean()
            for name in ("dice", "nsd", "iou", "hd95_px", "assd_px")
        }
        rows.append(
            {
                "protocol": protocol, "model": model, "selection": of_model.selection,
                "dice": macro["dice"],
                "dice_sd_groups": per_group.std(ddof=1), "dice_sd_seeds": per_seed.std(ddof=1),
                "dice_worst_decile": worst_decile(part["dice"]), "nsd": macro["nsd"],
                "iou": macro["iou"], "hd95_px": macro["hd95_px"], "assd_px": macro["assd_px"],
                "missed": int((part["dice"] == 0).sum()), "groups": part["group"].nunique(),
                "seeds": part["seed"].nunique(), "parameters": of_model.parameters,
                "multiply_adds": of_model.multiply_adds,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.sort_values(
        ["protocol", "dice", "model"], ascending=[True, False, True], ignore_index=True
    )


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Give one row per model: training time and memory of its runs (medians), and its size."""
    table = runs.groupby("model").agg(
        runs=("run_id", "size"),
        train_seconds=("train_seconds", "median"),
        images_per_second=("images_per_second", "median"),
        peak_memory_mib=("peak_memory_mib", "median"),
        parameters=("parameters", "first"),
        multiply_adds=("multiply_adds", "first"),
    )
    return table.reset_index()


def select(table: pd.DataFrame, *, delta: float = 0.005) -> dict:
    """Pick the model to deploy by a rule that was declared before training.

    The grouped protocol decides where there is one. Models whose Dice lies within `delta` of the
    best are a tie, and the tie goes to the fewest multiply-adds, then the fewest parameters.

    Args:
        table: what `summary` gives.
        delta: Dice that makes no difference in practice.

    Returns:
        model, protocol, best (highest Dice), tied (names, alphabetical), seeds (the fewest that
        any of the models has), rule (in words).
    """
    protocols = list(dict.fromkeys(table["protocol"]))
    protocol = "grouped" if "grouped" in protocols else protocols[0]
    rivals = table[table.protocol == protocol]
    tied = rivals[rivals.dice >= rivals.dice.max() - delta]
    chosen = tied.sort_values(["multiply_adds", "parameters", "model"]).iloc[0]
    best = rivals.sort_values(["dice", "model"], ascending=[False, True]).iloc[0]
    return {
        "model": str(chosen.model),
        "protocol": protocol,
        "best": str(best.model),
        "tied": sorted(tied.model),
        "seeds": int(rivals.seeds.min()),
        "rule": f"highest Dice under {protocol}; within {delta} is a tie, which goes to the "
        "fewest multiply-adds",
    }


def show(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `summary` into the table for people: `mean ± SD`, millions, giga-multiply-adds."""

    def with_spread(mean: pd.Series, spread: pd.Series) -> list[str]:
        return [
            f"{m:.3f} ± {s:.3f}" if np.isfinite(s) else f"{m:.3f}"
            for m, s in zip(mean, spread, strict=True)
        ]

    # Only the replication picks epochs on the test set, and no table of it goes without a mark.
    mark = np.where(table["selection"] == "test", " (epoch picked on test)", "")
    return pd.DataFrame(
        {
            "protocol": table["protocol"] + mark,
            "model": table["model"],
            "Dice ± SD of groups": with_spread(table["dice"], table["dice_sd_groups"]),
            "SD of seeds": [f"{s:.3f}" if np.isfinite(s) else "–" for s in table["dice_sd_seeds"]],
            "worst decile": table["dice_worst_decile"].map("{:.3f}".format),
            "NSD": table["nsd"].map("{:.3f}".format),
            "HD95 (px)": table["hd95_px"].map("{:.1f}".format),
            "missed": table["missed"],
            "parameters (M)": (table["parameters"] / 1e6).map("{:.2f}".format),
            "multiply-adds (G)": (table["multiply_adds"] / 1e9).map("{:.2f}".format),
        }
    )


def protocol_sentence(table: pd.DataFrame) -> str:
    """Say in words what the random split adds to each model's Dice, from `summary`."""
    dice = table.pivot(index="model", columns="protocol", values="dice")
    if not {"random", "grouped"} <= set(dice.columns):
        return f"Only one protocol was run ({', '.join(dice.columns)}): no gap to tell."
    gaps = (dice["random"] - dice["grouped"]).sort_index()
    each = ", ".join(
        f"{model} {dice.loc[model, 'random']:.3f} against {dice.loc[model, 'grouped']:.3f}"
        for model in gaps.index
    )
    return (
        f"Random frames against unseen groups: {each}. The random split adds "
        f"{gaps.mean():.3f} Dice on average over the models."
    )


def selection_sentence(selected: dict) -> str:
    """Say in words what `select` did, and that a few seeds do not speak of stability."""
    tie = ""
    if len(selected["tied"]) > 1:
        tie = f", out of a tie of {', '.join(selected['tied'])} (best Dice: {selected['best']})"
    few = selected["seeds"] < SEEDS_FOR_STABILITY
    doubt = f" Seeds: {selected['seeds']}; below {SEEDS_FOR_STABILITY} the order may be luck."
    return f"Selected: {selected['model']}{tie}. Rule: {selected['rule']}.{doubt * few}"


def first_seed(scores: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Keep one protocol's scores of the smallest seed: each case once per model."""
    part = scores[scores["protocol"] == protocol]
    return part[part["seed"] == part["seed"].min()]


def save_tables(
    out: str | Path,
    *,
    scores: pd.DataFrame,
    runs: pd.DataFrame,
    table: pd.DataFrame,
    selected: dict,
) -> None:
    """Write the comparison's tables: summary (CSV and Markdown), groups, cost, selected."""
    out = Path(out)
    each_group = group_means(scores)
    write_file(out / "summary.csv", table.to_csv(index=False, float_format="%.6f"))
    shown = show(table).to_markdown(index=False, disable_numparse=True)
    write_file(out / "summary.md", shown + "\n")
    write_file(out / "groups.csv", each_group.to_csv(index=False, float_format="%.6f"))
    write_file(out / "cost.csv", cost(runs).to_csv(index=False, float_format="%.1f"))
    write_file(out / "selected.json", json.dumps(selected, indent=1, sort_keys=True) + "\n")
