"""What trained weights are worth otherwise: post-processed, flipped, on disturbed frames; paired.

Reads `variations.csv` of runs (see `evaluate.variations`). No training and no selection depends on
it: each row says what one change would do to a model's Dice, by the same groups and seeds.
"""

import numpy as np
import pandas as pd

from thyroid_lib.compare import bootstrap, tables
from thyroid_lib.compare.bootstrap import bounds, cube, macro_estimate, macro_means

FILE = "variations.csv"
METRICS = ("nsd", "hd95_px", "false_parts")  # beside Dice, where a variation has them
CLEANED = {
    "largest": "largest part alone", "two_largest": "two largest parts", "filled": "holes filled",
    "no_small": "small parts removed",
}  # fmt: skip
DISTURBED = {
    "gain_down": "gain −6 dB", "gain_up": "gain +6 dB", "gamma_dark": "darker gamma",
    "gamma_bright": "brighter gamma", "blur": "blurred", "speckle": "more speckle",
    "shrunk": "scaled by 0.8", "enlarged": "scaled by 1.25",
}  # fmt: skip
NAMES = {
    "flip": "mirror image averaged in (or left out)",
    "batch_norm": "batch norm of the test sweep *",
    **CLEANED,
    **DISTURBED,
}


def effects(
    scores: pd.DataFrame, variations: pd.DataFrame, *, resamples: int = 10_000
) -> pd.DataFrame:
    """Return what each variation changes: a row per protocol, model and variation.

    Columns: dice, and difference (from the scores as they are) with its interval low, high and
    conditional as in `bootstrap.differences`; nsd, hd95_px, false_parts where they were scored.
    """
    rows, keys = [], [*tables.RUN, "case_id"]
    kinds = [kind for kind in NAMES if f"{kind}_dice" in variations]
    numbers = [name for name in variations if name not in scores]
    both = scores.merge(variations[[*keys, *numbers]], on=keys, validate="one_to_one")
    for protocol in bootstrap.order_protocols(both["protocol"]):
        plain = cube(both, protocol)
        draws = bootstrap.draw(plain, resamples=resamples)
        unknown = np.isin(plain.models, bootstrap.copied_models(both))  # ensembles: one seed
        for kind in kinds:
            changed = cube(both, protocol, f"{kind}_dice").values
            low, high = bounds(macro_means(changed - plain.values, draws), plain)
            columns = {"dice": macro_estimate(changed), "low": low, "high": high}
            columns["difference"] = macro_estimate(changed - plain.values)
            for metric in METRICS:
                columns[metric] = np.nan
                if (name := f"{kind}_{metric}") in both:
                    columns[metric] = macro_estimate(cube(both, protocol, name).values)
            part = pd.DataFrame({"protocol": protocol, "model": plain.models, "variation": kind})
            rows.append(part.assign(**columns, conditional=plain.conditional | unknown))
    table = pd.concat(rows, ignore_index=True).sort_values(["protocol", "model"], kind="stable")
    order = ["protocol", "model", "variation", "dice", "difference", "low", "high", "conditional"]
    return table[[*order, *METRICS]].reset_index(drop=True)


def show_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `effects` under the deciding protocol into a table for people: a row per variation."""
    part = bootstrap.deciding(table)
    text = tables.with_interval(part, ("difference", "low", "high"))
    wide = part.assign(text=text).pivot(index="variation", columns="model", values="text")
    wide = wide.reindex([kind for kind in NAMES if kind in wide.index])
    return wide.rename(index=NAMES).rename_axis(index="Dice, changed by", columns=None)


def effects_sentence(table: pd.DataFrame) -> str:
    """Read the table: the change that helps most, and the disturbance that costs most."""
    part = bootstrap.deciding(table)
    means = part.groupby("variation")["difference"].mean()
    after = means[[x for x in CLEANED if x in means]]
    before = means[[x for x in DISTURBED if x in means]]
    text = ""
    if len(after):
        best = after.idxmax()
        text += f"Of the ways to clean a mask, {NAMES[best]} moves Dice by {after[best]:+z.3f} on "
        text += "average over the models. "
    if len(before):
        worst = before.idxmin()
        text += f"Of the disturbed frames, {NAMES[worst]} costs most: {before[worst]:+z.3f}. "
    return f"{text}* transductive: it reads the test sweep's frames, not their masks."
