"""One run of the study: model × protocol × fold × seed, its folder, its weights and its tables.

    out/checkpoint.pt  out/checkpoint-previous.pt   while it trains: from where it goes on
    out/model.pt       the chosen weights, and under which key they were trained
    out/history.csv    one row per epoch
    out/scores.csv  out/thresholds.csv  out/calibration.csv   see `scores.Scores`
    out/scores_val.csv (protocol "reported")  as scores.csv, of the epoch that validation picks
    out/run.json       all settings, the key, versions, time, memory, the tables' checksums
    out/tensorboard/   on request, to be watched: see `live`

Weights are trained again only if their key no longer fits (see `checkpoint`); scores and tables
are made anew at every call. A training that is killed goes on where it last kept its state: after
each epoch and every five minutes. One that is told to stop (Ctrl-C, a notebook's stop button,
SIGTERM, a time budget) keeps its state after the step that it is at.
"""

import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from thyroid_lib import __version__
from thyroid_lib.data import frames
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.metrics import dice_of_areas, pooled_dice
from thyroid_lib.evaluate.predict import predict_logits, restore_model, score_rows, to_prob
from thyroid_lib.evaluate.scores import count_logits, fit_temperature
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.locks import folder_lock
from thyroid_lib.files.parallel import count_workers
from thyroid_lib.files.stopping import STOP_REQUESTED, Stopped, stop_requests
from thyroid_lib.files.writing import write_file, write_table
from thyroid_lib.models import checkpoint, count_parameters, multiply_adds, user_networks
from thyroid_lib.train import live
from thyroid_lib.train import recipe as train
from thyroid_lib.train.augment import AUGMENTS
from thyroid_lib.train.device import (
    choose_device,
    choose_precision,
    fits,
    out_of_memory,
    peak_memory,
)

KINDS = torch.float32, torch.int64, torch.int64  # of `_measure`
KEEP_EVERY = 300  # seconds: what a kill in a long epoch costs at most


@dataclass(frozen=True)
class Run:
    """A finished training: where it lies, what it was, and the model with the chosen weights."""

    out: Path
    model: nn.Module
    val_model: nn.Module | None  # protocol "reported": what validation would have chosen
    labels: np.ndarray  # (N,) "train", "val" or "test"
    history: pd.DataFrame  # one row per epoch
    meta: dict


def train_model(
    store: Store,
    *,
    out: str | Path,
    model: str,
    width: int = 0,
    protocol: str = "grouped",
    fold: int = 0,
    folds: int = 5,
    val_share: float = 0.15,
    seed: int = 0,
    epochs: int = 25,
    batch_size: int = 16,
    lr: float = 1e-4,
    selection: str = "last",
    augment: str = "none",
    threshold: float = 0.5,
    threads: int = 0,
    device: str = "auto",
    precision: str = "auto",
    budget_minutes: float = 0,
    tensorboard: bool = False,
) -> Run:
    """Train, or go on, or find that it is done; leave `model.pt` and `history.csv` in `out`.

    Args:
        store: frames and masks, uint8 (N,S,S).
        out: the run's folder.
        model, width: architecture, see `user_networks.build`, and base channels (0 = the paper's).
        protocol, fold, folds, val_share: see `splits.split_cases`.
        seed: of the initial weights, the order of the batches and the augmentation.
        epochs, batch_size, lr: see `train.fit`.
        selection: which epoch's weights are kept: "last", the one of best Dice on "val", or, as
            the reported study did and under protocol "reported" alone, on "test".
        augment: see `augment.AUGMENTS`.
        threshold: a pixel is thyroid if its probability is above; moves scores, not weights.
        threads: CPU threads, 0 for all; part of what makes the result.
        device, precision: see `device.choose_device` and `device.choose_precision`; precision of
            training, scores are made in fp32 always.
        budget_minutes: after so many, training stops and keeps its state, and the next call goes
            on; 0 for no limit. `THYROID_DEADLINE` (Unix time), which a study sets, limits it, too.
        tensorboard: write event files to watch the training by; nothing else depends on it.

    Returns:
        The finished run. `meta["trained_epochs"]` says how many epochs this call had to train.

    Raises:
        ValueError: impossible arguments, before any work.
        FloatingPointError: the loss stopped being a number.
        RuntimeError: the device has too little memory; says what to lower.
        Stopped: it was told to stop; the next call goes on.
    """
    if epochs < 1 or batch_size < 1 or lr <= 0 or threads < 0:
        raise ValueError(
            f"got epochs {epochs}, batch_size {batch_size}, lr {lr}, threads {threads}: need "
            "epochs and batch_size of 1 or more, lr above 0, threads of 0 or more"
        )
    if selection not in train.SELECTIONS:
        raise ValueError(f"selection: got {selection!r}, need one of {', '.join(train.SELECTIONS)}")
    if augment not in AUGMENTS:
        raise ValueError(f"augment: got {augment!r}, need one of {', '.join(AUGMENTS)}")
    if (selection == "test") != (protocol == "reported"):
        raise ValueError(
            f"got selection {selection!r} and protocol {protocol!r}: only protocol 'reported' "
            "chooses on the test set, and it does nothing else; say both or neither"
        )
    labels = split_cases(
        store.index, protocol=protocol, fold=fold, folds=folds, val_share=val_share
    )
    if selection != "last" and not (labels == "val").any():
        raise ValueError(f"selection {selection!r} needs validation cases: raise val_share above 0")
    live.check_tensorboard(tensorboard)
    where = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    asked = {
        "model": model, "width": width, "seed": seed, "epochs": epochs, "batch_size": batch_size,
        "lr": lr, "selection": selection, "augment": augment, "device": where.type,
        "precision": choose_precision(precision, where),
        # elsewhere than on a CPU they do not decide any bit
        "threads": torch.get_num_threads() if where.type == "cpu" else 0,
    }  # fmt: skip
    net = user_networks.build(model, width=width or None)  # a wrong name or width stops here
    code, own = user_networks.fingerprint(model), {}
    if code:
        user_networks.check(net, model, store.size)
        own = {"code": code, "packages": user_networks.packages(model)}
    key = checkpoint.run_key(
        data=store.fingerprint,
        labels=labels,
        parameters=asked,
        training_version=train.TRAINING_VERSION,
        architecture=own,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        finished, trained_epochs, told = checkpoint.load(out / "model.pt", key=key), 0, False
        if finished is None:
            (out / "run.json").unlink(missing_ok=True)  # it would vouch for tables of older weights
            with stop_requests(budget_minutes) as why:
                finished, trained_epochs = _train(
                    net, store, labels, asked, where, out, key, why, tensorboard
                )
                told = why() == STOP_REQUESTED
        # From the stored weights also where they were trained just now: one way to the scores.
        net = restore_model(model, width, finished["weights"])
        val_net = None
        if selection == "test":
            val_net = restore_model(model, width, finished["val_weights"])
        meta = finished["meta"] | {
            "run_id": out.name, "protocol": protocol, "fold": fold, "folds": folds,
            "val_share": val_share, "threshold": threshold, "size": store.size,
            "resize": store.settings["resize"], "mend": " ".join(store.settings["mend"]),
            "data_fingerprint": store.fingerprint, "key": key,
            "training_version": train.TRAINING_VERSION,
            "cases": {side: int((labels == side).sum()) for side in ("train", "val", "test")},
        } | ({"architecture_fingerprint": code} if code else {})  # fmt: skip
        checkpoint.save(out / "model.pt", finished | {"key": key, "meta": meta})
        checkpoint.forget(out)
        if told:  # in the last epoch
            raise Stopped(f"{out.name}: trained, and told to stop; start it again to score it")
        history = pd.DataFrame(finished["history"])
        write_table(out / "history.csv", history)
    return Run(out, net, val_net, labels, history, meta | {"trained_epochs": trained_epochs})


def _train(net, store, labels, asked, where, out, key, why, tensorboard) -> tuple[dict, int]:
    """Train the epochs that are missing; return what `model.pt` holds, and how many they were.

    `why` is asked all the time whether to stop, and says the reason.
    """
    if why():
        raise Stopped(f"{out.name}: not trained, as {why()}; start it again and it goes on")
    with torch.inference_mode():  # an impossible size stops here, before any work
        net.eval()(torch.zeros(1, 1, store.size, store.size))
    rows = torch.from_numpy(np.flatnonzero(labels == "train"))
    selection, precision, epochs = asked["selection"], asked["precision"], asked["epochs"]
    sides = {side for side in ("val", selection) if (labels == side).any()}
    choices = ("val", "test") if selection == "test" else (selection,)
    state = checkpoint.resume(out, key=key)
    best, begun = (state["best"], state["epoch"]) if state else ({}, 0)
    kept = time.monotonic()

    def watch(model: nn.Module) -> dict:
        return watch_sides(model, store, labels, sorted(sides), where, precision, why)

    def due() -> bool:
        return bool(why()) or time.monotonic() - kept > KEEP_EVERY

    usual = torch.backends.cudnn.benchmark
    # On CUDA the fastest way for each shape is found by trying; scores come from the usual way.
    torch.backends.cudnn.benchmark = True
    sizes = {name: asked[name] for name in ("model", "width", "batch_size", "precision")}
    try:
        with (
            out_of_memory(where, size=store.size, **sizes),
            live.curves(out, wanted=tensorboard, done=begun) as show,
        ):
            net.to(where, memory_format=torch.channels_last)
            images, masks = place_frames(store, where)
            recipe = ("seed", "epochs", "batch_size", "lr", "precision", "augment")
            states = train.fit(
                net, images, masks, rows=rows, state=state, watch=watch, due=due, name=out.name,
                **{name: asked[name] for name in recipe},
            )  # fmt: skip
            for state in states:
                for side in () if state["within"] else choices:
                    best = best | {side: train.keep_better(best.get(side), state, side)}
                if not state["within"]:
                    show(state["history"][-1], len(rows) * state["epoch"] / state["seconds"])
                checkpoint.keep(out, state | {"key": key, "best": best})
                kept = time.monotonic()
                if why() and state["epoch"] < epochs:
                    raise Stopped(
                        f"{out.name}: stopped in epoch {state['epoch'] + 1} of {epochs}, as "
                        f"{why()}; what it reached is kept, start it again and it goes on"
                    )
    finally:
        torch.backends.cudnn.benchmark = usual
    net.cpu()
    foreground = sum(float(store.masks[row].mean()) for row in rows) / len(rows)
    meta = asked | {
        "parameters": count_parameters(net),
        "multiply_adds": multiply_adds(net, store.size),
        "selected_epoch": best[selection]["epoch"],
        "train_foreground": foreground,
        "train_seconds": round(state["seconds"], 3),
        "images_per_second": round(len(rows) * epochs / state["seconds"], 2),
        "peak_memory_mib": round(peak_memory(where) / 2**20),
    }
    weights = {"weights": best[selection]["weights"] or net.state_dict()}
    if selection == "test":
        weights["val_weights"] = best["val"]["weights"]
    return weights | {"history": state["history"], "meta": meta}, epochs - begun


def place_frames(store: Store, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a store's images and masks, uint8 (N,S,S), where training reads them fastest.

    On a GPU with room for them they are there; else they stay in the memory maps, of which the
    system keeps in memory what it has room for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor written
        pair = torch.from_numpy(store.images), torch.from_numpy(store.masks)
    if not fits(device, 2 * store.images.nbytes):
        return pair
    return tuple(part.to(device) for part in pair)


def watch_sides(
    net: nn.Module,
    store: Store,
    labels: np.ndarray,
    sides: list[str],
    where: str | torch.device,
    precision: str = "fp32",
    why: Callable[[], str] = str,
) -> dict:
    """Return each side's mean loss and mean Dice per case, at the store's size.

    The test side is there under protocol "reported" alone, and has that study's Dice beside. Raises
    `Stopped` as soon as `why` gives a reason to stop.
    """
    seen = {}
    for side in sides:
        rows = np.flatnonzero(labels == side)
        loss, both, total = _measure(net, store, rows, where, precision, why)
        seen |= {f"{side}_loss": float(loss.mean(dtype=np.float64))}
        seen |= {f"{side}_dice": float(dice_of_areas(both, total).mean())}
        if side == "test":
            seen["test_dice_pooled"] = pooled_dice(both, total)
    return seen


def _measure(
    net: nn.Module,
    store: Store,
    rows: np.ndarray,
    where: str | torch.device,
    precision: str,
    why: Callable[[], str] = str,
) -> tuple[np.ndarray, ...]:
    """Loss, |pred ∩ ref| and |pred| + |ref| of each of these cases at the store's size, (N,).

    They stay on the device until all are there. Their place is made before: a small tensor a batch
    would come to lie in the gap that the last large one left, and memory would grow by that gap.
    """
    loss, both, total = (torch.empty(len(rows), dtype=kind, device=where) for kind in KINDS)
    done = 0
    how = {"rows": rows, "device": where, "precision": precision}
    for part, logits in predict_logits(net, store.images, **how):  # (B,1,S,S)
        if why():
            raise Stopped(why())
        ref = torch.from_numpy(store.masks[part]).to(logits.device).unsqueeze(1) > 0
        each = nn.functional.binary_cross_entropy_with_logits(logits, ref.float(), reduction="none")
        pred = frames.threshold_prob(logits.sigmoid())
        here = slice(done, done + len(part))
        loss[here] = each.mean((1, 2, 3))
        both[here] = (pred & ref).sum((1, 2, 3))
        total[here] = pred.sum((1, 2, 3)) + ref.sum((1, 2, 3))
        done += len(part)
    return loss.cpu().numpy(), both.cpu().numpy(), total.cpu().numpy()


def score_run(run: Run, store: Store, *, tolerance_px: float = 2.0) -> pd.DataFrame:
    """Score the run's test cases; leave its tables and `run.json` in its folder.

    Returns:
        One row per test case, see `scores.Scores`. Under protocol "reported" two columns more,
        square_both and square_total: what `metrics.pooled_dice` takes.
    """
    began = time.perf_counter()
    rows = np.flatnonzero(run.labels == "test")
    device = choose_device(run.meta["device"])
    how = {"threshold": run.meta["threshold"], "tolerance_px": tolerance_px, "device": device}
    how["workers"] = count_workers(len(rows), run.meta["threads"])
    tables = {"history": run.history}
    with out_of_memory(device, size=store.size, width=run.meta["width"]):
        scores = score_rows(run.model, store, rows, **how)
        cases = scores.cases
        if run.val_model:
            _, both, total = _measure(run.model, store, rows, device, "fp32")
            cases = cases.assign(square_both=both, square_total=total)
            tables["scores_val"] = score_rows(run.val_model, store, rows, **how).cases
        temperature = _temperature(run, store, device)
    tables |= {
        "scores": cases, "thresholds": scores.thresholds, "calibration": scores.calibration
    }  # fmt: skip
    about = run.meta | {
        "tolerance_px": tolerance_px,
        "temperature": temperature,
        "scoring_seconds": round(time.perf_counter() - began, 3),
        "versions": {
            "thyroid_lib": __version__, "python": platform.python_version(),
            "torch": torch.__version__, "numpy": np.__version__, "pandas": pd.__version__,
        },
        "machine": {"system": platform.system(), "processor": platform.machine()},
    }  # fmt: skip
    if device.type == "cuda":
        about["machine"]["gpu"] = torch.cuda.get_device_name()
    with folder_lock(run.out):
        paths = [write_table(run.out / f"{name}.csv", each) for name, each in tables.items()]
        about["files"] = {path.name: file_digest(path) for path in paths}
        write_file(run.out / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
    return cases


def _temperature(run: Run, store: Store, device: torch.device) -> float | None:
    """Calibrate on the validation cases, for whoever deploys the model; None if nobody may.

    That is where there are no such cases, and where the epoch was picked on the test set.
    """
    rows = np.flatnonzero(run.labels == "val")
    if not len(rows) or run.val_model:
        return None
    counts = sum(
        count_logits(to_prob(logits), store.masks[part] > 0)
        for part, logits in predict_logits(run.model, store.images, rows=rows, device=device)
    )
    return round(fit_temperature(counts), 4)
