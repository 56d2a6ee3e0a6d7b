"""The model card of the selected model: `model_card.md` filled from the study's tables alone.

After Mitchell et al. 2019, "Model cards for model reporting", doi 10.1145/3287560.3287596.
"""

from pathlib import Path

import pandas as pd

from thyroid_lib.compare import sentences
from thyroid_lib.compare.sentences import count_of, span
from thyroid_lib.compare.stability import MEASURES
from thyroid_lib.compare.tables import SHARED, show_summary, with_interval
from thyroid_lib.data.groups import UNKNOWN, are_unknown
from thyroid_lib.evaluate.familiarity import TOO_FAR

ABOUT = {
    "unet": "U-Net (Ronneberger et al. 2015), padded and with batch normalisation",
    "segnet": "SegNet (Badrinarayanan et al. 2017), unpooling by max-pool indices",
    "resunet": "Residual U-Net (Zhang, Liu and Wang 2018), pre-activation residual units",
    "segnet_reported": "the reported study's SegNet, for replication only",
    "resunet_reported": "the reported study's Residual U-Net, for replication only",
}
LIMITS = {
    "tg3k": "The frames are of healthy glands, from few sweeps of one scanner: nodules, "
    "goitre, other scanners, settings and probes were not met.",
    "phantom": "The frames are phantoms drawn by this project: they say nothing of patients.",
}
WEIGHTS = {
    "last": "of the last epoch; no data selected them",
    "val": "of the epoch of best Dice on validation cases cut from the training ones",
    "test": "of the epoch of best Dice ON THE TEST SET, as reported; for replication only",
}
NO_SETTINGS = ("data_fingerprint", "training_version", "threads", "device")


def model_card(selected: dict, table, *, runs, scores, differences, stability, ranks) -> str:
    """Write the selected model's card in Markdown, from the tables of `tables.save_tables`."""
    name, protocol = selected["model"], selected["protocol"]
    of_model = table[table["model"] == name]
    row = of_model[of_model["protocol"] == protocol].iloc[0]
    mine, measured = (
        part[(part["model"] == name) & (part["protocol"] == protocol)] for part in (runs, stability)
    )
    run = mine.iloc[0].dropna().to_dict()  # without what these runs did not record
    data = sorted(scores["dataset"].unique()) if "dataset" in scores else []
    sizes = ((row["groups"], "group"), (row["folds"], "trained fold"), (row["seeds"], "seed"))
    versions = [" ".join(pair) for pair in sorted(run.get("versions", {}).items())]
    counts = pd.DataFrame(list(mine["cases"].dropna()) if "cases" in mine else [])
    cases = [f"{span(counts[side].min(), counts[side].max(), '{}')} {side}" for side in counts]
    heat = mine["temperature"] if "temperature" in run else pd.Series(dtype=float)
    fitted = f"Temperature fitted on validation, by run: {span(heat.min(), heat.max(), '{:.2f}')}."
    own = f"`architectures/{name}.py`, whose code is `{run.get('architecture_fingerprint')}`"
    source = own if run.get("architecture_fingerprint") else "`thyroid_lib/models`"
    stable = {
        "measure": measured["measure"],
        "what it is": measured["measure"].map(MEASURES),
        "value [95 % interval]": with_interval(measured, ("value", "low", "high")),
    }
    fields = {
        "provisional": " **The selection is provisional**: seeds or groups are few."
        * selected["provisional"],
        "about": ABOUT.get(name, f"architecture `{name}` of {source}"),
        "giga": row["multiply_adds"] / 1e9,
        "settings": ", ".join(
            f"{key} {run[key]}" for key in SHARED if key in run and key not in NO_SETTINGS
        ),
        "data": ", ".join(data) or "not named",
        "cases": f"Frames per run: {', '.join(cases)}." if cases else "",
        "weights": WEIGHTS.get(run["selection"], run["selection"]),
        "sizes": ", ".join(count_of(*size) for size in (*sizes, (len(mine), "run"))),
        "conditional": "; here † they hold for the trained runs alone: seeds or splits are few"
        * selected["conditional"],
        "power": sentences.power_sentence(differences),
        "metrics": show_summary(of_model).to_markdown(index=False, disable_numparse=True),
        "stability": pd.DataFrame(stable).to_markdown(index=False, disable_numparse=True),
        "calibration": sentences.calibration_sentence(table),
        "temperature": fitted if len(heat) else "No temperature was fitted.",
        "failures": sentences.failures_sentence(scores),
        "limits": "\n- ".join(
            [
                *[UNKNOWN] * (data != [] and are_unknown(scores)),
                *(text for start, text in LIMITS.items() if any(d.startswith(start) for d in data)),
            ]
        ),
        "selection": sentences.selection_sentence(selected, ranks),
        "difference": sentences.difference_sentence(differences, delta=selected["delta"]),
        "runs": ", ".join(mine["run_id"]),
        "version": run.get("training_version", "not recorded"),
        "versions": f"Versions: {', '.join(versions)}." if versions else "",
    }
    template = Path(__file__).with_name("model_card.md").read_text("utf-8")
    card = template.format(model=name, row=row, run=run, **fields)
    return "\n".join(line for line in card.split("\n") if line != "- ")


def released(about: dict) -> str:
    """Write the card's section of what was released, from the release.json of a release."""
    each = []
    for name, run in about["runs"].items():
        off, line = run["agreement"], run["confidence"]
        frames, groups = count_of(line["frames"], "frame"), count_of(line["groups"], "group")
        each.append(
            f"{name}: run `{run['run_id']}`. Against torch, on {count_of(off['frames'], 'frame')}: "
            f"{off['pixels']:.2g} of the mask pixels differ, and the probability by "
            f"{off['mean_prob']:.1g} in the mean of the worst frame. Confidence: "
            f"{line['offset']:.3f} + {line['slope']:.3f} × expected Dice, from {frames} of "
            f"{groups} of validation, mean absolute error {line['error']:.3f}; below "
            f"{run['confidence_low']:.2f} a frame is called unsure."
        )
    gate = about["runs"][about["selected"]]["int8"]
    lines = (
        f"Of each model the run under `{about['protocol']}` whose kept weights have the best Dice "
        "on validation, or one that was asked for; no test case had a part in it.",
        *each,
        f"int8 of {about['selected']} is {'' if gate['released'] else '**not** '}released: it "
        f"changes Dice on validation by {gate['change']:+.4f}, where {gate['limit']} are allowed; "
        f"in the worst group by {gate['worst_group']:+.4f}.",
        "A frame is called far if eight numbers of its gray levels are further from those of the "
        "training frames than of 99 in 100 validation frames, and is to be refused from "
        f"{TOO_FAR:g} times that on.",
    )
    return "## What was released\n\n" + "".join(f"- {line}\n" for line in lines)
