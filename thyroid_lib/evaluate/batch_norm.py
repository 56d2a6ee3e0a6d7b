"""Batch-norm statistics taken anew on the unlabelled frames of a test sweep: transductive.

It looks at the test sweep's frames, not at their masks, and needs a whole sweep before it segments
its first frame. It stands in tables as a row of its own and never selects anything. Source: Li,
Wang, Shi, Hou & Liu, Pattern Recognition 80 (2018) 109 (AdaBN).
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from thyroid_lib.models import to_input


@torch.inference_mode()
def renew_batch_norm(
    network: nn.Module, images: np.ndarray, rows: np.ndarray, *, device="cpu", batch_size=16
) -> nn.Module:
    """Return a copy of a network whose batch-norm statistics are those of rows of stored images.

    The average over batches that each span the rows evenly. Fewer than two frames, or a network
    without batch norm, change nothing.
    """
    fresh = copy.deepcopy(network).to(device).eval()
    layers = [x for x in fresh.modules() if isinstance(x, _BatchNorm) and x.track_running_stats]
    if len(rows) < 2 or not layers:
        return fresh
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average of all batches
        layer.train()
    count = -(-len(rows) // batch_size)
    for part in (rows[first::count] for first in range(count)):
        fresh(to_input(torch.from_numpy(np.asarray(images[part])).to(device)))
    return fresh.eval()
