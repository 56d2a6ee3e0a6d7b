"""Predictions made elsewhere, masks or probability maps, scored as a run of the study.

    python -m thyroid_lib.evaluate.imported --name nnunet --predictions FOLDER

    runs/<name>-<protocol>-fold<k>-seed<s>/
        predictions/    one picture, .npy or .npz file per test case, as it was given
        imported.json   name, split and origin of the predictions
        scores.csv  thresholds.csv  calibration.csv  run.json    as those of `train.run`
        history.csv     its heading alone, as nothing is known of the training

Tables and figures call such a model "<name> (imported)". Masks have no probabilities: of theirs,
thresholds.csv and calibration.csv are headings alone and the Brier score is missing.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import __version__
from thyroid_lib.data import frames
from thyroid_lib.data.mask_values import count_levels, is_jpeg
from thyroid_lib.data.name_tables import read_table
from thyroid_lib.data.splits import SPLIT, split_cases
from thyroid_lib.data.store import Store, open_store
from thyroid_lib.evaluate.scores import score_maps
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.paths import project_path, read_json
from thyroid_lib.files.writing import write_file, write_table
from thyroid_lib.models import user_networks
from thyroid_lib.settings import (
    NETWORKS,
    TRAINING,
    add_study_arguments,
    read_named_study,
    step_settings,
)

MARK = " (imported)"  # ends the model's name, so that nothing shows such a model without it
UNKNOWN = "unknown"
ENDINGS = (".npz", ".npy", ".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")  # the first found
WHITE = {"b1": 1, "u1": 255, "u2": 65_535, "i4": 65_535, "f2": 1, "f4": 1, "f8": 1}
MEASURED = ("parameters", "multiply_adds", "train_seconds", "images_per_second", "peak_memory_mib")
ROUNDING, FEW = 0.001, 16  # by which float16 leaves 0 to 1; levels that may be classes
FOLD = re.compile(r"(?i)fold[_-]?(\d{1,4})(?:[_-]seed[_-]?(\d{1,9}))?")  # a subfolder's name


def is_imported(model: str) -> bool:
    """Say whether a model of the tables was trained elsewhere."""
    return model.endswith(MARK)


def find_predictions(folder: Path, names: dict[str, str] | None = None) -> dict[str, Path]:
    """Return the prediction file of each case; `names` maps files' names to cases' names."""
    for ending in ENDINGS:
        if files := sorted(p for p in folder.rglob("*") if p.suffix.lower() == ending):
            given = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
            found = {(names or {}).get(n, n): path for n, path in zip(given, files, strict=True)}
            if len(found) < len(files):
                raise ValueError(f"{folder} holds several files of one case: keep one of each")
            return found
    raise ValueError(f"{folder} holds no predictions: need one of {', '.join(ENDINGS)} per case")


def read_levels(path: Path) -> tuple[np.ndarray, int]:
    """Read one prediction as it is, (H,W), and the level that means 1, 0 if none does.

    Of nnU-Net's .npz it is the probability of class 1. A JPEG is a mask, of what is above 127.
    """
    if path.suffix.lower() not in (".npy", ".npz"):
        levels = frames.decode_file(path, _gray_levels)
        if is_jpeg(path):
            counts = count_levels(str(path)).counts
            if sum(n for code, n in counts.items() if 0 < code < 255) > 0.01 * sum(counts.values()):
                raise ValueError(f"{path.name!r} is a JPEG of more than black and white: need PNG")
            levels = levels > 127
    else:
        try:
            held = np.load(path, allow_pickle=False)
            held = dict(held) if hasattr(held, "files") else {"probabilities": held}
        except Exception as error:  # NumPy raises half a dozen kinds on a damaged file
            raise ValueError(f"{path.name!r} is damaged ({error}): save it again") from error
        if len(held) != 1 and "probabilities" not in held:
            raise ValueError(f"{path.name!r} holds {[*held]}: need an array called probabilities")
        levels = held.get("probabilities", next(iter(held.values()))).squeeze()
        if levels.ndim == 3 and len(levels) == 2:
            if np.ptp(levels.sum(axis=0, dtype=np.float64)) > 0.02 * levels.max():
                raise ValueError(f"{path.name!r} holds two maps, need background and thyroid")
            levels = levels[1]
    if levels.ndim != 2:
        raise ValueError(f"{path.name!r} holds an array {levels.shape}, need (H,W) or (2,H,W)")
    return levels, WHITE.get(levels.dtype.str[1:], 0)


def _gray_levels(image, tags) -> np.ndarray:
    if image.mode in ("1", "L", "F", "I", "I;16", "I;16B") and not image.has_transparency_data:
        return np.asarray(image)
    levels = np.asarray(image.convert("RGBA"))  # (H,W,4)
    odd = (levels[..., 3] < 255).any() or (levels[..., :3] != levels[..., :1]).any()
    if odd or (image.mode == "P" and len(np.unique(image)) > len(np.unique(levels[..., 0]))):
        raise frames.Refused("has colours, transparent parts or a palette, save gray levels")
    return levels[..., 0]


def check_predictions(files: dict[str, Path], cases: pd.DataFrame) -> str:
    """Return what the files hold, "masks" or "probability maps".

    `cases` are the test cases' rows of the store's index. They are masks if each file has 0 and at
    most one other level. ValueError, naming cases: missing or foreign ones, another size than the
    frame's own, levels that are neither, or masks among maps.
    """
    tests, shades, masks, highest, seen = set(cases["case_id"]), "", "", 0.0, set()
    for what, odd in (("missing", tests - set(files)), ("no test cases", set(files) - tests)):
        if odd:
            shown = ", ".join(sorted(odd)[:5]) + ", …" * (len(odd) > 5)
            need = f"need exactly the {len(tests)} test cases of this fold, each file named by its"
            raise ValueError(f"{what}: {shown} ({len(odd)} in all); {need} case_id")
    for case in cases.itertuples():
        name, (levels, white) = repr(files[case.case_id].name), read_levels(files[case.case_id])
        if levels.shape != (case.height, case.width):
            got, size = ("{} x {}".format(*x) for x in (levels.shape, (case.height, case.width)))
            raise ValueError(f"{name} is {got}, but its frame is {size}: save it as large")
        low, high = levels.min(), levels.max()
        if not np.isfinite(levels.sum(dtype=np.float64)) or low < -ROUNDING * white:
            raise ValueError(f"{name} has levels that are negative or no numbers")
        if not np.isin(levels, (0, high)).all():
            shades = shades or name
            if high > (1 + ROUNDING) * white:
                raise ValueError(f"{name} reaches {high}: need probabilities from 0 to 1")
        elif high and abs(float(high) - white) > ROUNDING * white:
            masks = masks or f"{name} has 0 and {high}"
        seen |= set(np.unique(levels)[: FEW + 1].tolist()) if white > 1 else {*range(FEW + 1)}
        highest = max(highest, high / white if white > 1 else 1.0)
    need = "need masks (0 and one other level) or probability maps (255, 65535 or 1.0 for 1)"
    if shades and masks:
        raise ValueError(f"{masks} alone, {shades} more levels: {need}, all of one kind")
    if shades and highest <= 0.5:
        raise ValueError(f"{shades} has more levels, and none above {highest:.3f} of white: {need}")
    if shades and 0 in seen and len(seen) <= FEW:
        advice = "save the thyroid's alone as masks, or probabilities as .npy of floats"
        raise ValueError(f"levels {', '.join(map(str, sorted(seen)))} may be classes: {advice}")
    return "probability maps" if shades else "masks"


def read_prob(path: Path, kind: str) -> np.ndarray:
    """Return a prediction as probabilities, float32 (H,W) in [0,1]; `kind`: `check_predictions`."""
    levels, white = read_levels(path)
    prob = levels > 0 if kind == "masks" else np.clip(levels / np.float64(white), 0, 1)
    return prob.astype(np.float32)


def segment_imported(run: Path, case_id: str) -> np.ndarray:
    """Return an imported run's mask of one test case, bool (H,W)."""
    about = read_json(run / "run.json")
    path = find_predictions(run / "predictions")[case_id]
    return frames.threshold_prob(read_prob(path, about["predictions"]), about["threshold"])


def score_imported(run: Path, store: Store, settings: dict) -> pd.DataFrame:
    """Score the predictions in a run's folder; leave its tables and `run.json` there.

    `settings` are the study's of the step "score". Returns one row per case. Raises as
    `check_predictions`.
    """
    about = read_json(run / "imported.json") | settings
    split = {key: about[key] for key in SPLIT if key in about}
    rows = np.flatnonzero(split_cases(store.index, **split) == "test")
    cases, files = store.index.iloc[rows], find_predictions(run / "predictions")
    kind = check_predictions(files, cases)
    pairs = zip(cases["case_id"], rows, strict=True)
    batches = ((read_prob(files[case], kind)[None], [store.reference(row)]) for case, row in pairs)
    how = {key: about[key] for key in ("threshold", "tolerance_px")}
    scored = score_maps(cases, batches, resize=frames.NATIVE, **how)
    tables = {"history": pd.DataFrame(columns=["epoch"]), "scores": scored.cases}
    tables |= {"thresholds": scored.thresholds, "calibration": scored.calibration}
    if kind == "masks":
        tables |= {name: tables[name].iloc[:0] for name in ("thresholds", "calibration")}
        tables["scores"] = scored.cases.assign(brier=np.nan)
    about |= dict.fromkeys((*TRAINING, "training_version"), UNKNOWN) | dict.fromkeys(MEASURED)
    about |= {
        "model": about["name"] + MARK, "imported": True, "predictions": kind,
        "external": " ".join(about["external"]),
        "size": store.size, "resize": store.settings["resize"],
        "mend": " ".join(store.settings["mend"]), "data_fingerprint": store.fingerprint,
        "cases": {"test": len(rows)}, "temperature": None, "versions": {"thyroid_lib": __version__},
    }  # fmt: skip
    paths = [write_table(run / f"{name}.csv", each) for name, each in tables.items()]
    about["files"] = {path.name: file_digest(path) for path in paths}
    write_file(run / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
    return tables["scores"]


def add_runs(
    predictions: Path, runs: Path, store: Store, *, name: str, settings: dict,
    protocol: str = "grouped", fold: int = 0, seed: int = 0, source: str = "", names=None,
) -> Iterator[tuple[str, pd.DataFrame]]:  # fmt: skip
    """Make runs of a folder of predictions, or of its subfolders fold0, fold1-seed2 …; all or none.

    `fold` and `seed` are those of a folder without such subfolders; `names`: `find_predictions`. An
    imported run of the same name is replaced. Yields run_id and scores. ValueError: see
    `check_predictions`, or the name or the run's folder belongs to a trained network.
    """
    taken = name in (*NETWORKS, *user_networks.files())
    if taken or not re.fullmatch("[a-z][a-z0-9_]{0,39}", name):
        need = "a-z first, then a-z, 0-9 and _, and no network of the study"
        raise ValueError(f"name: got {name!r}, need {need}")
    if protocol == "reported":
        raise ValueError("protocol: reported is the replication's; need another one of the study")
    hits = [(path, FOLD.fullmatch(path.name)) for path in sorted(predictions.glob("*/"))]
    parts = sorted((int(hit[1]), int(hit[2] or seed), path) for path, hit in hits if hit)
    done = {}
    with ExitStack() as made:
        for k, s, folder in parts or [(fold, seed, predictions)]:
            run_id = f"{name}-{protocol}-fold{k}-seed{s}"
            final, partial = runs / run_id, runs / f".{run_id}.{os.getpid()}.partial"
            if final.exists() and not (final / "imported.json").is_file():
                raise ValueError(f"{final} holds another run: give another name")
            if partial in done:
                raise ValueError(f"{run_id} is given twice, the second time by {folder.name}")
            made.callback(shutil.rmtree, partial, ignore_errors=True)
            for case_id, path in find_predictions(folder, names).items():
                copy = partial / "predictions" / f"{case_id}{path.suffix}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            about = {"name": name, "protocol": protocol, "fold": k, "seed": s, "run_id": run_id}
            about |= {"source": source or UNKNOWN}
            write_file(partial / "imported.json", json.dumps(about, indent=1) + "\n")
            try:
                done[partial] = final, score_imported(partial, store, settings)
            except ValueError as error:
                raise ValueError(f"{run_id}: {error}") from error
        for partial, (final, scores) in done.items():
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            os.utime(final / "imported.json")  # newer than the tables: the workflow scores again
            yield final.name, scores


def main(arguments: list[str] | None = None) -> int:
    """Add predictions to a study, or score those of a run again; return 0, or 2 if refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_study_arguments(parser)
    parser.add_argument("--name", default="", help="what the model is called: nnunet")
    parser.add_argument("--predictions", default="", help="folder, or one of fold0/ …")
    parser.add_argument("--protocol", default="grouped")
    parser.add_argument("--fold", type=int, default=0, help="of a folder without fold0/ … in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", default="", help="who trained it, on what, how")
    parser.add_argument("--names", help="names.csv of export-nnunet")
    parser.add_argument("--again", nargs=2, help="for the workflow: a run's folder, settings")
    given = vars(parser.parse_args(arguments))
    parameters, words, again = (given.pop(name) for name in ("parameters", "set", "again"))
    try:
        if again:
            score_imported(Path(again[0]), open_store("store"), json.loads(again[1]))
            return 0
        config = read_named_study(parameters, words)
        study, folder = project_path(f"results/{config['study']}"), given.pop("predictions")
        if not folder:
            raise ValueError("predictions: need a folder")
        if names := given.pop("names"):
            table = read_table(Path(names))
            if not {"name", "case_id"} <= {*table}:
                raise ValueError(f"{names} has the columns {', '.join(table)}: need name, case_id")
            names = dict(zip(table["name"], table["case_id"], strict=True))
        given |= {"names": names, "settings": step_settings(config, "score")}
        where = Path(folder), study / "runs", open_store(study / "store")
        for run_id, scores in add_runs(*where, **given):
            dice = scores.groupby("group")["dice"].mean().mean()
            kind = "masks" if scores["brier"].isna().all() else "probability maps"
            print(f"{run_id}: {len(scores)} {kind}, Dice {dice:.3f} (mean of groups)")
        print("start the study again: it compares them with its own runs")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
