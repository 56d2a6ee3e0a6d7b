"""Expected time of trainings: a few steps of each network, timed on this machine."""

import time
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from thyroid_lib import models
from thyroid_lib.data.splits import SPLIT, split_cases
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.predict import count_outputs
from thyroid_lib.files.text import count_of
from thyroid_lib.train import device as devices
from thyroid_lib.train import recipe
from thyroid_lib.train.run import place_frames
from thyroid_lib.train.validation import validate

STEPS = 4  # timed after one that is not, in which kernels are chosen


def expected_time(
    store: Store, runs: Iterable[dict], *, device: str, threads: int = 0, **settings
) -> pd.DataFrame:
    """Time steps of the recipe; return a row per variant: runs, ms_per_step, minutes, device.

    `runs` as `settings.list_runs` gives them; `settings`: width, folds and val_share, and what
    `recipe.fit` takes; a variant's own win. Minutes are those of all of a variant's runs, with
    validation and without the scores. Column `model` holds the variant's name. RuntimeError: too
    little memory.
    """
    runs, where = list(runs), devices.choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    frames, found, outputs = place_frames(store, where), [], count_outputs(store.classes)
    for name in dict.fromkeys(run["variant"] for run in runs):
        part = [settings | run for run in runs if run["variant"] == name]
        own = part[0] | {"precision": devices.choose_precision(part[0]["precision"], where)}
        batch, precision = min(own["batch_size"], len(store)), own["precision"]
        net = models.build_model(own["model"], out_channels=outputs, width=own["width"])
        net.to(where, memory_format=torch.channels_last)
        rows, few = torch.arange(batch), {key: own[key] for key in recipe.RECIPE.keys() & own}
        few |= {"epochs": 1 + STEPS, "batch_size": batch, "pretrained": "none"}
        sizes = {"size": store.size, "batch_size": batch, "width": own["width"]}
        with devices.out_of_memory(where, model=name, **sizes):
            # epochs of one step each
            seconds = [state["seconds"] for state in recipe.fit(net, *frames, rows=rows, **few)]
            for _ in range(2):
                began = time.perf_counter()
                validate(net, store, rows.numpy(), where, precision)
                watching = (time.perf_counter() - began) / batch
        step, total = float(np.median(np.diff(seconds))), 0.0
        for run in part:
            split = {key: run[key] for key in SPLIT if key in run}
            sides = split_cases(store.index, **split)
            trained, watched = (np.flatnonzero(sides == side) for side in ("train", "val"))
            steps = len(recipe.cut_batches(torch.from_numpy(trained), batch))
            total += own["epochs"] * (steps * step + len(watched) * watching)
        row = {"model": name, "runs": len(part), "ms_per_step": 1000 * step, "minutes": total / 60}
        found.append(row | {"device": where.type, "precision": precision})
    return pd.DataFrame(found)


def minutes_sentence(expected: pd.DataFrame) -> str:
    """Say how long all trainings may take, from `expected_time`."""
    total, some = expected["minutes"].sum(), count_of(expected["runs"].sum(), "training")
    how = f"on {expected['device'].iloc[0]} in {expected['precision'].iloc[0]}"
    long = f"about {total:.0f} min" if total >= 1.5 else f"about {60 * total:.0f} s"
    return f"{some} {how}: {long}, and scoring; those that are finished take none."
