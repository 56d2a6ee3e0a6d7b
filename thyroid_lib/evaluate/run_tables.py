"""The tables of a run's test cases, made from its network, and its file run.json."""

import json
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from thyroid_lib import __version__
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.predict import predict_logits, score_rows, to_prob
from thyroid_lib.evaluate.scores import count_logits, fit_temperature
from thyroid_lib.evaluate.variations import WRITTEN, vary_rows
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.locks import folder_lock
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import print_note, write_file, write_table

# Raise it where new columns make committed tables incomplete; the first was not written.
ROWS_VERSION = 1


def score_tables(
    model: torch.nn.Module, store: Store, sides: np.ndarray, *, calibrate: bool = True, **how
) -> tuple[dict[str, pd.DataFrame], float | None]:
    """Return scores, thresholds, calibration and variations of a network, and its temperature.

    sides: str (N,), "train", "val" or "test" of each case of the store. The temperature is fitted
    on "val"; None if there are none, not to `calibrate`, or of several classes. how: threshold,
    tolerance_px, device, workers, of `score_rows` and `vary_rows`.
    """
    train, val, test = (np.flatnonzero(sides == side) for side in ("train", "val", "test"))
    temperature = None
    if len(val) and calibrate and len(store.classes) == 1:
        predicted = predict_logits(model, store.images, rows=val, device=how["device"])
        counts = (count_logits(to_prob(x), store.masks[part] > 0) for part, x in predicted)
        temperature = round(fit_temperature(sum(counts)), 4)
    scored = vars(score_rows(model, store, test, temperature=temperature, **how))
    tables = {name: table for name, table in scored.items() if table is not None}
    tables["scores"] = tables.pop("cases")
    tables["variations"] = vary_rows(model, store, test, train=train, **how)
    return tables, temperature


def write_run(out: Path, tables: dict[str, pd.DataFrame], about: dict) -> None:
    """Write a run's tables, and `run.json`: what it is about, versions, the tables' checksums."""
    versions = {each.__name__: each.__version__ for each in (torch, np, pd)}
    versions |= {"thyroid_lib": __version__, "python": platform.python_version()}
    form = {"variations": WRITTEN}
    with folder_lock(out):
        paths = [write_table(out / f"{x}.csv", tables[x], **form.get(x, {})) for x in tables]
        digests = {path.name: file_digest(path) for path in paths}
        about = about | {"versions": versions, "files": digests, "rows_version": ROWS_VERSION}
        write_file(out / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


def reuse_rows(out: Path, wanted: dict, **changed) -> dict | None:
    """Copy a run's tables into `out` if they are committed; return its run.json, with `changed`.

    They stand in `results/reference/<study>/runs` of the checkout, of this study or another one,
    whose name is then `reused`. None: there are none of this name whose run.json has all that is
    `wanted`, or their checksums do not fit.
    """
    wanted = {"rows_version": ROWS_VERSION} | wanted
    for folder in sorted(project_path("").glob(f"results/reference/*/runs/{out.name}")):
        try:
            about = {"rows_version": 1} | json.loads((folder / "run.json").read_text("utf-8"))
            if any(about.get(name) != value for name, value in wanted.items()):
                continue
            tables = {name: (folder / name).read_bytes() for name in about["files"]}
            digests = {name: file_digest(folder / name) for name in tables}
        except (OSError, ValueError, KeyError):
            continue
        if digests == about["files"]:
            study = folder.parents[1].name
            about |= {"reused": study, "trained_epochs": 0} | changed
            for name, content in tables.items():
                write_file(out / name, content)
            write_file(out / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
            print_note(f"{out.name}: tables of {study} are taken, not trained; else reuse=false")
            return about
    return None
