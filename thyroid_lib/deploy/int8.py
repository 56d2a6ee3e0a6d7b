"""Static quantisation of an exported network to eight-bit integers, by frames of the training."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnxruntime import quantization

from thyroid_lib.data.store import Store

CALIBRATION = 64  # training frames, alike many of each group, that set the ranges of int8
# of the name of a weight, which is torch's: down1.residual.0.weight, members.0.encoder.conv1 …
STAGE = re.compile(r"(members\.\d+\.|)(net\.)?(encoder\.)?[^.]+")


def to_int8(network: Path, images: np.ndarray, out: Path) -> onnx.ModelProto:
    """Quantise 3 x 3 convolutions behind the first stage; images, uint8 (N,S,S), set the ranges.

    Depthwise ones stay: they get no faster. Weights use seven bits of eight, as without VNNI the
    sums of two products would overflow.
    """
    inputs = ({"image": image[None, None].astype(np.float32) / 255} for image in images)
    frames = SimpleNamespace(get_next=lambda: next(inputs, None))
    graph = onnx.load(network).graph
    kernel = {each.name: tuple(each.dims)[1:] for each in graph.initializer}
    convs = [(node.name, node.input[1]) for node in graph.node if node.op_type == "Conv"]
    stages = {name: STAGE.match(of) for name, of in convs}
    first = {stage[1]: stage[0] for stage in reversed(stages.values())}.values()  # of each member
    threes = [name for name, of in convs if kernel[of][1:] == (3, 3) and kernel[of][0] > 1]
    chosen = [name for name in threes if stages[name][0] not in first]
    quantization.quantize_static(
        network, out, frames, per_channel=True, reduce_range=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        nodes_to_quantize=chosen,
    )  # fmt: skip
    return onnx.load(out)


def calibration_rows(store: Store, train: np.ndarray) -> np.ndarray:
    """Choose about `CALIBRATION` training frames, bool (N,): alike many of each group, spread."""
    parts = [part.index for _, part in store.index[train].groupby("group")]
    each = max(1, CALIBRATION // len(parts))
    return np.sort(np.concatenate([spread(part, each) for part in parts]))


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return up to so many of some rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
