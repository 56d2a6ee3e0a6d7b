"""Export a study's networks to ONNX: a release folder with model card, checksums and metadata.

    python -m thyroid_lib.deploy.export --study results/demo --out release

One run of each variant is released: of the selected protocol, the run whose kept weights have the
best Dice on validation, or the run that is named. No test case takes part in this choice, in int8,
in the confidence or in the distance from the training frames. Or the selected variant alone is,
trained once more on all groups: see `retrain`. docs/deploy.md lists the files.
"""

import argparse
import hashlib
import io
import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from thyroid_lib import __version__
from thyroid_lib.compare import card
from thyroid_lib.data import splits
from thyroid_lib.data.cases import read_image
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import Store, open_store
from thyroid_lib.deploy import NOTICE
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.deploy.retrain import retrain
from thyroid_lib.evaluate.class_scores import mean_dice, split_classes
from thyroid_lib.evaluate.confidence import calibrated, fit_confidence
from thyroid_lib.evaluate.ensemble import join_sides
from thyroid_lib.evaluate.familiarity import describe_frames
from thyroid_lib.evaluate.imported import is_imported
from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.evaluate.networks import METADATA, model_name
from thyroid_lib.evaluate.predict import load_model
from thyroid_lib.files.packages import packages
from thyroid_lib.files.paths import read_json
from thyroid_lib.files.stopping import Stopped
from thyroid_lib.files.writing import remove_file, write_file
from thyroid_lib.settings import DEFAULTS, MEASURED

with packages("onnx", "onnxruntime", "onnxscript", module=__name__):
    import onnx
    import onnxruntime

    from thyroid_lib.deploy.int8 import calibration_rows, spread, to_int8

OPSET = 18
COMPARED = 200  # frames of the store on which an export is compared with torch
SOME = "task", "flip_test", "members"  # keys of model.pt that a few networks have
PROB_OFF, PIXELS_OFF = 1e-3, 1e-4  # allowed: mean |Δprob| of a frame, share of mask pixels
DICE_OFF = 0.002  # how much int8 may change Dice on validation, averaged over groups
NEEDS = ("numpy>=1.26", "onnxruntime>=1.20", "pillow>=10.1", "scipy>=1.11")
# keys of run.json that say nothing of a model
NOT_RELEASED = (*MEASURED, "files", "machine", "rows_version")
DESCRIPTION = {
    "input": "image: float32 (N,1,S,S) in [0,1], S = size, one gray frame each",
    "preprocessing": "gray levels, uint8; colour by 0.299 R + 0.587 G + 0.114 B; to S x S by "
    "Pillow's antialiased bilinear resize, the whole frame (resize: square) or with its aspect "
    "kept, centred on black (letterbox); divided by 255",
    "output": "logits: float32 (N,1,S,S)",
    "postprocessing": "sigmoid; a letterbox's border cut off; bilinear to the frame's own size; "
    "thyroid where the probability is strictly above the threshold",
}
OF_CLASSES = {
    "output": "logits: float32 (N,K+1,S,S), channel 0 is background, the others are `classes`",
    "postprocessing": "softmax over the channels; a letterbox's border cut off; each class "
    "bilinear to the frame's own size; foreground where the sum over the classes is strictly "
    "above the threshold, of the most probable class",
}


class Release(NamedTuple):
    """A written release: release.json as `about`, and the tables behind it.

    val: per model and validation frame: model, case_id, group, dice (the mean over the classes),
        expected, confidence; of several classes also dice_<name>. Of a run without validation up to
        200 training frames, without confidence; of a retrained one the test frames of the folds.
    int8: per group of these frames: group, fp32, int8 (Dice of the selected model).
    """

    about: dict
    val: pd.DataFrame
    int8: pd.DataFrame


def release(
    runs: list[Path], *, store: Path, compare: Path, out: Path, named: tuple = (), threads: int = 0,
    retrained: Path | None = None,
) -> Release:  # fmt: skip
    """Export a finished study's models into `out`, whole or not at all.

    `named` run_ids are released in place of the best ones; `threads` 0 are all of the CPU. With a
    folder `retrained` the selected variant is trained there on all groups, and it alone released.
    OSError, ValueError: no finished study, or `out` holds other files. RuntimeError: an export does
    not agree with torch.
    """
    sums = out / "SHA256SUMS"  # written first: it names the files of an export that was killed, too
    own = {sums.name, *(sums.read_text("utf-8").split() if sums.is_file() else ())}
    found = {re.sub(r"\.\d+\.partial$", "", file.name) for file in out.glob("*")}
    if foreign := found - own:
        raise ValueError(f"{out} holds {min(foreign)}: give a folder for the release alone")
    selected = read_json(_there(compare / "selected.json"))
    if is_imported(selected["model"]):
        advice = "set deploy to false, or remove its imported runs and compare again"
        raise ValueError(f"selected is {selected['model']}, whose weights lie elsewhere: {advice}")
    text = _there(compare / "model_card.md").read_text("utf-8")
    data, name = open_store(store), selected["model"]
    if threads:
        torch.set_num_threads(threads)
    if retrained:
        chosen, unseen = retrain(runs, selected, data, retrained)
    else:
        chosen, unseen = choose_runs(runs, selected, named), None
    files, settings, val, about = {}, {}, [], {"models": {}, "runs": {}}
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        for model, run in chosen.items():
            path = Path(scratch, f"{model}.onnx")
            scores, about["runs"][model] = export_run(run.pop("folder"), data, path, unseen)
            val.append(scores.assign(model=model))
            about["models"][model] = {"fp32": path.name}
            settings[model] = {key: run[key] for key in run if key not in NOT_RELEASED}
        val = pd.concat(val, ignore_index=True)
        own = val[val["model"] == name].dropna(axis=1, how="all")
        gate, groups = quantise(Path(scratch, f"{name}.onnx"), data, settings[name], own)
        about["runs"][name]["int8"] = gate
        if retrained:
            line = about["runs"][name].get("confidence")
            sure = calibrated(unseen["expected"], line) if line else np.nan
            val = unseen.assign(model=name, confidence=sure)
        if gate["released"]:
            about["models"][name]["int8"] = f"{name}-int8.onnx"
        for each in about["models"].values():
            files |= {file: Path(scratch, file).read_bytes() for file in each.values()}
    about |= {"selected": name, "protocol": selected["protocol"], "study": store.parent.name}
    about["provisional"] = selected["provisional"]
    files["model_card.md"] = f"{text.rstrip()}\n\n{card.released(about)}"
    files["parameters.json"] = _json(settings)
    files["requirements.txt"] = "\n".join(NEEDS) + "\n"
    readme = Path(__file__).with_name("release.md").read_text("utf-8")
    weights = card.pretrained_sentence(about["runs"][name].get("pretrained_weights", []))
    files["README.md"] = readme.format(**about, notice=NOTICE, weights=weights)
    write_release(out, files, about)
    return Release(about, val, groups)


def choose_runs(runs: list[Path], selected: dict, named: tuple[str, ...] = ()) -> dict[str, dict]:
    """Return the run to release of each variant, by name: run.json, `folder` and `val_dice`.

    One without validation has a `val_dice` of -1.
    """
    found = []
    for folder in sorted(map(Path, runs), reverse=True):
        run = read_json(_there(folder / "run.json")) | {"folder": folder}
        if run.get("reused"):
            said = f"no weights of {run['run_id']}, whose committed tables were taken"
            raise ValueError(f"{said}: set reuse to false, and it is trained")
        no_rival = "_reported" in run["model"] or run["protocol"] == "reported"
        # an ensemble is large: it is released where it was selected, or named
        wanted = selected["model"] == model_name(run) or run["run_id"] in named
        if no_rival or is_imported(run["model"]) or ("ensemble" in run and not wanted):
            continue
        history, best = pd.read_csv(folder / "history.csv").set_index("epoch"), -1.0
        if "val_dice" in history and len(history):
            best = float(history.loc[run["selected_epoch"], "val_dice"])
        found.append(run | {"val_dice": best})
    ids = sorted(run["run_id"] for run in found)
    if unknown := sorted(set(named) - set(ids)):
        raise ValueError(f"run: got {unknown[0]}, need one of {', '.join(ids)}")
    found = [r for r in found if r["run_id"] in named or r["protocol"] == selected["protocol"]]
    found.sort(key=lambda run: (run["run_id"] in named, run["val_dice"]))
    best = {model_name(run): run for run in found}  # the last one, of equals the first by name
    if selected["model"] not in best:
        raise FileNotFoundError(f"there is no run of {selected['model']}: run the study first")
    return dict(sorted(best.items()))


def export_run(
    run: Path, store: Store, path: Path, unseen: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, dict]:
    """Write one run as ONNX with its metadata; return its rows of `Release.val` and a summary.

    unseen: of a retrained network the rows on which its confidence is fitted, see `retrain`.
    """
    model, _ = load_model(run / "model.pt")
    trained = Predictor.open(run / "model.pt")
    if trained.about["data_fingerprint"] != store.fingerprint:
        raise ValueError(f"{run.name} was trained on other data than {store.folder} holds")
    split = split_of(trained.about)
    sides = sides_of(store.index, split)
    keys = ("model", "variant", "width", "size", "resize", "threshold", "run_id", "temperature",
            "data_fingerprint", "training_version", "architecture_fingerprint")  # fmt: skip
    about = {key: trained.about[key] for key in keys if key in trained.about} | DESCRIPTION
    # what only some networks have
    about |= {key: trained.about[key] for key in SOME if trained.about.get(key)}
    about["postprocessing"] = about["postprocessing"].replace("thyroid", trained.structure)
    if len(trained.classes) > 1:
        about |= OF_CLASSES | {"classes": trained.classes}
    sure = (sides == "val").any() or (unseen is not None and len(trained.classes) == 1)
    if sure:  # of several classes no temperature is fitted: the line below alone corrects
        about["temperature"] = about.get("temperature") or 1.0
    about["versions"] = {"thyroid_lib": __version__, "torch": torch.__version__}
    about["precision"] = "fp32"
    network = to_onnx(model, trained.about["size"])
    write_onnx(path, network, about)
    exported = Predictor.open(path, threads=torch.get_num_threads())
    if not (agreement := agree(trained, exported, store))["agrees"]:
        raise RuntimeError(f"{run.name}: its export does not agree with torch: {agreement}")
    scores = score(exported, store, measured_frames(sides)).assign(confidence=np.nan)
    summary = {"run_id": about["run_id"]}
    train, val = (store.images[sides == side] for side in ("train", "val"))
    if sure:
        fitted = scores if len(val) else unseen
        line = fit_confidence(*(fitted[key].to_numpy() for key in ("expected", "dice", "group")))
        if len(val):
            scores["confidence"] = calibrated(scores["expected"], line)
        low = round(float(np.percentile(calibrated(fitted["expected"], line), 5)), 4)
        about |= {"confidence": line, "confidence_low": low}
        summary |= {"confidence": line, "confidence_low": low}
    groups = store.index["group"].to_numpy()[sides == "train"]
    about |= {"quality": describe_frames(train, val, groups)}
    write_onnx(path, network, about)
    if unseen is not None:
        summary |= {"epochs": trained.about["epochs"], "frames": len(train)}
    if weights := card.pretrained_weights(trained.about):
        summary["pretrained_weights"] = weights
    return scores, summary | {"agreement": agreement, "split": split}


def measured_frames(sides: np.ndarray) -> np.ndarray:
    """Return which frames of a split, str (N,), a release is measured on, bool (N,).

    Those of validation; where there are none up to `COMPARED` of training, evenly spaced.
    """
    if (sides == "val").any():
        return sides == "val"
    return np.isin(np.arange(len(sides)), spread(np.flatnonzero(sides == "train"), COMPARED))


def to_onnx(model: torch.nn.Module, size: int) -> onnx.ModelProto:
    """Export a network for batches of any size; the same network gives the same bytes."""
    program = torch.onnx.export(
        model.to(memory_format=torch.contiguous_format).eval(), (torch.zeros(2, 1, size, size),),
        input_names=["image"], output_names=["logits"], opset_version=OPSET, dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
    )  # fmt: skip
    file = io.BytesIO()
    program.save(file)
    proto = onnx.load_from_string(file.getvalue())
    graph = proto.graph
    parts = [graph.node, graph.value_info, graph.input, graph.output, graph.initializer]
    for part in (proto, graph, *(each for some in parts for each in some)):  # paths of the code
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


def write_onnx(path: Path, proto: onnx.ModelProto, about: dict) -> None:
    """Write a network with its metadata, after a check against the ONNX standard."""
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(about, sort_keys=True)})
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def agree(one: Predictor, other: Predictor, store: Store) -> dict:
    """Compare two predictors on up to `COMPARED` frames, evenly spaced over a store."""
    rows = spread(np.arange(len(store)), COMPARED)
    each = []  # of each frame: largest and mean |Δprob|, pixels that differ, all pixels
    for row in rows:
        (prob, labels, _), (prob2, labels2, _) = (_segment(by, store, row) for by in (one, other))
        off = np.abs(prob - prob2)
        each.append((off.max(), off.mean(), np.count_nonzero(labels != labels2), labels.size))
    largest, mean, differing, pixels = np.transpose(each)
    found = {"max_prob": largest.max(), "mean_prob": mean.max()}
    found["pixels"] = differing.sum() / pixels.sum()
    agrees = found["mean_prob"] <= PROB_OFF and found["pixels"] <= PIXELS_OFF
    found = {key: float(f"{value:.2g}") for key, value in found.items()}
    return {"frames": len(rows), **found, "agrees": bool(agrees)}


def score(predictor: Predictor, store: Store, chosen: np.ndarray) -> pd.DataFrame:
    """Return one row per chosen frame, bool (N,): case_id, group, expected, `dice_of_classes`."""
    rows, annotated = [], store.annotated
    for row in np.flatnonzero(chosen):
        _, labels, (expected, *_) = _segment(predictor, store, row)
        of = labels, store.reference(row), predictor.classes, annotated[row]
        rows.append(dice_of_classes(*of) | {"expected": expected})
    table = store.index.loc[chosen, ["case_id", "group"]].reset_index(drop=True)
    return table.join(pd.DataFrame(rows).astype({"expected": float}))


def dice_of_classes(labels: np.ndarray, ref: np.ndarray, classes: list, annotated) -> dict:
    """Return the Dice of a label map (H,W), of several classes also that of each, dice_<name>.

    `dice` is then the mean over those that it or the reference has, see `class_scores`.
    """
    if len(classes) == 1:
        return {"dice": dice(labels > 0, ref)}
    masks = split_classes(labels, ref, classes, annotated)
    there = {f"dice_{name}": pair for name, pair in masks.items() if name and np.any(pair)}
    return {"dice": mean_dice(masks)} | {name: dice(*pair) for name, pair in there.items()}


def split_of(run: dict) -> dict:
    """Return how a run was split, from its run.json: arguments of `sides_of`."""
    if "members" in run:
        kept = {*splits.SPLIT, "run_id"}
        return {"members": [{x: each[x] for x in each if x in kept} for each in run["members"]]}
    split = {key: run[key] for key in splits.SPLIT if key in run}
    split |= {"external": run.get("external", "").split()}
    return {key: x for key, x in split.items() if x != DEFAULTS.get(key)}


def sides_of(index: pd.DataFrame, split: dict) -> np.ndarray:
    """Return each case's side, str (N,), of a run, or together of those of an ensemble."""
    if "members" in split:
        return join_sides(index, split["members"])
    return split_cases(index, **split)


def quantise(path: Path, store: Store, run: dict, fp32: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """Write `<model>-int8.onnx` beside an export; return its summary and `Release.int8`.

    It is to be released where no Dice, of several classes also of each, changes beyond the limit.
    """
    sides = sides_of(store.index, split_of(run))
    images = store.images[calibration_rows(store, sides == "train")]
    small, about = path.with_name(f"{path.stem}-int8.onnx"), Predictor.open(path).about
    write_onnx(small, to_int8(path, images, small), about | {"precision": "int8"})
    opened = Predictor.open(small, threads=torch.get_num_threads())
    both = {"fp32": fp32, "int8": score(opened, store, measured_frames(sides))}
    names = ["dice", *(name for name in fp32 if name.startswith("dice_"))]
    means = {
        name: of.set_index("group").reindex(columns=names).groupby("group").mean()
        for name, of in both.items()
    }
    change = means["int8"] - means["fp32"]
    groups = pd.DataFrame({name: of["dice"] for name, of in means.items()})
    gate = {
        "released": bool((change.mean().abs() <= DICE_OFF).all()), "limit": DICE_OFF,
        "change": round(float(change["dice"].mean()), 5),
        "worst_group": round(float(change["dice"].min()), 5),
        "fp32": round(float(groups["fp32"].mean()), 5), "calibration_frames": len(images),
    }  # fmt: skip
    of_classes = change.mean().drop("dice").round(5).to_dict()
    gate |= {"classes": {name.removeprefix("dice_"): x for name, x in of_classes.items()}}
    gate |= {} if (sides == "val").any() else {"measured_on": "train"}
    return {key: value for key, value in gate.items() if value != {}}, groups.reset_index()


def write_release(out: Path, files: dict[str, str | bytes], about: dict) -> None:
    """Write a release's files; release.json is removed first and written last."""
    files = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    files["release.json"] = _json(about | {"files": sums}).encode()
    sums["release.json"] = hashlib.sha256(files["release.json"]).hexdigest()
    remove_file(out / "release.json")
    for old in (*out.glob("*.onnx"), *out.glob("*.partial")):
        remove_file(old)
    write_file(out / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    for name, content in files.items():  # release.json is the last one
        write_file(out / name, content)


def distances(predictor: Predictor, store: Store, about: dict) -> pd.DataFrame:
    """Return each frame's distance from the training frames: group, side, distance."""
    split = about["runs"][predictor.name]["split"]
    table = store.index[["group"]].assign(side=sides_of(store.index, split))
    return table.assign(distance=[predictor.distance(image) for image in store.images])


def example(released: Release, cases: pd.DataFrame) -> tuple[str, np.ndarray]:
    """Return the selected model's frame of median Dice in `Release.val`: case_id, uint8 (H,W).

    ValueError: it is none of these cases, which are another source's.
    """
    mine = released.val[released.val["model"] == released.about["selected"]]
    case = mine.sort_values(["dice", "case_id"])["case_id"].iloc[len(mine) // 2]
    if (found := cases[cases["case_id"] == case]).empty:
        problem = f"{case} of the released runs is none of the {len(cases)} cases of this source"
        raise ValueError(f"{problem}: set source and data as in 1-preprocess")
    return case, read_image(found.iloc[0])


def _segment(predictor: Predictor, store: Store, row: int) -> tuple:
    """Return prob, label map and confidences of a frame of a store, see `Predictor.segment`."""
    shape = tuple(store.index.iloc[row][["height", "width"]].astype(int))
    return predictor.segment(store.images[row], shape, predictor.about["threshold"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and the quantiser's own notes off the terminal."""
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    with warnings.catch_warnings(action="ignore"):
        yield
    logging.disable(logging.NOTSET)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the study first")
    return path


def _json(value) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Export from the command line; exit code 2, with the reason, if there is no release."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", required=True, type=Path, help="folder of a finished study")
    parser.add_argument("--out", required=True, type=Path, help="folder for the release")
    parser.add_argument("--run", action="append", default=[], help="run_id to release; repeatable")
    said = "release the selected variant alone, trained once more on all groups"
    parser.add_argument("--retrain", action="store_true", help=said)
    parser.add_argument("--threads", default=0, type=int, help="CPU threads, 0 for all")
    arguments = parser.parse_args()
    if arguments.run and arguments.retrain:
        parser.error("--run names a run to release, --retrain trains another: give one of them")
    study = arguments.study
    try:
        runs = [file.parent for file in study.glob("runs/*/run.json")]
        places = {"store": study / "store", "compare": study / "compare", "out": arguments.out}
        how = {"named": arguments.run, "threads": arguments.threads}
        how |= {"retrained": study / "retrained"} if arguments.retrain else {}
        released = release(runs, **places, **how)
    except (OSError, ValueError, KeyError, ArithmeticError, RuntimeError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{', '.join(released.about['models'])} released into {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
