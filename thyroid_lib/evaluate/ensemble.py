"""Ensemble of finished runs: the tables of a run from the mean logits of several, untrained.

    python -m thyroid_lib.evaluate.ensemble results/mine/runs/both-grouped-fold0-seed0 \\
        --members results/mine/runs/unet-grouped-fold0-seed0 results/mine/runs/resunet-…

The members are runs of one protocol and fold: all seeds of some variants. The folder is named as a
run's, `<name>-<protocol>-fold<k>-seed<s>`, with the members' smallest seed:

    model.pt      all members' weights, which the app and the export take as a run's
    scores.csv  thresholds.csv  calibration.csv  variations.csv    as those of `train.run`
    history.csv   its heading alone
    run.json      `ensemble`: the members' run_ids; settings that differ between them are "unknown"

Mirror images are averaged, too, if any member's `flip_test` is set. A frame is "val", for the
temperature, only if all members held it back.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from thyroid_lib.data.cases import read_rows
from thyroid_lib.data.classes import class_names
from thyroid_lib.data.splits import SPLIT, split_cases
from thyroid_lib.data.store import Store, open_store
from thyroid_lib.evaluate.imported import UNKNOWN
from thyroid_lib.evaluate.predict import count_outputs, load_model, restore_model
from thyroid_lib.evaluate.run_tables import reuse_rows, score_tables, write_run
from thyroid_lib.files.machine import processor_name
from thyroid_lib.files.parallel import count_workers
from thyroid_lib.files.paths import read_json
from thyroid_lib.models import checkpoint, count_parameters, multiply_adds
from thyroid_lib.models.ensemble import Ensemble, without_flip
from thyroid_lib.settings import DEFAULTS, SHARED

ALIKE = ("protocol", "fold", "size", "resize", "data_fingerprint", "threshold")
OWN = ("model", "width", "run_id", "key", "seed", "variant", "architecture_fingerprint",
       "pretrained_weights", *SPLIT)  # fmt: skip


def score_ensemble(out: Path, members: list[Path], store: Store, *, device="cpu") -> pd.DataFrame:
    """Write an ensemble's run into `out`; return one row per test case.

    Of members whose committed tables are used again, those of the ensemble are, too.
    ValueError: members that differ in test cases or in `ALIKE`, or `out` is a trained run's.
    """
    began, members = time.perf_counter(), sorted(map(Path, members))
    about = out / "run.json"
    if about.is_file() and "ensemble" not in read_json(about):
        raise ValueError(f"{out.name} is the folder of another run: give the ensemble its own")
    there = {x.name: read_json(x / "run.json") for x in members if (x / "run.json").is_file()}
    if lacking := [name for name in there if there[name].get("reused")]:
        wanted = {name: there[lacking[0]][name] for name in ("threshold", "tolerance_px")}
        if reuse_rows(out, wanted | {"key": _key([*there.values()])}):
            return read_rows(out / "scores.csv")
        said = f"no weights of {lacking[0]}, whose tables are committed"
        raise ValueError(f"{out.name}: {said}: set reuse to false, or ensembles to {{}}")
    loaded = [load_model(folder / "model.pt", device) for folder in members]
    metas = [DEFAULTS | meta for _, meta in loaded]
    first, ids = metas[0], [meta["run_id"] for meta in metas]
    if len(set(ids)) < len(ids):
        raise ValueError(f"members: got {', '.join(ids)}: need each run once")
    for meta in metas:
        for name in ALIKE:
            if meta[name] != first[name]:
                said = f"{name}: {meta['run_id']} has {meta[name]}, {ids[0]} has {first[name]}"
                raise ValueError(f"{said}; members need equal ones")
    if first["data_fingerprint"] != store.fingerprint:
        raise ValueError(f"{ids[0]} was trained on other data than {store.folder} holds")
    sides = join_sides(store.index, metas)
    flip = any(meta["flip_test"] for meta in metas)
    model = Ensemble([without_flip(one) for one, _ in loaded], flip=flip)
    state, own = model.state_dict(), [{x: meta[x] for x in OWN if x in meta} for meta in metas]
    about, key = {}, _key(metas)
    for name in (*SHARED, "training_version"):
        values = [meta.get(name) for meta in metas]
        about[name] = values[0] if all(x == values[0] for x in values) else UNKNOWN
    differ = {name for name in about if about[name] == UNKNOWN}
    about |= {name: first[name] for name in (*ALIKE, "threads")} | {"flip_test": flip}
    about |= {name: first[name] for name in ("task", "classes") if name in first}
    about |= {
        "run_id": out.name, "variant": out.name.partition("-")[0], "ensemble": ids, "key": key,
        "model": "+".join(sorted({meta["model"] for meta in metas})), "members": own,
        "varied": sorted({name for meta in metas for name in meta.get("varied", ())} | differ),
        "seed": min(meta["seed"] for meta in metas), "selected_epoch": None,
        "cases": {side: int((sides == side).sum()) for side in ("train", "val", "test")},
        "parameters": count_parameters(model), "multiply_adds": multiply_adds(model, store.size),
        "train_seconds": round(sum(meta["train_seconds"] for meta in metas), 3),
        "images_per_second": None, "peak_memory_mib": max(m["peak_memory_mib"] for m in metas),
    }  # fmt: skip
    checkpoint.save(out / "model.pt", {"weights": state, "key": key, "meta": about})
    outputs = count_outputs(class_names(about))
    model = restore_model("", 0, state, flip=flip, members=own, outputs=outputs)
    tolerance = read_json(members[0] / "run.json")["tolerance_px"]
    how = {"threshold": first["threshold"], "tolerance_px": tolerance, "device": device}
    how |= {"workers": count_workers(int((sides == "test").sum()), first["threads"])}
    tables, temperature = score_tables(model, store, sides, **how)
    about |= {
        "tolerance_px": tolerance, "temperature": temperature, "trained_epochs": 0,
        "scoring_seconds": round(time.perf_counter() - began, 3),
        "machine": {"processor": processor_name(),
                    "capability": torch.backends.cpu.get_cpu_capability()},
    }  # fmt: skip
    write_run(out, {"history": pd.DataFrame(columns=["epoch"])} | tables, about)
    return tables["scores"]


def join_sides(index: pd.DataFrame, metas: list[dict]) -> np.ndarray:
    """Return each case's side, str (N,): "test" alike for all members, or ValueError.

    "train" where a member was trained on it, "val" where all held it back, else "".
    """
    each = []
    for meta in metas:
        split = {name: meta[name] for name in SPLIT if name in meta}
        each.append(split_cases(index, **split | {"external": meta["external"].split()}))
    each = np.stack(each)  # (members,N)
    test = each == "test"
    if (test != test[0]).any():
        other = metas[int((test != test[0]).any(1).argmax())]
        what = f"{other['run_id']} was tested on other cases than {metas[0]['run_id']}"
        raise ValueError(f"{what}: need members of one protocol, fold and folds")
    choices = [test[0], (each == "train").any(0), (each == "val").all(0)]
    return np.select(choices, ["test", "train", "val"], "")


def _key(runs: list[dict]) -> str:
    return hashlib.sha256(json.dumps(sorted(run["key"] for run in runs)).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Score an ensemble from the command line; return 0, or 2 if refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the ensemble's run")
    parser.add_argument("--members", type=Path, nargs="+", required=True, help="folders of runs")
    parser.add_argument("--store", type=Path, help="default: store/ beside the folder of the runs")
    parser.add_argument("--device", default="cpu", help="of torch: cpu, cuda or mps")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        store = open_store(given.store or given.out.resolve().parent.parent / "store")
        scores = score_ensemble(given.out, given.members, store, device=given.device)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    dice = scores.groupby("group")["dice"].mean().mean()
    print(f"{given.out.name}: {len(given.members)} runs, Dice {dice:.3f} (mean of groups)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
