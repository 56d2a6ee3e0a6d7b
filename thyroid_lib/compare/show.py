"""Tables for people, rounded and in Markdown, and the files that a comparison leaves.

Rounding is part of it: digits beyond these differ between machines and mean nothing.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.compare.bootstrap import order_protocols
from thyroid_lib.compare.tables import cost, group_means
from thyroid_lib.files.writing import write_file, write_table


def with_interval(table: pd.DataFrame, names: tuple[str, str, str], digits: int = 3) -> list[str]:
    """Write `estimate [low, high]` from three columns; only the estimate where they are NaN.

    A † follows where the table has a column `conditional` that says so, see `Cube.conditional`.
    """
    marks = table["conditional"] if "conditional" in table else [False] * len(table)
    return [
        f"{value:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]{' †' * bool(mark)}"
        if np.isfinite(low)
        else (f"{value:z.{digits}f}" if np.isfinite(value) else "–")
        for (value, low, high), mark in zip(
            table[list(names)].itertuples(index=False), marks, strict=True
        )
    ]


def show(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `summary` into the table for people; † marks intervals for the trained runs alone."""
    # Only the replication picks epochs on the test set, and no table of it goes without a mark.
    mark = np.where(table["selection"] == "test", " (epoch picked on test)", "")
    shown = {
        "protocol": table["protocol"] + mark,
        "model": table["model"],
        "Dice [95 % interval]": with_interval(table, ("dice", "dice_low", "dice_high")),
    }
    for name, column, digits in (
        ("SD groups", "dice_sd_groups", 3), ("SD seeds", "dice_sd_seeds", 3),
        ("worst decile", "dice_worst_decile", 3), ("NSD", "nsd", 3), ("HD95 (px)", "hd95_px", 1),
        ("missed", "missed", 0), ("ECE", "ece", 3), ("Brier", "brier", 3),
    ):  # fmt: skip
        shown[name] = [f"{x:.{digits}f}" if np.isfinite(x) else "–" for x in table[column]]
    return pd.DataFrame(shown)


def show_details(table: pd.DataFrame) -> pd.DataFrame:
    """Turn the rest of `summary` into a table for people: size of the study, parts, cost."""
    return pd.DataFrame(
        {
            "protocol": table["protocol"],
            "model": table["model"],
            "groups × folds × seeds": table["groups"].astype(str)
            + " × " + table["folds"].astype(str)
            + " × " + table["seeds"].astype(str),
            "IoU": table["iou"].map("{:.3f}".format),
            "ASSD (px)": table["assd_px"].map("{:.1f}".format),
            "missed parts": table["missed_parts"].map("{:.2f}".format),
            "false parts": table["false_parts"].map("{:.2f}".format),
            "parameters (M)": (table["parameters"] / 1e6).map("{:.2f}".format),
            "multiply-adds (G)": (table["multiply_adds"] / 1e9).map("{:.2f}".format),
        }
    )  # fmt: skip


def show_pairs(differences: pd.DataFrame, mixed: pd.DataFrame) -> pd.DataFrame:
    """Put the bootstrap's differences and the mixed model's side by side, for people."""
    both = differences.merge(mixed, on=["protocol", "a", "b"], suffixes=("", "_mixed"))
    return pd.DataFrame(
        {
            "protocol": both["protocol"],
            "a − b": both["a"] + " − " + both["b"],
            "Dice [95 % interval]": with_interval(both, ("difference", "low", "high")),
            "mixed model": with_interval(both, ("difference_mixed", "low_mixed", "high_mixed"), 2),
            "p": [f"{p:.2f}" if p >= 0.01 else "<0.01" for p in both["p"]],
            "reading": both["reading"],
            "80 % see": both["smallest_gap"].map("{:.3f}".format),
        }
    )


def show_stability(stability: pd.DataFrame) -> pd.DataFrame:
    """Turn `stability.stability` into a table for people: one column per measure."""
    text = stability.assign(text=with_interval(stability, ("value", "low", "high")))
    wide = text.pivot(index=["protocol", "model"], columns="measure", values="text")
    order = order_protocols(stability["protocol"])
    return wide.loc[order].reset_index().rename_axis(columns=None)


def save_tables(
    out: str | Path,
    *,
    scores: pd.DataFrame,
    runs: pd.DataFrame,
    table: pd.DataFrame,
    selected: dict,
    card: str,
    **more: pd.DataFrame,
) -> None:
    """Write the comparison's tables.

    Args:
        out: the folder.
        scores, runs: see `load_runs`; they give groups.csv and cost.csv.
        table: see `summary`; summary.csv, summary.md, details.md.
        selected: see `selection.select`; selected.json.
        card: see `card.model_card`; model_card.md.
        more: tables by name, `differences=…` gives differences.csv.
    """
    out = Path(out)
    texts = {"summary": show(table), "details": show_details(table)}
    for name, shown in texts.items():
        text = shown.to_markdown(index=False, disable_numparse=True)
        write_file(out / f"{name}.md", text + "\n")
    # Fewer digits: the mixed model's optimiser stops at slightly other places on other machines.
    digits = {"cost": 1, "mixed": 3, "summary": 6, "groups": 6}
    tables = {"summary": table, "groups": group_means(scores), "cost": cost(runs), **more}
    for name, content in tables.items():
        write_table(out / f"{name}.csv", content, digits=digits.get(name, 4))
    write_file(out / "selected.json", json.dumps(selected, indent=1, sort_keys=True) + "\n")
    write_file(out / "model_card.md", card)
