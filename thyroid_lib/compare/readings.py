"""Sentences below the comparison's figures: what they show under the protocol that decides."""

from collections import Counter

import numpy as np
import pandas as pd

from thyroid_lib.audit.leakage import percent
from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import deciding, order_protocols
from thyroid_lib.compare.stability import MEASURES, MORE_IS_BETTER, threshold_curves
from thyroid_lib.compare.tables import group_means
from thyroid_lib.files.text import count_of
from thyroid_lib.settings import FEW_GROUPS

SHOWN = 0.0005  # the smallest Dice that three digits show
DEEP_FALL = 0.1  # a fall of validation Dice that a reading of the curves names


def span(low: float, high: float, form: str = "{:.3f}") -> str:
    """Write `0.100 to 0.200`, or one number where both look the same."""
    return " to ".join(dict.fromkeys((form.format(low), form.format(high))))


def _join(parts) -> str:
    *most, last = map(str, parts)
    return f"{', '.join(most)} and {last}" if most else last


def _leaders(values: pd.Series, digits: int = 3) -> list[str]:
    """Return the names of the highest values; several if they are equal in the digits shown."""
    return list(values.index[values.round(digits) == values.round(digits).max()])


def runs_sentence(runs: pd.DataFrame, *, origin: str, store: str) -> str:
    """Say which runs are compared, from where, and on which store."""
    names = ("model", "protocol", "fold", "seed")
    models, protocols, folds, seeds = (_join(sorted(runs[name].unique())) for name in names)
    text = f"{count_of(len(runs), 'run')} from {origin}: {models} under {protocols}"
    reused = int(runs["reused"].notna().sum()) if "reused" in runs else 0
    again = f" Of {reused} the committed tables are used again." if reused else ""
    return f"{text}; folds: {folds}; seeds: {seeds}. Store: {store}.{again}"


def recipe_sentence(recipes: pd.DataFrame, shared: dict) -> str:
    """Say what all recipes share, and in what they differ; both of `tables.recipes`."""
    same = _join(f"{name} {value}" for name, value in shared.items()) if shared else "no setting"
    text = f"All models were trained with {same}; what is not named is as reported."
    own = list(recipes.columns.drop(["model", "network"], errors="ignore"))
    one_network = recipes.get("network", recipes["model"]).nunique() == 1
    if not own:
        return f"{text} {'Nothing' if one_network else 'Only the network'} differs."
    beside = "They" if one_network else "Beside the network they"
    return f"{text} {beside} may differ in {_join(own)}: a difference is the recipe's."


def best_sentence(table: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Read the estimates: the best mean, its interval, how often it leads; `summary`, `ranks`."""
    part = deciding(table)
    best, leaders = part.iloc[0], _leaders(part.set_index("model")["dice"])
    chance = deciding(ranks).set_index("model").loc[best["model"], "p_best"]
    sure, dice = bool(best["groups"] > 1 and len(leaders) == 1), f"{best['dice']:.3f}"
    dice += f" [{best['dice_low']:.3f}, {best['dice_high']:.3f}]" * sure
    text = f"{_join(leaders)} {'share' if len(leaders) > 1 else 'has'} the highest Dice, {dice}"
    if len(part) == 1:
        text, sure = f"{best['model']}, the only model, has Dice {dice}", False
    text = f"Under {best['protocol']}, {text}"
    text += f", and leads in {percent(chance)} of the resamples" if sure else ""
    text += " (a single group: no interval)." if best["groups"] == 1 else "."
    once = table[table["groups"] > 1].drop_duplicates("protocol")
    if marked := list(once.loc[once["conditional"].astype(bool), "protocol"]):
        text += (
            f" † Under {_join(marked)} the intervals are conditional on the trained runs: other "
            "seeds could move the figures further than they show."
        )
    few = once[once["groups"] < FEW_GROUPS]
    each = [f"{row.groups} groups under {row.protocol}" for row in few.itertuples()]
    return text + (f" Intervals from {_join(each)} are too narrow." if each else "")


def protocol_sentence(table: pd.DataFrame) -> str:
    """Say how the random split changes each model's Dice, from `summary`."""
    dice = table.pivot(index="model", columns="protocol", values="dice")
    if not {"random", "grouped"} <= set(dice.columns):
        return f"Protocols: {_join(dice.columns)}; random and grouped were not both run to compare."
    dice = dice[["random", "grouped"]].dropna()
    each = [f"{row.Index} {row.random:.3f} against {row.grouped:.3f}" for row in dice.itertuples()]
    change = f"{(dice['random'] - dice['grouped']).mean():+z.3f}".replace("-", "−")
    return (
        f"Random frames against unseen groups: {', '.join(each)}. The random split changes Dice by "
        f"{change}{' on average over the models' * (len(dice) > 1)}."
    )


def difference_sentence(differences: pd.DataFrame, *, delta: float) -> str:
    """Read the pairs: which differ, which are equivalent, which are undecided."""
    part = deciding(differences)
    if not len(part):
        return "One model alone: there is no difference to read."
    protocol, groups = part.iloc[0][["protocol", "groups"]]
    if groups == 1:
        return f"Under {protocol} a single group gives no interval: all pairs are undecided."
    read = part["reading"].replace("equivalent", f"equivalent, within ±{delta}")
    pairs = zip(part["a"], part["b"], part["difference"], read, strict=True)
    each = [f"{a} − {b} {difference:+z.3f} ({text})" for a, b, difference, text in pairs]
    limit = f", as far as {groups} groups can tell" * bool(groups < FEW_GROUPS)
    runs = ", in the trained runs" * bool(part["conditional"].any())
    text = f"Differences of Dice under {protocol}{limit}{runs}: {_join(each)}."
    return text.replace(" -", " −")


def power_sentence(differences: pd.DataFrame) -> str:
    """Say which gap a study of this size could see."""
    part = deciding(differences)
    if not len(part) or part["groups"].iloc[0] < 2:
        return "With a single group or model no gap can be told from chance."
    size, gaps = part.iloc[0], part["smallest_gap"]
    if gaps.max() < SHOWN:
        return "The resamples do not differ: they do not say which gap could be seen."
    counts = [count_of(size[f"{name}s"], name) for name in ("group", "fold", "seed")]
    narrow = " The true figure is larger, as these intervals are too narrow."
    narrow *= bool(size["conditional"] or size["groups"] < FEW_GROUPS)
    return (
        f"With {_join(counts)} a gap of {span(max(gaps.min(), 0.001), gaps.max())} Dice (by pair) "
        f"could be seen in 80 % of such studies; smaller ones would mostly be missed.{narrow}"
    )


def mixed_sentence(differences: pd.DataFrame, mixed: pd.DataFrame) -> str:
    """Say whether the mixed model calls the same pairs different."""
    both = deciding(differences).merge(mixed, on=["protocol", "a", "b"], suffixes=("", "_mixed"))
    fitted = both.dropna(subset=["low_mixed", "low"])
    side, side_mixed = (  # of zero on which the interval lies: −1, 1, or 0 where it holds zero
        (fitted[f"low{end}"] > 0).astype(int) - (fitted[f"high{end}"] < 0) for end in ("", "_mixed")
    )
    agree = (side == side_mixed).sum()
    text = f"The mixed model agrees on {agree} of {count_of(len(fitted), 'pair')}"
    if not len(fitted):
        text = "No pair has an interval by both the bootstrap and the mixed model"
    notes = "; ".join(sorted(set(both["note"]) - {""}))
    return (f"{text} (note: {notes})." if notes else f"{text}.") if len(both) else ""


def groups_sentence(scores: pd.DataFrame) -> str:
    """Read the groups: which model leads in how many, and which group has the lowest Dice."""
    means = deciding(group_means(scores)).pivot(index="group", columns="model", values="dice")
    hardest = _leaders(-means.mean(axis=1))
    dice = span(means.loc[hardest].min(axis=None), means.loc[hardest].max(axis=None))
    if len(means) == 1:
        return f"There is one group, {hardest[0]}, at {dice} Dice."
    best = Counter(" = ".join(_leaders(row)) for _, row in means.iterrows())
    leads = _join(f"{models} in {count}" for models, count in sorted(best.items()))
    who = f"Highest Dice: {leads} of {len(means)} groups. " * (means.shape[1] > 1)
    return f"{who}Lowest Dice: {_join(hardest)}, at {dice}."


def stores_sentence(known: pd.DataFrame, unseen: pd.DataFrame) -> str:
    """Say what there is to learn from and what is put aside; the indices of two stores."""
    learn, aside = (
        f"{count_of(len(index), 'frame')} of {count_of(index['group'].nunique(), 'sweep')}"
        for index in (known, unseen)
    )
    thyroid = f"On average the thyroid covers {percent(known['foreground'].mean())} of a frame."
    return f"To learn from: {learn}; put aside: {aside}. {thyroid}"


def alikeness_sentence(alike: np.ndarray, groups: np.ndarray, *, threshold: float) -> str:
    """Read how alike frames are, within a group and between groups; `audit.alikeness`."""
    pairs = np.triu_indices(len(alike), 1)
    same, each = (groups[:, None] == groups)[pairs], []
    for where, kind in (("within a sweep", same), ("between sweeps", ~same)):
        if len(part := alike[pairs][kind]):
            copies = f"{percent((part >= threshold).mean())} are near-copies"
            middle = f"median correlation {np.median(part):.2f}"
            each.append(f"Of {count_of(len(part), 'pair')} of frames {where}, {copies} ({middle}).")
    return " ".join(each) or "One frame alone: there is no pair to compare."


def exams_sentence(table: pd.DataFrame) -> str:
    """Say what the exam moves and what the architecture moves; Dice by model and two exams."""
    (first, second), gaps = table.columns, -table.diff(axis=1).iloc[:, 1]
    form = f"{{}} has {{:.3f}} on {first} and {{:.3f}} on {second}"
    each = [form.format(*row) for row in table.itertuples()]
    verdict = "The exam does not move all models the same way"
    if gaps.abs().max() < SHOWN:
        verdict = "The exam moves no model's Dice"
    elif len(set(np.sign(gaps))) == 1:
        verdict = f"The exam moves Dice by {gaps.abs().mean():.3f} on average over the models"
    apart = (table.max() - table.min()).mean()
    beside = f"the choice of the model by {apart:.3f} on average over the exams"
    return f"{'; '.join(each)}. {verdict}, {beside}."


def curves_sentence(histories: pd.DataFrame) -> str:
    """Read the curves: deep falls of validation Dice, and how far validation loss rose again."""
    part = deciding(histories).sort_values(["model", "run_id", "epoch"])
    part = part.reindex(columns=[*part, *({"val_loss", "val_dice"} - set(part))])
    dice, loss, said = part.dropna(subset="val_dice"), part.dropna(subset="val_loss"), []
    if len(dice):
        runs = dice.groupby(["model", "run_id"])
        deepest = dict(sorted((model, _deepest_fall(run)) for (model, _), run in runs))  # the last
        falls = [f"{model} {what}" for model, (size, what) in deepest.items() if size >= DEEP_FALL]
        no_fall = f"No curve of validation Dice falls by {DEEP_FALL} or more."
        said.append(f"Validation Dice falls: {_join(falls)}." if falls else no_fall)
    if len(loss):
        runs = loss.groupby(["model", "run_id"])["val_loss"].agg(["min", "last"])
        means = runs.groupby("model").mean()
        risen = means[means["last"] - means["min"] >= 0.005].itertuples()
        rises = [f"{model} {low:.2f} to {last:.2f}" for model, low, last in risen]
        lowest = "At the last epoch validation loss is at its lowest."
        rose = "Validation loss rises from its lowest to the last epoch"
        said.append(f"{rose}: {_join(rises)}." if rises else lowest)
    held = f"Nothing was held back to watch under {part['protocol'].iloc[0]}"
    return " ".join(said) or f"{held}: only training loss is known."


def _deepest_fall(run: pd.DataFrame) -> tuple[float, str]:
    dice = run.set_index("epoch")["val_dice"]
    falls = dice.cummax() - dice
    low = falls.idxmax()
    high = dice.loc[:low].idxmax()
    when = f"epochs {high} to {low} of {run['run_id'].iloc[0]}"
    return falls[low], f"from {dice[high]:.2f} to {dice[low]:.2f} ({when})"


def stability_sentence(stability: pd.DataFrame, *, seeds: int) -> str:
    """Read the panel: the steadiest model by each measure, and whether seeds suffice to say so.

    A measure that several models are compared by, but only one has, is passed over.
    """
    wide = deciding(stability).pivot(index="model", columns="measure", values="value")
    steadiest, least = {}, bootstrap.SEEDS_FOR_STABILITY
    for name, values in wide[list(MEASURES)].dropna(axis=1, thresh=min(2, len(wide))).items():
        values = values.dropna() if name in MORE_IS_BETTER else -values.dropna()
        measures = steadiest.setdefault(_join(_leaders(values)), [])
        measures.append(f"{name} ({abs(values.max()):.3f})")
    each = "; ".join(f"{models} by {_join(names)}" for models, names in steadiest.items())
    if seeds >= least:
        return f"Steadiest: {each}."
    claim = f"Seeds: {seeds}; below {least} no stability between seeds is claimed."
    return f"Steadiest in the trained runs: {each}. {claim}"


def threshold_sentence(thresholds: pd.DataFrame) -> str:
    """Read the sweep: each model's best threshold and what it would win over one half."""
    curves = threshold_curves(thresholds, order_protocols(thresholds["protocol"])[0])
    gains, best = curves.max() - curves.loc[0.5], curves.idxmax()
    more, rest = gains[gains >= SHOWN], gains.index[gains < SHOWN]
    each = [f"{model} {gain:.3f} Dice at {best[model]:.2f}" for model, gain in more.items()]
    text = f"Another threshold than 0.50 would at best win {_join(each)}. " if each else ""
    none = f"No other threshold than 0.50 wins 0.001 Dice for {_join(rest)}. " if len(rest) else ""
    return f"{text}{none}None was picked on test."


def calibration_sentence(table: pd.DataFrame) -> str:
    """Read the diagram: calibration errors, from `summary`."""
    part = deciding(table).dropna(subset="ece").sort_values(["ece", "model"])
    each = [f"{row.model} {row.ece:.3f}" for row in part.itertuples()]
    order = ", best first" * (len(each) > 1)
    return f"Expected calibration error, weighed by pixels{order}: {_join(each)}."


def failures_sentence(scores: pd.DataFrame) -> str:
    """Read the failures: which model misses and which invents most, and in which group."""
    parts = []
    for column, verb in (("missed_parts", "missed"), ("false_parts", "invented")):
        means = deciding(group_means(scores, column))
        wide = means.pivot(index="group", columns="model", values=column)
        rate, most = wide.mean().max(), _leaders(wide.mean(), 2)
        worst = _leaders(wide[most[0]], 2)
        kind = "Most parts" if wide.shape[1] > len(most) else "Parts"
        where = f", in group {worst[0]} {wide.loc[worst[0], most[0]]:.2f}"
        where *= len(most) == len(worst) == 1 < len(wide)
        said = f"{kind} are {verb} by {_join(most)}: {rate:.2f} per frame{where}."
        none = "No part" if rate == 0 else "Hardly a part (less than 0.01 per frame)"
        parts.append(f"{none} is {verb} by any model." if rate < 0.005 else said)
    return " ".join(parts)


def frames_sentence(picked: pd.DataFrame, part: pd.DataFrame) -> str:
    """Read the frames shown: how far the models lie apart on each; `part` has dice by case."""
    spread = part.groupby("case_id")["dice"].agg(["min", "max"])
    shown = zip(picked["rank"], picked["case_id"], strict=True)
    each = [f"{rank} {case}: {span(*spread.loc[case], '{:.2f}')}" for rank, case in shown]
    return f"Dice from the weakest to the strongest model, {_join(each)}."


def cost_sentence(table: pd.DataFrame) -> str:
    """Read cost against Dice: the cheapest model and what the best one asks for."""
    part = deciding(table).dropna(subset="multiply_adds")
    imported = len(part) < len(deciding(table))
    known, rest = " trained here" * imported, " The cost of imported models is unknown." * imported
    best, cheap = part.iloc[0], part.sort_values(["multiply_adds", "parameters", "model"]).iloc[0]
    if cheap["model"] in _leaders(part.set_index("model")["dice"]):
        return f"{cheap['model']} is the cheapest, and no model{known} has a higher Dice.{rest}"
    ratio = best["multiply_adds"] / max(1, cheap["multiply_adds"])
    return (
        f"{best['model']} asks for {ratio:.2f} times the multiply-adds of {cheap['model']}, the "
        f"cheapest, and its Dice is {best['dice'] - cheap['dice']:.3f} higher.{rest}"
    )


def selection_sentence(selected: dict, ranks: pd.DataFrame) -> str:
    """Say what `select` did, how often it would do so, and whether it is provisional."""
    name, protocol, delta = selected["model"], selected["protocol"], selected["delta"]
    if (ranks["protocol"] == protocol).sum() == 1:
        return f"Selected: {name}, the only model."
    part = ranks[ranks["protocol"] == protocol].set_index("model")
    chance, candidates = part.loc[name, "p_selected"], selected["candidates"]
    only = f"the only model within {delta} Dice of the best mean"
    first = only if len(candidates) == 1 else "the first of the candidates by the rule"
    text = f"Selected: {name}, {first}."
    if selected["provisional"]:
        size = f"{count_of(selected['groups'], 'group')} and {count_of(selected['seeds'], 'seed')}"
        text = (
            f"Selected, provisional: {name}; no model has a higher mean Dice under {protocol}. "
            f"Selecting by stability needs {bootstrap.GROUPS_FOR_SELECTION} groups and "
            f"{bootstrap.SEEDS_FOR_STABILITY} seeds; this study has {size}."
        )
    named = {f"Within {delta} Dice of the best mean": candidates * (len(candidates) > 1)}
    named[f"Not separated from {selected['best']}"] = selected["not_separated"]
    named["Dropped"] = selected["dropped"]
    text += "".join(f" {title}: {', '.join(each)}." for title, each in named.items() if each)
    often = "A single group cannot be resampled: P(selected) is not known."
    if np.isfinite(chance):
        often = f"The rule selects {name} in {percent(chance)} of the resamples."
    return f"{text} {often} Rule: {selected['rule']}."
