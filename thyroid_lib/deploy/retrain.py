"""The network to release: the selected variant, trained once more on all groups.

No frame is left to measure it on. Its figures are those of the selected variant's runs, which were
trained on fewer groups; its confidence is fitted on their test frames, so each of these was
segmented by a network that had not seen the frame's group.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.data.cases import read_rows
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.imported import is_imported
from thyroid_lib.evaluate.networks import model_name
from thyroid_lib.files.paths import read_json
from thyroid_lib.files.writing import write_file
from thyroid_lib.settings import ALL, LEAKY
from thyroid_lib.train.recipe import RECIPE
from thyroid_lib.train.run import train_model

KEPT = (*RECIPE, "model", "width", "variant", "varied", "threshold", "flip_test", "threads")


def retrain(
    runs: list[Path], selected: dict, store: Store, folder: Path
) -> tuple[dict[str, dict], pd.DataFrame]:
    """Train the selected variant on all groups of a store, in a folder of its own below `folder`.

    Its epochs are those of the runs or, where validation chose, the median of what it chose.
    Returns what `export.choose_runs` does, with the median temperature of the runs, and the test
    rows of the selected protocol's runs of one seed: case_id, group, dice, expected (each by its
    own temperature). Committed tables (`reuse`) are enough for this.
    ValueError: an ensemble or imported masks were selected, or by test frames whose groups were
    trained on. Other errors as `train_model`.
    """
    if selected["protocol"] in LEAKY:
        need = "run protocol grouped, or set it to false"
        raise ValueError(f"retrain: {selected['protocol']} tests groups that it trained on: {need}")
    found = [read_json(run / "run.json") | {"folder": run} for run in runs]
    mine = [run for run in found if model_name(run) == selected["model"]]
    mine = [run for run in mine if run["protocol"] == selected["protocol"]]
    if not mine:
        raise FileNotFoundError(f"there is no run of {selected['model']}: run the study first")
    if is_imported(selected["model"]) or "ensemble" in mine[0]:
        problem = f"retrain: selected is {selected['model']}, which is no single network"
        raise ValueError(f"{problem}: set retrain to false")
    seed = min(run["seed"] for run in mine)
    mine = [run for run in mine if run["seed"] == seed]
    settings = {name: mine[0][name] for name in KEPT if name in mine[0]}
    if mine[0]["selection"] != "last":
        settings["epochs"] = round(np.median([run["selected_epoch"] for run in mine]))
    # what a GPU trained may be trained here without one
    settings["device"] = "cpu" if mine[0]["device"] == "cpu" else "auto"
    out = folder / f"{selected['model']}-{ALL}-seed{seed}"
    run = train_model(store, out=out, **settings, protocol=ALL, val_share=0, selection="last")
    rows = pd.concat([read_rows(run["folder"] / "scores.csv") for run in mine], ignore_index=True)
    rows = rows.rename(columns={"confidence": "expected"})
    about = run.meta | {"temperature": np.median([x.get("temperature") or 1.0 for x in mine])}
    write_file(out / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
    chosen = {selected["model"]: about | {"folder": out}}
    return chosen, rows[["case_id", "group", "dice", "expected"]]
