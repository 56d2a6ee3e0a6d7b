"""Loss and Dice of a network on a side of the split, at the store's size."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from thyroid_lib.data.frames import threshold_prob
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.metrics import dice_of_areas, pooled_dice
from thyroid_lib.evaluate.predict import predict_logits


class Seen(NamedTuple):
    """Mean loss, |pred ∩ ref| and |pred| + |ref| (pixels) of each case, (N,) each."""

    loss: np.ndarray
    both: np.ndarray
    total: np.ndarray

    def summary(self, side: str) -> dict:
        """Return mean loss and Dice of the side; for "test" the report's pooled Dice, too."""
        dice = float(dice_of_areas(self.both, self.total).mean())
        means = {f"{side}_loss": float(self.loss.mean(dtype=np.float64)), f"{side}_dice": dice}
        pooled = {"test_dice_pooled": pooled_dice(self.both, self.total)}
        return means | (pooled if side == "test" else {})


def validate(
    net: nn.Module,
    store: Store,
    rows: np.ndarray,
    device: str | torch.device,
    precision: str = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> Seen:
    """Compare the network's predictions for these rows of the store with their masks."""
    # Filled in place: small tensors made per batch would fragment the device's memory.
    types = torch.float32, torch.int64, torch.int64
    seen = Seen(*(torch.empty(len(rows), dtype=each, device=device) for each in types))
    done, how = 0, {"rows": rows, "device": device, "precision": precision}
    for part, logits in predict_logits(net, store.images, **how):  # (B,1,S,S)
        here = slice(done, done := done + len(part))
        ref = torch.from_numpy(store.masks[part]).to(logits.device).unsqueeze(1) > 0
        pred = threshold_prob(logits.sigmoid())
        loss = nn.functional.binary_cross_entropy_with_logits(logits, ref.float(), reduction="none")
        seen.loss[here] = loss.mean((1, 2, 3))
        seen.both[here] = (pred & ref).sum((1, 2, 3))
        seen.total[here] = pred.sum((1, 2, 3)) + ref.sum((1, 2, 3))
        after_batch()
    return Seen(*(each.cpu().numpy() for each in seen))
