"""One row per test case of what a trained network does under variations: `variations.csv`.

So no run is trained again for a later question. Nothing here selects anything. In the order of
scores.csv; areas and distances are in pixels of the native frame, hd95_px in whole ones. Of several
classes, all is of the foreground.

case_id, group
largest_…, two_largest_…, filled_…, no_small_…
    dice, nsd, hd95_px, false_parts, px (area) after each of `postprocess.POSTPROCESSES`
gain_down_…, gain_up_…, gamma_dark_…, gamma_bright_…, blur_…, speckle_…, shrunk_…, enlarged_…
    dice, px for a frame changed by each of `perturb.PERTURBATIONS`
flip_agreement, flip_…
    Dice between the masks, stored squares, of a frame and of its mirror image; and dice, nsd,
    hd95_px, false_parts of their mean logits. A run with `flip_test` is scored by these means, and
    all other columns vary them; its flip_… are the scores of the frame alone.
batch_norm_…
    dice, nsd, hd95_px, false_parts with `batch_norm.renew_batch_norm` on the case's group of test
    frames. Transductive: it looks at the test sweep's frames.
bridge_distance, bridge_nearest
    distances of `features.feature_distances` from the run's training frames
next_dice, next_ref_dice
    Dice between the mask and that of the next test frame of the group in the store's order, both
    stored squares, of prediction and reference; empty for a group's last
"""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
import torch

from thyroid_lib.data import frames
from thyroid_lib.data.label_maps import foreground
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.batch_norm import renew_batch_norm
from thyroid_lib.evaluate.features import bridge_features, feature_distances
from thyroid_lib.evaluate.metrics import dice, dice_of_areas, part_errors, score_case
from thyroid_lib.evaluate.perturb import PERTURBATIONS, undo
from thyroid_lib.evaluate.postprocess import POSTPROCESSES
from thyroid_lib.evaluate.predict import predict_logits, to_prob
from thyroid_lib.files.parallel import map_in_order
from thyroid_lib.models.ensemble import without_flip

WRITTEN = {"float_format": "%.3g"}  # arguments of `write_table`: a row takes about 240 bytes
FULL = ("dice", "nsd", "hd95_px", "false_parts")
SCORED = ("flip", "batch_norm")  # maps that get all of FULL


def vary_rows(
    model: torch.nn.Module,
    store: Store,
    rows: np.ndarray,
    *,
    train: np.ndarray,
    threshold: float = 0.5,
    tolerance_px: float = 2.0,
    device: str = "cpu",
    batch_size: int = 16,
    workers: int = 1,
) -> pd.DataFrame:
    """Return the table of the module for test rows of a store; `train`: the training rows."""
    running = {"device": device, "batch_size": batch_size}
    how = {"resize": store.settings["resize"], "threshold": threshold, "tolerance_px": tolerance_px}
    names = store.index.iloc[rows][["case_id", "group"]].reset_index(drop=True)
    places = [*names.groupby("group", sort=False).indices.values()]  # in rows, of each group
    squares = []  # of each batch: agreement under a flip, (B,), and masks, bool (B,S,S)
    batches = (_predict_group(model, store, rows[x], threshold, squares, **running) for x in places)
    batches, order = chain.from_iterable(batches), np.concatenate(places)
    with closing(map_in_order(partial(_vary_batch, **how), batches, workers)) as varied:
        varied = pd.DataFrame(chain.from_iterable(varied), index=order)
    agreement, masks = map(np.concatenate, zip(*squares, strict=True))
    varied.insert(varied.columns.get_loc("flip_dice"), "flip_agreement", agreement)
    known, new = (bridge_features(model, store.images, x, **running) for x in (train, rows[order]))
    varied["bridge_distance"], varied["bridge_nearest"] = feature_distances(known, new)
    last = np.append(np.diff(names["group"].factorize()[0][order]) != 0, True)
    for name, each in (("next_dice", masks), ("next_ref_dice", store.masks[rows[order]] > 0)):
        varied[name] = np.where(last, np.nan, np.append(_dice(each[:-1], each[1:]), 1))
    return names.join(varied)


def _predict_group(
    model, store: Store, rows: np.ndarray, threshold: float, squares: list, **running
) -> Iterator[tuple[list[dict[str, np.ndarray]], list[np.ndarray]]]:
    """Yield, batch by batch, each frame's probability maps by name, (S,S), and its reference."""
    alone, names = without_flip(model), store.index["case_id"].to_numpy()
    renewed = renew_batch_norm(model, store.images, rows, **running)

    def predict(network: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
        return torch.cat([logits for _, logits in predict_logits(network, images, **running)])

    for part in np.split(rows, range(running["batch_size"], len(rows), running["batch_size"])):
        images = np.asarray(store.images[part])
        frame = predict(alone, images)
        mirror = predict(alone, np.ascontiguousarray(images[:, :, ::-1])).flip(3)
        both = (frame + mirror) / 2
        scored, flip = (frame, both) if alone is model else (both, frame)
        maps = {"scored": to_map(scored), "flip": to_map(flip)}
        maps["batch_norm"] = to_map(predict(renewed, images))
        for name, perturb in PERTURBATIONS.items():
            pairs = zip(images, names[part], strict=True)
            changed = np.stack([perturb(image, case_id) for image, case_id in pairs])
            maps[name] = np.stack([undo(name, x) for x in to_map(predict(model, changed))])
        masks = [frames.threshold_prob(to_map(x), threshold) for x in (frame, mirror)]
        squares.append((_dice(*masks), frames.threshold_prob(maps["scored"], threshold)))
        each = [dict(zip(maps, of, strict=True)) for of in zip(*maps.values(), strict=True)]
        yield each, [store.reference(row) > 0 for row in part]


def to_map(logits: torch.Tensor) -> np.ndarray:
    """Turn logits (B,C,S,S) into the probability of foreground, float32 (B,S,S)."""
    return foreground(to_prob(logits))


def _dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Dice of each pair of masks, bool (N,S,S), (N,)."""
    both, total = (a & b).sum((1, 2)), a.sum((1, 2)) + b.sum((1, 2))
    return dice_of_areas(both, total)


def _vary_batch(batch: tuple[list, list], **how) -> list[dict]:
    return [vary_map(maps, ref, **how) for maps, ref in zip(*batch, strict=True)]


def vary_map(
    maps: dict[str, np.ndarray], ref: np.ndarray, *, resize: str, threshold: float, **how
) -> dict[str, float]:
    """Return a frame's columns from `largest_dice` to `batch_norm_false_parts`.

    maps: float32 (S,S), "scored", `SCORED` and a map per perturbation; ref: bool (H,W).
    """
    fitting = {"resize": resize, "threshold": threshold}
    masks = {name: frames.restore_mask(x, *ref.shape, **fitting)[1] for name, x in maps.items()}
    scored, row = masks.pop("scored"), {}
    masks = {name: process(scored) for name, process in POSTPROCESSES.items()} | masks
    known = {}  # scores of a mask that several variations give, often the unchanged one
    for name in (*POSTPROCESSES, *PERTURBATIONS, *SCORED):
        mask = masks[name]
        if name in PERTURBATIONS:
            row[f"{name}_dice"] = dice(mask, ref)
        else:
            if (bits := mask.tobytes()) not in known:
                known[bits] = score_case(pred=mask, ref=ref, **how) | part_errors(mask, ref)
                known[bits]["hd95_px"] = round(known[bits]["hd95_px"])
            row |= {f"{name}_{column}": known[bits][column] for column in FULL}
        if name not in SCORED:
            row[f"{name}_px"] = int(mask.sum())
    return row
