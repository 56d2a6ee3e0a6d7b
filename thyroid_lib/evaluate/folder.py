"""Score a trained network on any data set that has masks: the study's metrics at native size.

found = evaluate_folder("results/mine/deploy", "other-hospital", groups="patients.csv")
found.groups  # mean of each group, then of all groups with 95 % intervals
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thyroid_lib.data import archives
from thyroid_lib.data.label_maps import class_probs
from thyroid_lib.data.look import look
from thyroid_lib.data.store import Store, build_store
from thyroid_lib.evaluate.networks import open_network
from thyroid_lib.evaluate.scores import score_maps
from thyroid_lib.files.parallel import count_workers
from thyroid_lib.files.text import with_interval

MEASURES = ("dice", "nsd", "iou", "hd95_px", "assd_px", "missed_parts", "false_parts", "brier")
RESAMPLES, BATCH = 10_000, 16
ALL = "all groups"


class Found(NamedTuple):
    """The result: one row per case, one row per group and one of all, what was set aside, notes."""

    scores: pd.DataFrame
    groups: pd.DataFrame
    quarantine: pd.DataFrame
    seen: dict[str, str]  # see `look`


def evaluate_folder(
    model: str | Path,
    data: str | Path = "",
    *,
    images: str | Path = "",
    masks: str | Path = "",
    mend: Sequence[str] = (),
    tolerance_px: float = 2.0,
    device: str = "cpu",
    threads: int = 1,
    **choices: str,
) -> Found:
    """Predict a data set's images and score the masks; nothing is trained or chosen on it.

    Of a model of several classes the foreground is scored, all of them together.

    model: see `networks.open_network`. data: anything that `look` reads; or give `images` and
    `masks`, two folders or archives. mend: rules that mend the masks first, see `frames.mend_mask`.
    tolerance_px: of the surface Dice. choices: how the data are read, see `look.CHOICES`; with
    `data` also images and masks. FileNotFoundError, ValueError: no such model, or unreadable data.
    """
    network, about = open_network(model, device=device, threads=threads)
    table, colon, column = choices.get("groups", "").partition(":")
    if table and Path(table).is_file():  # it need not lie in the data's folder
        choices["groups"] = f"{Path(table).resolve()}{colon}{column}"
    inner, outer = sorted((Path(images).resolve(), Path(masks).resolve()), reverse=True)
    if images and masks and not data and inner.is_relative_to(outer):
        data, images, masks = outer, "", ""  # they lie in one folder, and are told apart by `look`
    with tempfile.TemporaryDirectory() as scratch:
        if data:
            choices |= {"images": str(images), "masks": str(masks)}
        elif images and masks:
            data = _join_folders(Path(scratch, "data"), images=images, masks=masks)
            choices |= {"images": "images", "masks": "masks"}
        else:
            raise ValueError("give data, or both images and masks")
        seen = look(data, dataset=Path(data).stem, **choices)
        how = {"size": about["size"], "resize": about["resize"], "mend": mend}
        store = build_store(seen.cases, Path(scratch, "store"), **how)
        how = {key: about[key] for key in ("resize", "threshold")}
        how |= {"tolerance_px": tolerance_px, "workers": count_workers(len(store))}
        scores = score_maps(store.index, _batches(network, store), **how).cases
        return Found(scores, by_group(scores), store.quarantine, seen.seen)


def _join_folders(folder: Path, **parts: str | Path) -> Path:
    """Put links to two folders, wherever they lie, into one; archives are unpacked."""
    folder.mkdir(parents=True)
    for name, path in parts.items():
        path = archives.unpack(path) if archives.is_archive(path) else Path(path)
        if not path.is_dir():
            raise ValueError(f"{name}: no folder or archive at {path}")
        (folder / name).symlink_to(path.resolve(), target_is_directory=True)
    return folder


def _batches(network, store: Store):
    """Yield probability maps of the foreground, float32 (B,S,S), and references at native size."""
    for start in range(0, len(store), BATCH):
        rows = range(start, min(start + BATCH, len(store)))
        logits = network(np.asarray(store.images[rows.start : rows.stop]))
        prob = class_probs(logits[:, None] if logits.ndim == 3 else logits).sum(axis=1)
        yield prob, [store.reference(row) for row in rows]


def by_group(scores: pd.DataFrame) -> pd.DataFrame:
    """Average each group's cases, then the groups, with 95 % intervals from resampled groups.

    Returns a row per group and, last, one called "all groups": group, frames, `MEASURES`, and
    …_low and …_high of each, NaN in rows of groups and for a single group.
    """
    groups = scores.groupby("group")
    means = groups[list(MEASURES)].mean()
    count = len(means)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    samples = drawn @ means.to_numpy(float) / count  # (B,M)
    low, high = np.quantile(samples, (0.025, 0.975), axis=0) * (1 if count > 1 else np.nan)
    total = {"group": ALL, "frames": len(scores)} | means.mean().to_dict()
    for end, values in (("low", low), ("high", high)):
        total |= {f"{name}_{end}": x for name, x in zip(MEASURES, values, strict=True)}
    table = means.assign(frames=groups.size()).reset_index()
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)[list(total)]


def show_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `by_group` into a table for people."""
    shown = table[["group", "frames"]].copy()
    for name in MEASURES:
        ends = name, f"{name}_low", f"{name}_high"
        shown[name] = with_interval(table, ends, 1 if name.endswith("_px") else 3)
    return shown
