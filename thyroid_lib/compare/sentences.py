"""What the comparison's figures say, one sentence each, written from the tables they were drawn of.

Where several protocols were run, a sentence speaks of the one that decides (`order_protocols`).
"""

import numpy as np
import pandas as pd

from thyroid_lib.compare.bootstrap import (
    FEW_GROUPS,
    GROUPS_FOR_SELECTION,
    SEEDS_FOR_STABILITY,
    cube,
    macro_estimate,
    order_protocols,
)
from thyroid_lib.compare.stability import threshold_columns
from thyroid_lib.compare.tables import group_means

NOTICED = 0.0005  # Dice that three digits show


def _deciding(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["protocol"].isin(order_protocols(table["protocol"])[:1])]


def _join(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def count_of(number: int, what: str) -> str:
    """Write `3 groups`, `1 group`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def best_sentence(table: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Read the estimates: who leads, from where to where, and how often; `summary` and `ranks`."""
    part = _deciding(table)
    best = part.iloc[0]
    leaders = list(part.loc[part["dice"] == best["dice"], "model"])
    chance = _deciding(ranks).set_index("model").loc[best["model"], "p_best"]
    between = (
        f" [{best['dice_low']:.3f}, {best['dice_high']:.3f}]"
        if np.isfinite(best["dice_low"])
        else " (a single group: no interval)"
    )
    if len(part) == 1:
        said = f"{best['model']}, the only model, has Dice {best['dice']:.3f}{between}"
    elif len(leaders) > 1:
        said = f"{_join(leaders)} share the highest Dice, {best['dice']:.3f}"
    else:
        said = f"{best['model']} has the highest Dice, {best['dice']:.3f}{between}"
        if np.isfinite(chance):
            said += f", and leads in {100 * chance:.0f} % of the resamples"
    return f"Under {best['protocol']}, {said}.{conditional_sentence(table)}"


def conditional_sentence(table: pd.DataFrame) -> str:
    """Say, with a blank before it, which intervals promise too much and why; or ""."""
    said = ""
    if marked := list(
        dict.fromkeys(table[table["conditional"] & (table["groups"] > 1)]["protocol"])
    ):
        said += (
            f" † Under {_join(marked)} the intervals are conditional on the trained runs: other "
            "seeds could move the figures further than they show."
        )
    few = table[table["groups"].between(2, FEW_GROUPS - 1)].drop_duplicates("protocol")
    if counts := [f"{count_of(r.groups, 'group')} under {r.protocol}" for r in few.itertuples()]:
        said += f" Intervals from {_join(counts)} are too narrow."
    return said


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
        f"{gaps.mean():.3f} Dice{' on average over the models' * (len(gaps) > 1)}."
    )


def difference_sentence(differences: pd.DataFrame, *, delta: float) -> str:
    """Read the pairs: which differ, which are equivalent, which are open."""
    part = _deciding(differences)
    if not len(part):
        return "One model alone: there is no difference to tell."
    if part["groups"].iloc[0] == 1:
        return f"Under {part['protocol'].iloc[0]} a single group gives no interval: pairs are open."
    said = []
    for pair in part.itertuples():
        gap = f"{abs(pair.difference):.3f} Dice"
        if pair.reading.endswith(" higher"):
            upper = pair.reading.removesuffix(" higher")
            said.append(f"{upper} lies {gap} above {pair.b if upper == pair.a else pair.a}")
        elif pair.reading == "equivalent":
            said.append(f"{pair.a} and {pair.b} are equivalent (within ±{delta})")
        else:
            said.append(f"{pair.a} and {pair.b} are undecided")
    groups = part["groups"].iloc[0]
    limit = f", as far as {count_of(groups, 'group')} can tell" * bool(groups < FEW_GROUPS)
    runs = ", in the trained runs," if part["conditional"].any() else ","
    return f"Under {part['protocol'].iloc[0]}{limit}{runs} {_join(said)}."


def power_sentence(differences: pd.DataFrame) -> str:
    """Say which gap a study of this size could see."""
    part = _deciding(differences)
    if not len(part) or part["groups"].iloc[0] < 2:
        return "With a single group or model no gap can be told from chance."
    size = part.iloc[0]
    least, most = f"{part['smallest_gap'].min():.3f}", f"{part['smallest_gap'].max():.3f}"
    span = least if least == most else f"{least} to {most}"
    larger = size["conditional"] or size["groups"] < FEW_GROUPS
    return (
        f"With {count_of(size['groups'], 'group')}, {count_of(size['folds'], 'fold')} and "
        f"{count_of(size['seeds'], 'seed')} a gap of {span} Dice (by pair) could be seen in 80 % "
        "of such studies; smaller ones would mostly be missed."
        + " In truth it takes more, as these intervals are too narrow."
        * bool(larger)
    )


def mixed_sentence(differences: pd.DataFrame, mixed: pd.DataFrame) -> str:
    """Say whether the mixed model calls the same pairs different."""
    both = _deciding(differences).merge(mixed, on=["protocol", "a", "b"], suffixes=("", "_mixed"))
    fitted = both.dropna(subset=["low_mixed", "low"])
    apart = (fitted["low"] > 0) | (fitted["high"] < 0)
    apart_mixed = (fitted["low_mixed"] > 0) | (fitted["high_mixed"] < 0)
    notes = sorted({note for note in both["note"] if note})
    if not len(both):
        return ""
    alike = (apart == apart_mixed) & (np.sign(fitted["low"]) == np.sign(fitted["low_mixed"]))
    alike |= ~apart & ~apart_mixed
    said = f"The mixed model agrees on {alike.sum()} of {len(fitted)} pairs"
    if not len(fitted):
        said = "No pair has an interval by both the bootstrap and the mixed model"
    return said + (f" (note: {'; '.join(notes)})." if notes else ".")


def groups_sentence(scores: pd.DataFrame) -> str:
    """Read the groups: who leads in how many, and which is hardest."""
    means = _deciding(group_means(scores)).pivot(index="group", columns="model", values="dice")
    top = means.eq(means.max(axis=1), axis=0)
    alone = top[top.sum(axis=1) == 1].sum()
    leads = [f"{model} leads in {count}" for model, count in alone.items() if count]
    tied = len(means) - alone.sum()
    leads += [f"models tie in {tied}"] * bool(tied)
    hardest = means.mean(axis=1).idxmin()
    low, high = means.loc[hardest].min(), means.loc[hardest].max()
    span = f"{low:.3f}" + f" to {high:.3f}" * (means.shape[1] > 1)
    if len(means) == 1:
        return f"There is one group, {hardest}, at {span} Dice."
    who = f"{_join(leads)}; " if means.shape[1] > 1 else ""
    return f"Of {count_of(len(means), 'group')}, {who}the hardest is {hardest}, at {span} Dice."


def stores_sentence(known: pd.DataFrame, unseen: pd.DataFrame) -> str:
    """Say what there is to learn from and what is put aside; the indices of two stores."""
    each = [
        f"{count_of(len(index), 'frame')} of {count_of(index['group'].nunique(), 'sweep')}"
        for index in (known, unseen)
    ]
    share = 100 * known["foreground"].mean()
    return (
        f"To learn from: {each[0]}; put aside: {each[1]}. On average the thyroid covers "
        f"{share:.0f} % of a frame."
    )


def alikeness_sentence(alike: np.ndarray, groups: np.ndarray, *, threshold: float) -> str:
    """Read how alike frames are, within a group and between groups; `audit.alikeness`."""
    pairs = np.triu_indices(len(alike), 1)
    same = (groups[:, None] == groups)[pairs]
    within, between = alike[pairs][same], alike[pairs][~same]
    copies = [f"{100 * (part >= threshold).mean():.0f} %" for part in (within, between)]
    return (
        f"Of {count_of(len(within), 'pair')} of frames within a sweep, {copies[0]} are near-copies "
        f"(median correlation {np.median(within):.2f}); of {count_of(len(between), 'pair')} "
        f"between sweeps, {copies[1]} (median {np.median(between):.2f})."
    )


def cases_sentence(picked: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Read the best, the median and the worst of the cases that were scored."""
    each = [f"{row.rank} {row.dice:.3f}" for row in picked.itertuples()]
    groups = count_of(scores["group"].nunique(), "sweep")
    return f"Dice of {count_of(scores['case_id'].nunique(), 'frame')} of {groups}: {_join(each)}."


def exams_sentence(table: pd.DataFrame) -> str:
    """Say what the exam moves and what the architecture moves; Dice by model and two exams."""
    (first, second), gaps = table.columns, table.iloc[:, 0] - table.iloc[:, 1]
    said = [
        f"{model} has {row[first]:.3f} on {first} and {row[second]:.3f} on {second}"
        for model, row in table.iterrows()
    ]
    apart = float((table.max() - table.min()).mean())
    verdict = (
        f"The exam moves Dice by {gaps.abs().mean():.3f} on average over the models"
        if len(set(np.sign(gaps))) == 1
        else "The exam does not move all models the same way"
    )
    beside = f", the choice of the model by {apart:.3f} on average over the exams"
    return f"{'; '.join(said)}. {verdict}{beside * (len(table) > 1)}."


def curves_sentence(histories: pd.DataFrame) -> str:
    """Read the curves: how far validation loss lies above its lowest when training ends."""
    part = _deciding(histories)
    if "val_loss" not in part or part["val_loss"].isna().all():
        return "Nothing was held back to watch: only training loss is known."
    ordered = part.sort_values(["model", "run_id", "epoch"])
    by_run = ordered.groupby(["model", "run_id"])["val_loss"]
    rise = (by_run.last() / by_run.min() - 1).groupby("model").mean()
    each = [f"{model} {100 * value:.0f} %" for model, value in rise.items()]
    return f"At the last epoch validation loss lies above its lowest by {_join(each)}."


def stability_sentence(stability: pd.DataFrame, *, seeds: int) -> str:
    """Read the panel: the steadiest model by each measure, and whether seeds suffice to say so."""
    part = _deciding(stability).dropna(subset="value")
    said = []
    for measure, rows in part.groupby("measure", sort=True):
        rows = rows.sort_values(["value", "model"], ascending=[measure != "S3", True])
        first = rows.iloc[0]
        said.append(f"{first['model']} by {measure} ({first['value']:.3f})")
    few = (
        f" Seeds: {seeds}; below {SEEDS_FOR_STABILITY} no stability between seeds is claimed."
        if seeds < SEEDS_FOR_STABILITY
        else ""
    )
    first = "Steadiest" if seeds >= SEEDS_FOR_STABILITY else "Steadiest in the trained runs"
    if part["model"].nunique() == 1:
        first, said = "Of the only model", [each.partition(" by ")[2] for each in said]
    return f"{first}: {_join(said)}.{few}"


def threshold_sentence(thresholds: pd.DataFrame) -> str:
    """Read the sweep: each model's best threshold and what it would win over one half."""
    part, columns = _deciding(thresholds), threshold_columns(thresholds)
    cubes = [cube(part, part["protocol"].iloc[0], name) for name in columns]
    curves = np.array([macro_estimate(of.values) for of in cubes])  # (T,M)
    half = curves[columns.index("0.50")]
    gains = curves.max(axis=0) - half
    each = [
        f"{model} {gain:.3f} Dice at {columns[place]}"
        for model, gain, place in zip(cubes[0].models, gains, curves.argmax(axis=0), strict=True)
        if gain >= NOTICED
    ]
    rest = [model for model, gain in zip(cubes[0].models, gains, strict=True) if gain < NOTICED]
    said = [f"another threshold than 0.50 would at best win {_join(each)}"] * bool(each)
    said += [f"no other threshold than 0.50 wins 0.001 Dice for {_join(rest)}"] * bool(rest)
    said = "; ".join([*said, "none was picked on test."])
    return said[0].upper() + said[1:]


def calibration_sentence(table: pd.DataFrame) -> str:
    """Read the diagram: calibration errors, from `summary`."""
    part = _deciding(table).sort_values(["ece", "model"])
    each = [f"{row.model} {row.ece:.3f}" for row in part.itertuples()]
    order = ", best first" * (len(each) > 1)
    return f"Expected calibration error, weighed by pixels{order}: {_join(each)}."


def failures_sentence(scores: pd.DataFrame) -> str:
    """Read the failures: who misses and who invents most, and in which group."""
    said = []
    for column, verb in (("missed_parts", "misses"), ("false_parts", "invents")):
        means = _deciding(group_means(scores, column))
        each = means.groupby("model")[column].mean()
        if each.max() == 0:
            said.append(f"no model {verb} a part")
            continue
        mine = means[means["model"] == each.idxmax()].set_index("group")[column]
        where = f"; in group {mine.idxmax()} {mine.max():.2f}" * (len(mine) > 1)
        most = " most" * (len(each) > 1)
        said.append(f"{each.idxmax()} {verb}{most} parts ({each.max():.2f} per frame{where})")
    return f"{_join(said).replace('no model', 'No model', said[0].startswith('no '))}."


def frames_sentence(picked: pd.DataFrame, part: pd.DataFrame) -> str:
    """Read the frames shown: how far the models lie apart on each; `part` has dice by case."""
    spread = part.groupby("case_id")["dice"].agg(["min", "max"])
    each = [
        f"{row.rank} {row.case_id}: {spread.loc[row.case_id, 'min']:.2f} to "
        f"{spread.loc[row.case_id, 'max']:.2f}"
        for row in picked.itertuples()
    ]
    if part["model"].nunique() == 1:
        each = [f"{row.rank} {row.case_id}: {row.dice:.2f}" for row in picked.itertuples()]
        return f"Dice of the only model, {_join(each)}."
    return f"Dice from the weakest to the strongest model, {_join(each)}."


def cost_sentence(table: pd.DataFrame) -> str:
    """Read cost against Dice: the cheapest model and what the best one asks for."""
    part = _deciding(table)
    best = part.iloc[0]
    cheap = part.sort_values(["multiply_adds", "parameters", "model"]).iloc[0]
    if len(part) == 1:
        return f"{best['model']} is the only model: there is no cost to compare."
    if best["model"] == cheap["model"]:
        return f"{best['model']} has the highest Dice and the fewest multiply-adds."
    return (
        f"{best['model']} asks for {best['multiply_adds'] / cheap['multiply_adds']:.2f} times the "
        f"multiply-adds of {cheap['model']}, the cheapest, and its Dice is "
        f"{best['dice'] - cheap['dice']:.3f} higher."
    )


def selection_sentence(selected: dict, ranks: pd.DataFrame) -> str:
    """Say in words what `select` did, how often it would do so, and whether it is provisional."""
    name, protocol, delta = selected["model"], selected["protocol"], selected["delta"]
    part = ranks[ranks["protocol"] == protocol].set_index("model")
    chance, candidates = part.loc[name, "p_selected"], selected["candidates"]
    size = f"{count_of(selected['groups'], 'group')} and {count_of(selected['seeds'], 'seed')}"
    if len(part) == 1:
        return f"Selected: {name}, the only model ({size})."
    if selected["provisional"]:
        said = f"Selected, provisional: {name}, which has the highest mean Dice under {protocol}. "
        said += f"Selecting by stability needs {GROUPS_FOR_SELECTION} groups and "
        said += f"{SEEDS_FOR_STABILITY} seeds; this study has {size}."
    elif len(candidates) == 1:
        said = f"Selected: {name}, the only model within {delta} Dice of the best mean."
    else:
        said = f"Selected: {name}, the first by the rule of the candidates."
    for title, models in (
        (f"Within {delta} Dice of the best mean", candidates if len(candidates) > 1 else []),
        (f"Not separated from {selected['best']}", selected["not_separated"]),
        ("Dropped", selected["dropped"]),
    ):
        said += f" {title}: {', '.join(models)}." * bool(models)
    if np.isfinite(chance):
        said += f" The rule selects {name} in {100 * chance:.0f} % of the resamples."
    else:
        said += " A single group cannot be resampled: P(selected) is not known."
    return f"{said} Rule: {selected['rule']}."
