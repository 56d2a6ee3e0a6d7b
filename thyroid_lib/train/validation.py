"""Validation: mean loss and Dice of a network's answers to stored frames, on their device."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.metrics import dice_of_areas, pooled_dice
from thyroid_lib.evaluate.predict import label_tensor, predict_logits
from thyroid_lib.train.loss import cross_entropy, possible_classes, to_mask


class Seen(NamedTuple):
    """Mean loss of each case, (N,); |pred ∩ ref| and |pred| + |ref| in pixels, (N,K) by class."""

    loss: np.ndarray
    both: np.ndarray
    total: np.ndarray

    def summary(self, side: str) -> dict:
        """Return mean loss and Dice; Dice of a case is that of the classes it or its mask has."""
        dice, there = dice_of_areas(self.both, self.total), self.total > 0
        dice = np.where(there.any(1), (dice * there).sum(1) / np.maximum(there.sum(1), 1), 1.0)
        means = {f"{side}_loss": float(self.loss.mean(dtype=np.float64))}
        means[f"{side}_dice"] = float(dice.mean())
        both, total = self.both.sum(1), self.total.sum(1)
        pooled = {"test_dice_pooled": pooled_dice(both, total)}  # as reported
        return means | (pooled if side == "test" else {})


def validate(
    net: nn.Module, store: Store, rows: np.ndarray, device, precision="fp32", after_batch=None
) -> Seen:
    """Compare the network's predictions for these rows of the store with their masks.

    Of several classes those that were outlined count; a case with foreground of a kind that is not
    known counts as one class.
    """
    # Filled in place: small tensors made per batch would fragment the device's memory.
    count, classes = len(rows), store.classes
    counts = [torch.zeros(count, len(classes), dtype=torch.int64, device=device) for _ in range(2)]
    seen = Seen(torch.empty(count, dtype=torch.float32, device=device), *counts)
    annotated = store.annotated if len(classes) > 1 else None  # read once: it parses the index
    done, how = 0, {"rows": rows, "device": device, "precision": precision}
    for part, logits in predict_logits(net, store.images, **how):  # (B,C,S,S)
        here = slice(done, done := done + len(part))
        ref = torch.from_numpy(store.masks[part]).to(logits.device)  # (B,S,S)
        pred = label_tensor(logits)  # (B,S,S)
        outlines = (ref > 0).byte()
        if len(classes) > 1:
            outlines = possible_classes(store.masks[part], annotated[part], classes)
            outlines = torch.from_numpy(outlines).to(logits.device)
            unknown = (ref > len(classes)).any(2).any(1).view(-1, 1, 1)  # (B,1,1)
            ref, pred = (torch.where(unknown, (x > 0).byte(), x) for x in (ref, pred))
            outlined = torch.from_numpy(annotated[part]).to(logits.device)
        seen.loss[here] = cross_entropy(logits, to_mask(outlines, logits.shape[1]), each=True)
        for place in range(len(classes)):
            own, theirs = (x == place + 1 for x in (pred, ref))
            kept = outlined[:, place] if len(classes) > 1 else 1
            seen.both[here, place] = (own & theirs).sum((1, 2)) * kept
            seen.total[here, place] = (own.sum((1, 2)) + theirs.sum((1, 2))) * kept
        if after_batch:
            after_batch()
    return Seen(*(each.cpu().numpy() for each in seen))
