"""One run of the study: variant × protocol × fold × seed, its folder, its weights and its tables.

    checkpoint.pt  checkpoint-previous.pt   while it trains: the last two states that were kept
    model.pt       the chosen weights and the key under which they were trained
    history.csv    one row per epoch
    scores.csv  thresholds.csv  calibration.csv   see `evaluate.scores.Scores`
    variations.csv    see `evaluate.variations`
    scores_val.csv (protocol "reported")  as scores.csv, of the epoch that validation picks
    run.json       all settings, key, versions, machine, time, memory, checksums of the tables
    tensorboard/   on request, see `live`

Weights are trained again only if their key has changed (see `models.checkpoint`). A training that
was stopped or killed goes on from the last state that was kept: at most a minute is lost, and the
epoch that it was in.
"""

import copy
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from thyroid_lib import models
from thyroid_lib.data.cases import read_rows
from thyroid_lib.data.splits import SPLIT, split_cases
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.predict import count_outputs, restore_model, score_rows
from thyroid_lib.evaluate.run_tables import reuse_rows, score_tables, write_run
from thyroid_lib.files.locks import folder_lock
from thyroid_lib.files.parallel import count_workers
from thyroid_lib.files.stopping import Stopped, stop_requests
from thyroid_lib.files.writing import write_table
from thyroid_lib.models import checkpoint, encoder_names, user_networks
from thyroid_lib.models.pretrained import describe as describe_pretrained
from thyroid_lib.settings import DEFAULTS, check_packages, check_parameters, variant_name
from thyroid_lib.train import device as devices
from thyroid_lib.train import live, recipe
from thyroid_lib.train.loss import possible_classes
from thyroid_lib.train.validation import validate

# A state is kept after an epoch when so many seconds have passed since the last one, or earlier if
# keeping it takes at most this share of the time: a full-size state takes 2 s, as its epoch may.
KEEP_SECONDS, KEEP_SHARE = 60, 0.05
# The key holds each case's side and the digest of pretrained weights instead.
NOT_IN_KEY = {*SPLIT, "pretrained", "threshold", "flip_test", "variant", "varied"}


@dataclass(frozen=True)
class Run:
    """A finished training, with the chosen weights in its model."""

    out: Path
    model: nn.Module | None  # None: committed tables are used again, weights are not here
    val_model: nn.Module | None  # protocol "reported": what validation would have chosen
    sides: np.ndarray  # (N,) "train", "val" or "test"
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
    external: Sequence[str] = (),
    train_share: float = 1.0,
    variant: str = "",
    varied: Sequence[str] = (),
    selection: str = "last",
    threshold: float = 0.5,
    flip_test: bool = False,
    threads: int = 0,
    device: str = "auto",
    precision: str = "auto",
    budget_minutes: float = 0,
    tensorboard: bool = False,
    reuse: bool = False,
    **recipe_settings,
) -> Run:
    """Train, go on, or find the run finished; leave `model.pt` and `history.csv` in `out`.

    With `reuse` committed tables of the same key are taken instead, see `run_tables.reuse_rows`.
    `settings.Parameters` and `recipe.RECIPE` describe the settings; scores are made in fp32. With
    `ema` it is the averaged weights that are validated, chosen and kept.
    ValueError: unknown or impossible settings, before any work. FloatingPointError: the loss is no
    finite number. RuntimeError: too little memory. Stopped: it was stopped; the next call goes on.
    """
    settings = {name: value for name, value in locals().items() if name not in ("store", "out")}
    settings |= {"external": list(external), "varied": list(varied)}
    settings = check_parameters(settings.pop("recipe_settings"), recipe.RECIPE | settings)
    del settings["budget_minutes"], settings["tensorboard"], settings["reuse"]  # change no result
    sides = split_cases(store.index, **{name: settings[name] for name in SPLIT})
    settings |= {"external": " ".join(external), "variant": variant or variant_name(model)}
    if selection != "last" and not (sides == "val").any():
        raise ValueError(f"selection {selection!r} needs validation cases: raise val_share")
    check_packages("tensorboard", tensorboard, "tensorboard")
    where = devices.choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    settings |= {"device": where.type, "precision": devices.choose_precision(precision, where)}
    for name in ("compile", "cuda_graph"):
        settings[name] = settings[name] and devices.can_do(name, where)
    # threads change no bit of a GPU's result
    settings["threads"] = torch.get_num_threads() if where.type == "cpu" else 0
    net = models.build_model(model, out_channels=count_outputs(store.classes), width=width)
    net.check(torch.empty(1, net.in_channels, store.size, store.size, device="meta"))
    own = {"packages": of_packages} if (of_packages := encoder_names.versions(model)) else {}
    if code := user_networks.fingerprint(model):
        user_networks.check(net, model, store.size)
        own = {"code": code, "packages": user_networks.packages(model)}
    about_pretrained = {}
    if settings["pretrained"] != "none":
        about_pretrained = describe_pretrained(model, settings["pretrained"])
        own |= {"pretrained": about_pretrained["sha256"]}
    # without those at their default, so that a new setting trains nothing anew
    deciding = {k: v for k, v in settings.items() if k not in NOT_IN_KEY and v != DEFAULTS.get(k)}
    how = {"parameters": deciding, "training_version": recipe.TRAINING_VERSION, "architecture": own}
    key = checkpoint.run_key(data=store.fingerprint, sides=sides, **how)
    out, trained_epochs, stopped = Path(out), 0, ""
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        finished = checkpoint.load(out / "model.pt", key=key)
        if finished is None:
            wanted = {"key": key, "threshold": threshold, "flip_test": flip_test}
            if reuse and (meta := reuse_rows(out, wanted, varied=settings["varied"])):
                return Run(out, None, None, sides, pd.read_csv(out / "history.csv"), meta)
            (out / "run.json").unlink(missing_ok=True)  # it belongs to tables of other weights
            how = settings, where, out, key, budget_minutes, tensorboard
            finished, trained_epochs, stopped = _train(net, store, sides, *how)
        meta = finished["meta"] | settings | {
            "run_id": out.name, "size": store.size, "resize": store.settings["resize"],
            "mend": " ".join(store.settings["mend"]), "data_fingerprint": store.fingerprint,
            "key": key, "training_version": recipe.TRAINING_VERSION,
            "cases": {side: int((sides == side).sum()) for side in ("train", "val", "test")},
        }  # fmt: skip
        some = {"architecture_fingerprint": code, "pretrained_weights": about_pretrained}
        meta |= {name: x for name, x in some.items() if x}
        meta |= {name: x for name, x in store.settings.items() if name in ("task", "classes")}
        checkpoint.save(out / "model.pt", finished | {"key": key, "meta": meta})
        checkpoint.forget(out)
        if stopped:
            raise Stopped(f"{out.name}: trained, but not scored, as {stopped}; start it again")
        history = pd.DataFrame(finished["history"])
        write_table(out / "history.csv", history)
    # Weights trained just now are restored, too, so that both give the same bits of scores.
    names = [name for name in ("weights", "val_weights") if name in finished]
    how = {"flip": flip_test, "outputs": count_outputs(store.classes)}
    nets = (restore_model(model, width, finished[x], **how) for x in names)
    net, val_net, *_ = *nets, None
    return Run(out, net, val_net, sides, history, meta | {"trained_epochs": trained_epochs})


def _train(net, store, sides, settings, where, out, key, budget_minutes, tensorboard):
    """Train the missing epochs; return what `model.pt` holds, their number, the reason to stop."""
    epochs, selection, lr = (settings[name] for name in ("epochs", "selection", "lr"))
    choosing = {"last": [], "val": ["val"], "test": ["test", "val"]}[selection]
    rows = torch.from_numpy(np.flatnonzero(sides == "train"))
    watched = sorted(side for side in {"val", selection} if (sides == side).any())
    state = checkpoint.resume(out, key=key) or {"epoch": 0, "history": [], "best": {}}
    history, best, begun = state["history"], state["best"], state["epoch"]
    steps = len(recipe.cut_batches(rows, settings["batch_size"]))  # in an epoch
    sizes = {name: settings[name] for name in ("model", "width", "batch_size", "precision")}
    kept_at = took = 0.0

    def after_step(steps: int = 1) -> None:
        bar.update(steps)
        if reason := stop_reason():
            stopped = f"{out.name}: stopped in epoch {len(history) + 1} of {epochs}, as {reason}"
            raise Stopped(f"{stopped}; start it again and it goes on")

    with (
        stop_requests(budget_minutes) as stop_reason,
        devices.out_of_memory(where, size=store.size, **sizes),
        live.curves(out, wanted=tensorboard, done=begun) as show,
        live.progress(out.name, steps=epochs * steps, done=begun * steps) as bar,
    ):
        torch.backends.cudnn.benchmark = True  # the fastest kernels, found by trial
        devices.forget_peak(where)
        net.to(where, memory_format=torch.channels_last)
        states = recipe.fit(
            net, *place_frames(store, where), rows=rows, state=state if begun else None,
            after_step=after_step, **{name: settings[name] for name in recipe.RECIPE},
        )  # fmt: skip
        answering = copy.deepcopy(net) if settings["ema"] else net  # what is validated
        for state in states:
            weights = state.get("averaged", state["weights"])
            if settings["ema"]:
                answering.load_state_dict(weights)
            if not math.isfinite(state["loss"]):
                at = f"in epoch {state['epoch']}, at lr {lr:g} in {settings['precision']}"
                advice = "lower lr, train in fp32, or look at the frames; the last state is kept"
                what = f"{out.name}: the loss became {state['loss']} {at}"
                raise FloatingPointError(f"{what}: {advice}")
            record = {"epoch": state["epoch"], "lr": state["lr"], "train_loss": state["loss"]}
            for side in watched:
                cases, how = np.flatnonzero(sides == side), (where, settings["precision"])
                seen = validate(answering, store, cases, *how, after_batch=lambda: after_step(0))
                record |= seen.summary(side)
            for side in choosing:  # on "test" by the Dice by which the reported study chose
                score = record["test_dice_pooled" if side == "test" else "val_dice"]
                if side not in best or score > best[side]["score"]:
                    copied = {name: value.cpu().clone() for name, value in weights.items()}
                    best[side] = {"epoch": state["epoch"], "score": score, "weights": copied}
            history = [*history, record]
            now = time.monotonic()
            if now - kept_at >= min(KEEP_SECONDS, took / KEEP_SHARE):
                checkpoint.keep(out, state | {"history": history, "best": best, "key": key})
                kept_at, took = time.monotonic(), time.monotonic() - now
            show(record | {"images_per_second": len(rows) * state["epoch"] / state["seconds"]})
    net.load_state_dict(state.get("averaged", state["weights"]))
    net.cpu()
    chosen = best.get(selection, {"epoch": epochs, "weights": net.state_dict()})
    weights = {"weights": chosen["weights"]}
    if selection == "test":
        weights["val_weights"] = best["val"]["weights"]
    meta = {
        "parameters": models.count_parameters(net),
        "multiply_adds": models.multiply_adds(net, store.size),
        "selected_epoch": chosen["epoch"],
        "train_foreground": sum(float((store.masks[x] > 0).mean()) for x in rows) / len(rows),
        "train_seconds": round(state["seconds"], 3),
        "images_per_second": round(len(rows) * epochs / state["seconds"], 2),
        "peak_memory_mib": round(devices.peak_memory(where) / 2**20),
    }
    return weights | {"history": history, "meta": meta}, epochs - begun, stop_reason()


def place_frames(store: Store, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a store's images and masks, uint8 (N,S,S), on a GPU with room for twice as much.

    Of several classes, masks are `loss.possible_classes`.
    """
    masks = store.masks
    if len(store.classes) > 1:
        masks = possible_classes(masks, store.annotated, store.classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor written
        pair = torch.from_numpy(store.images), torch.from_numpy(masks)
    cuda, needed = device.type == "cuda", 2 * store.images.nbytes
    keep_there = cuda and needed <= torch.cuda.mem_get_info(device)[0] // 2
    return tuple(part.to(device) for part in pair) if keep_there else pair


def score_run(run: Run, store: Store, *, tolerance_px: float = 2.0) -> pd.DataFrame:
    """Score the run's test cases, one row each; leave all tables and `run.json` in its folder.

    ValueError: its committed tables are used again, and were made with another `tolerance_px`.
    """
    if run.model is None:
        if tolerance_px != (had := run.meta["tolerance_px"]):
            said = f"committed tables have tolerance_px {had:g}, need {tolerance_px:g}"
            raise ValueError(f"{run.out.name}: {said}: set reuse to false, and it is trained")
        return read_rows(run.out / "scores.csv")
    began, rows = time.perf_counter(), np.flatnonzero(run.sides == "test")
    torch.backends.cudnn.benchmark = False  # the same kernels at each call, unlike in `_train`
    device = devices.choose_device(run.meta["device"])
    how = {"threshold": run.meta["threshold"], "tolerance_px": tolerance_px, "device": device}
    how |= {"workers": count_workers(len(rows), run.meta["threads"])}
    with devices.out_of_memory(device, size=store.size, width=run.meta["width"]):
        calibrate = run.val_model is None
        scored = score_tables(run.model, store, run.sides, calibrate=calibrate, **how)
        tables, temperature = {"history": run.history} | scored[0], scored[1]
        if run.val_model:
            square = validate(run.model, store, rows, device)
            areas = {"square_both": square.both.sum(1), "square_total": square.total.sum(1)}
            tables["scores"] = tables["scores"].assign(**areas)
            tables["scores_val"] = score_rows(run.val_model, store, rows, **how).cases
    about = run.meta | {
        "tolerance_px": tolerance_px,
        "temperature": temperature,
        "multiply_adds": models.multiply_adds(run.model, store.size),  # of both where it flips
        "scoring_seconds": round(time.perf_counter() - began, 3),
        "machine": devices.describe_machine(device),
    }
    write_run(run.out, tables, about)
    return tables["scores"]
