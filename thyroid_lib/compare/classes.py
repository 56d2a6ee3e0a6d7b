"""Figures per class and per lesion, from `classes.csv` and `lesions.csv` of a study's runs."""

import numpy as np
import pandas as pd

from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import bounds, cube, draw, macro_estimate, macro_means
from thyroid_lib.compare.tables import with_interval, with_numbers

METRICS = ("nsd", "hd95_px", "precision", "recall", "found")
UNKNOWN = "kind not known"  # of lesions
SIZES = ("small", "middle", "large")  # thirds of the lesions, by area


def class_table(rows: pd.DataFrame, *, resamples: int = 10_000) -> pd.DataFrame:
    """Summarise each protocol, model and class; `rows`: `classes.csv` of all runs.

    Columns: protocol, model, class; frames whose reference has it; over these frames dice with its
    interval, `METRICS` (found: share of its parts of which a pixel is predicted); over all frames
    in which it was outlined false_parts, predicted parts where there is none; conditional.
    """
    parts = []
    rows = rows.assign(found=1 - rows["missed_parts"] / rows["ref_parts"].clip(lower=1))
    for protocol in bootstrap.order_protocols(rows["protocol"]):
        for name in rows["class"].drop_duplicates():
            outlined = rows[(rows["protocol"] == protocol) & (rows["class"] == name)]
            there = outlined[outlined["ref_px"] > 0]
            if not len(there):
                continue
            of = cube(there, protocol)
            means = macro_means(of.values, draw(of, resamples=resamples))
            low, high = bounds(means, of)
            frames = there.groupby("model")["case_id"].nunique()
            columns = {"protocol": protocol, "model": of.models, "class": name}
            columns |= {"frames": frames[list(of.models)].to_numpy()}
            columns |= {"dice": macro_estimate(of.values), "dice_low": low, "dice_high": high}
            columns |= {x: macro_estimate(cube(there, protocol, x).values) for x in METRICS}
            columns["false_parts"] = macro_estimate(cube(outlined, protocol, "false_parts").values)
            unknown = np.isin(of.models, bootstrap.copied_models(there))  # ensembles: one seed
            parts.append(pd.DataFrame(columns).assign(conditional=of.conditional | unknown))
    return pd.concat(parts, ignore_index=True)


def lesion_table(lesions: pd.DataFrame) -> pd.DataFrame:
    """Return how many lesions are found, by size; `lesions`: `lesions.csv` of all runs.

    Columns: protocol, model, class, size (a third of the class's lesions), least_px and most_px,
    lesions, found (share of which a pixel is predicted as its class), half_covered. Counted over
    all seeds and folds; lesions of one patient are not independent, so no interval is given.
    """
    lesions = lesions.assign(**{"class": lesions["class"].fillna("").replace("", UNKNOWN)})
    limits = lesions.groupby("class")["px"].quantile([1 / 3, 2 / 3]).unstack()
    low, high = (lesions["class"].map(limits[each]) for each in limits)
    place = (lesions["px"] > low).astype(int) + (lesions["px"] > high)
    each = lesions.assign(
        size=np.array(SIZES)[place], place=place,
        found=lesions["covered"] > 0, half_covered=lesions["covered"] >= 0.5,
    )  # fmt: skip
    keys = ["protocol", "model", "class", "place", "size"]
    one_run = each.groupby(keys)["seed"].nunique()
    table = each.groupby(keys).agg(
        least_px=("px", "min"), most_px=("px", "max"), lesions=("px", "size"),
        found=("found", "mean"), half_covered=("half_covered", "mean"),
    )  # fmt: skip
    table["lesions"] = (table["lesions"] / one_run).round().astype(int)
    return table.reset_index().drop(columns="place")


def show_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `class_table` into a table for people; † marks intervals for the trained runs alone."""
    shown = table[["protocol", "class", "model", "frames"]].copy()
    shown["Dice [95 % interval]"] = with_interval(table, ("dice", "dice_low", "dice_high"))
    shown = with_numbers(
        shown, table, ("NSD", "nsd", 3), ("HD95 (px)", "hd95_px", 1), ("found", "found", 2),
        ("false parts a frame", "false_parts", 2),
    )  # fmt: skip
    return shown.sort_values(["protocol", "class"], kind="stable", ignore_index=True)


def show_lesions(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `lesion_table` under the deciding protocol into a table for people, a row per size."""
    part = bootstrap.deciding(table)
    size = (
        part["size"] + part["least_px"].map(", {} to ".format) + part["most_px"].map("{} px".format)
    )
    counted = part["found"].map("{:.2f}".format) + " of " + part["lesions"].astype(str)
    shown = part.assign(lesions=size, text=counted)
    order = shown.drop_duplicates(["class", "lesions"])[["class", "lesions"]]
    wide = shown.pivot(index=["class", "lesions"], columns="model", values="text")
    return wide.loc[list(order.itertuples(index=False, name=None))].rename_axis(columns=None)


def classes_sentence(table: pd.DataFrame) -> str:
    """Read `class_table` under the deciding protocol: the best and the worst class."""
    part = bootstrap.deciding(table)
    wide = part.pivot(index="class", columns="model", values="dice")
    best, worst = wide.mean(axis=1).idxmax(), wide.mean(axis=1).idxmin()
    if best == worst:
        return f"The only class is {best}."
    gaps = ", ".join(f"{m} {wide.loc[best, m]:.3f} and {wide.loc[worst, m]:.3f}" for m in wide)
    return f"On average {best} is segmented best and {worst} worst; Dice of the two: {gaps}."
