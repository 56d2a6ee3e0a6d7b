"""The model card of the selected model: `model_card.md` filled from the study's tables alone.

After Mitchell et al. 2019, "Model cards for model reporting", doi 10.1145/3287560.3287596.
"""

from pathlib import Path

import pandas as pd

from thyroid_lib.compare import readings
from thyroid_lib.compare.classes import show_classes
from thyroid_lib.compare.external import external_sentence
from thyroid_lib.compare.readings import span
from thyroid_lib.compare.stability import MEASURES
from thyroid_lib.compare.tables import SHARED, show_summary, with_interval
from thyroid_lib.data.groups import groups_note
from thyroid_lib.evaluate.familiarity import TOO_FAR
from thyroid_lib.evaluate.imported import UNKNOWN, is_imported
from thyroid_lib.files.text import count_of
from thyroid_lib.settings import ALL, DEFAULTS

ABOUT = {
    "unet": "U-Net (Ronneberger et al. 2015), padded and with batch normalisation",
    "segnet": "SegNet (Badrinarayanan et al. 2017), unpooling by max-pool indices",
    "resunet": "Residual U-Net (Zhang, Liu and Wang 2018), pre-activation residual units",
}
LIMITS = {
    "tg3k": "The frames are of healthy glands, from few sweeps of one scanner: nodules, "
    "goitre, other scanners, settings and probes were not met.",
    "phantom": "The frames are phantoms drawn by this project: they say nothing of patients.",
}
WEIGHTS = {
    "last": "of the last epoch; no data selected them",
    "val": "of the epoch of best Dice on validation cases cut from the training ones",
    UNKNOWN: "not here; how their epoch was chosen is unknown",
    "test": "of the epoch of best Dice ON THE TEST SET, as reported; for replication only",
}
NO_SETTINGS = ("data_fingerprint", "training_version", "threads", "device")


def model_card(
    selected: dict, table, *, runs, scores, differences, stability, ranks, external=None,
    per_class=None,
) -> str:  # fmt: skip
    """Write the selected model's card in Markdown, from the tables of `tables.save_tables`."""
    name, bare = selected["model"], {"index": False, "disable_numparse": True}
    chosen = f"model == '{name}' and protocol == '{selected['protocol']}'"
    row, mine, measured = table.query(chosen).iloc[0], runs.query(chosen), stability.query(chosen)
    run = mine.iloc[0].dropna().to_dict()
    outside = str(run.get("external", "")).split()
    data = sorted(set(scores["dataset"]) - set(outside)) or [f"all but {', '.join(outside)}"]
    limits = [text for start, text in LIMITS.items() if any(d.startswith(start) for d in data)]
    limits += list(filter(None, [groups_note(scores)]))
    sizes = {"group": row["groups"], "trained fold": row["folds"], "seed": row["seeds"]}
    counts = pd.DataFrame(list(mine["cases"]))
    cases = [f"{span(counts[side].min(), counts[side].max(), '{}')} {side}" for side in counts]
    giga = row["multiply_adds"] / 1e9
    network = run.get("network", name)
    own = f"`architectures/{network}.py`, whose code is `{run.get('architecture_fingerprint')}`"
    source = own if run.get("architecture_fingerprint") else "`thyroid_lib/models`"
    about = ABOUT.get(network, f"architecture `{network}` of {source}")
    if weights := pretrained_sentence(pretrained_weights(run)):
        about += f".{weights}"
    if is_imported(name):
        about = f"predictions of a model trained elsewhere; their origin: {run['source']}"
        limits.insert(0, f"It was trained elsewhere, on cases unknown here ({run['source']}).")
    used = [key for key in SHARED if run.get(key, UNKNOWN) != UNKNOWN and key not in NO_SETTINGS]
    used = [key for key in used if run[key] not in ("", DEFAULTS.get(key))]
    heat = (mine["temperature"].min(), mine["temperature"].max()) if "temperature" in run else ()
    stable = {
        "measure": measured["measure"],
        "what it is": measured["measure"].map(MEASURES),
        "value [95 % interval]": with_interval(measured, ("value", "low", "high")),
    }
    provisional = " **The selection is provisional**: seeds or groups are few."
    conditional = "; here † they hold for the trained runs alone: seeds or splits are few"
    part = "nodule" if run.get("task") == "nodule" else "gland"
    classes = "background and of each class, " + ", ".join(run.get("classes", []))
    fields = {
        "part": part,
        "structure": classes if "classes" in run else part.replace("gland", "thyroid"),
        "provisional": provisional * selected["provisional"],
        "about": about,
        "cost": f"{row['parameters']:,.0f} parameters, {giga:.2f} G multiply-adds per image"
        if giga == giga
        else "Parameters and multiply-adds are unknown",
        "settings": ", ".join(f"{key} {run[key]}" for key in used),
        "data": "unknown; scored on " * is_imported(name) + ", ".join(data),
        "cases": ", ".join(cases),
        "external": f"- {external_sentence(external)}\n" * (external is not None),
        "weights": WEIGHTS.get(run["selection"], run["selection"]),
        "sizes": ", ".join(count_of(n, what) for what, n in (sizes | {"run": len(mine)}).items()),
        "conditional": conditional * selected["conditional"],
        "power": readings.power_sentence(differences),
        "metrics": show_summary(table[table["model"] == name]).to_markdown(**bare),
        "classes": ""
        if per_class is None
        else f"\n{show_classes(per_class[per_class['model'] == name]).to_markdown(**bare)}\n",
        "stability": pd.DataFrame(stable).to_markdown(**bare),
        "calibration": readings.calibration_sentence(table),
        "temperature": span(*heat, "{:.2f}") if heat else "none",
        "failures": readings.failures_sentence(scores),
        "limits": "".join(f"- {text}\n" for text in limits),
        "selection": readings.selection_sentence(selected, ranks),
        "difference": readings.difference_sentence(differences, delta=selected["delta"]),
        "runs": ", ".join(mine["run_id"]),
        "version": run["training_version"],
        "versions": ", ".join(f"{key} {v}" for key, v in sorted(run["versions"].items())),
    }
    template = Path(__file__).with_name("model_card.md").read_text("utf-8")
    return template.format(model=name, row=row, run=run, **fields)


def released(about: dict) -> str:
    """Write the card's section of what was released, from the release.json of a release."""
    template = Path(__file__).with_name("released.md").read_text("utf-8")
    first, *kinds, of_run, fitted, unfitted, after = template.split("---\n")
    run = about["runs"][about["selected"]]
    gate, retrained = run["int8"], _is_retrained(run)
    unseen = "frames of a group left out" if "measured_on" in gate else "validation frames"
    text = first.format(chosen=kinds[retrained].format(about=about, run=run).rstrip("\n"))
    for name, run in about["runs"].items():
        compared = count_of(run["agreement"]["frames"], "frame")
        text += of_run.format(compared, name=name, run=run).rstrip("\n") + " "
        if line := run.get("confidence"):
            counts = [count_of(line[f"{what}s"], what) for what in ("frame", "group")]
            text += fitted.format(*counts, run=run, on=fitted_frames(run))
        else:
            text += unfitted.format(reason=unfitted_reason(run))
        text = text.rstrip("\n") + pretrained_sentence(run.get("pretrained_weights", [])) + "\n"
    how = {"negation": "" if gate["released"] else "**not** ", "too_far": TOO_FAR, "unseen": unseen}
    return text + after.format(about=about, gate=gate, change=int8_change(gate), **how)


def fitted_frames(run: dict) -> str:
    """Name the frames on which a run's confidence was fitted; `run` is of release.json."""
    of_runs = "test frames of its runs, which had not seen their groups"
    return of_runs if _is_retrained(run) else "validation"


def unfitted_reason(run: dict) -> str:
    """Say why a run has no confidence; `run` is of release.json."""
    if _is_retrained(run):
        return "with several classes it is fitted on validation frames alone"
    return "no frames were held back from its training to fit it on"


def _is_retrained(run: dict) -> bool:
    return run.get("split", {}).get("protocol") == ALL


def int8_change(gate: dict) -> str:
    """Write how int8 changes Dice, on what, and of several classes of each."""
    frames = "training frames, as none were held back," if "measured_on" in gate else "validation"
    each = ", ".join(f"{name} {x:+.4f}" for name, x in gate.get("classes", {}).items())
    return f"on {frames} by {gate['change']:+.4f}" + f" ({each})" * bool(each)


def pretrained_weights(run: dict) -> list[dict]:
    """Return the weights with which a run's encoder, or its members' encoders, began."""
    each = (part.get("pretrained_weights") for part in (run, *run.get("members", ())))
    return list({weights["name"]: weights for weights in each if weights}.values())


def pretrained_sentence(weights: list[dict]) -> str:
    """State with which weights encoders began, and their licences; "" if with none."""
    each = (
        f"{of['name']}, trained on {of['trained_on']}, licence {of['licence']}" for of in weights
    )
    return f" Its encoder was pretrained: {'; '.join(each)}." if weights else ""
