"""What a training is made of: a network's stages as a table, frames of a batch as a figure."""

import copy
import inspect
import textwrap

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import nn

from thyroid_lib.data.store import Store
from thyroid_lib.models import Network, to_input
from thyroid_lib.plots.common import FIGURE_WIDTH, REFERENCE, image_axes, outline
from thyroid_lib.train import augment as augmentation


def source(*functions) -> Markdown:
    """Return the source text of these functions, to be shown in a notebook."""
    texts = [textwrap.dedent(inspect.getsource(function)) for function in functions]
    return Markdown("```python\n{}```".format("\n\n".join(texts)))


def stages(net: Network, size: int) -> pd.DataFrame:
    """Return a network's stages in the order of its forward pass, one row for each call.

    Columns: stage, output (channels×height×width for images of this size) and parameters, those of
    earlier rows not counted again.
    """
    rows, counted, net = [], {}, copy.deepcopy(net).to("meta").eval()
    image = torch.empty(1, net.in_channels, size, size, device="meta")

    def add_row(stage: str, module: nn.Module, output) -> None:
        # without pooling indices; of an encoder's list the deepest
        features = {tuple: output[:1], list: output[-1:]}.get(type(output), [output])[0]
        shape = "×".join(str(side) for side in features.shape[1:])
        new = {id(x): x.numel() for x in module.parameters() if id(x) not in counted}
        counted.update(new)
        rows.append({"stage": stage, "output": shape, "parameters": sum(new.values())})

    for stage, module in net.named_modules():
        in_list = isinstance(net.get_submodule(stage.rpartition(".")[0]), nn.ModuleList)
        if stage and ("." not in stage or in_list):
            module.register_forward_hook(lambda m, _, output, name=stage: add_row(name, m, output))
    with torch.no_grad():
        net(image)
    return pd.DataFrame(rows).set_index("stage")


def batch(store: Store, rows: np.ndarray, augment: str | dict = "none", *, seed: int = 0) -> Figure:
    """Draw three frames of these rows as stored and, below, as the augmentation changes them.

    With "none" it is what "standard" would do.
    """
    setting = "standard" if augment == "none" else augment
    generator = torch.Generator().manual_seed(seed)
    picked = rows[torch.randperm(len(rows), generator=generator)[:3].numpy()]
    image = to_input(torch.from_numpy(store.images[picked]))  # (B,1,S,S)
    mask = torch.from_numpy(store.masks[picked]).unsqueeze(1).float()
    changed = augmentation.augment(image, mask, setting, generator=generator)
    fig, axes = image_axes(2 * len(picked), len(picked), FIGURE_WIDTH / len(picked) + 0.1)
    fig.set_size_inches(0.5 * fig.get_size_inches())  # small in bytes, as are pixels of 16 grays
    for line, pair in zip(axes, ((image, mask), changed), strict=True):
        for ax, frame, ref in zip(line, *(part[:, 0].numpy() for part in pair), strict=True):
            ax.imshow((15 * frame).round(), cmap="gray", vmin=0, vmax=15, interpolation="nearest")
            outline(ax, ref > 0, REFERENCE)
    return fig
