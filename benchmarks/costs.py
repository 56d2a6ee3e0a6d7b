"""What each network costs: parameters, multiply-adds, time of a frame on one CPU thread, memory.

    python benchmarks/bench.py costs

Networks of timm and smp are measured where the extra `encoders` is installed. All weights are
random. Memory is that of a process that predicts one frame, or trains three steps of 8 frames.
"""

import tempfile
from pathlib import Path

import torch

from deploy import runners
from thyroid_lib.models import build_model, count_parameters, encoder_names, multiply_adds
from thyroid_lib.train.recipe import fit
from timing import run_child, spread, table, take_turns

NETWORKS = (
    "unet", "segnet", "resunet", "resunet:tf_efficientnet_lite0", "resunet:resnet34",
    "resunet:convnext_tiny", "smp:unetplusplus:resnet34",
)  # fmt: skip


def work(name: str, width: int, size: int, training: bool) -> dict:
    """Predict one frame, or train three steps: for its memory."""
    torch.set_num_threads(1)
    net = build_model(name, width=width).to(memory_format=torch.channels_last)
    frames = torch.zeros((8, size, size), dtype=torch.uint8)
    if training:
        for _ in fit(net, frames, frames, epochs=3, batch_size=8):
            pass
    else:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 1, size, size))
    return {}


def measure(args) -> dict:
    """Count and time each network at both sizes; its memory in processes of their own."""
    import onnxruntime

    from thyroid_lib.deploy import export

    torch.set_num_threads(1)
    points, rows = ((4, 32, 2),) if args.quick else ((16, 128, 15), (64, 256, 5)), []
    names = [name for name in NETWORKS if ":" not in name or not encoder_names.problem(name)]
    for width, size, repeats in points:
        for name in names:
            net, how = build_model(name, width=width), {"name": name, "width": width, "size": size}
            with tempfile.TemporaryDirectory() as folder, export._quiet():
                turns = runners(name, width, size, Path(folder))
                take_turns(turns, 1)  # warm-up
                seconds = take_turns(turns, repeats)
            counts = {"parameters": count_parameters(net), "operations": multiply_adds(net, size)}
            peaks = [run_child("costs", "work", **how, training=x)["peak_mib"] for x in (0, 1)]
            rows.append(how | counts | {"seconds": seconds, "peaks": peaks})
    return {"rows": rows, "onnxruntime": onnxruntime.__version__}


def show(found: dict) -> str:
    """The table, in Markdown."""
    rows = [
        (
            row["name"], row["width"], row["size"], f"{row['parameters'] / 1e6:.2f}",
            f"{row['operations'] / 1e9:.2f}",
            *(spread([1e3 * each for each in row["seconds"][by]]) for by in row["seconds"]),
            *("–" if peak is None else peak for peak in row["peaks"]),
        )
        for row in found["rows"]
    ]  # fmt: skip
    columns = (
        "network", "width", "size, px", "parameters, M", "multiply-adds, G", "torch, ms",
        "ONNX fp32, ms", "ONNX int8, ms", "memory, MiB", "training, MiB",
    )  # fmt: skip
    return (
        "One frame on one CPU thread, in processor time. Memory: of a process that predicts a "
        "frame with torch; of one that trains on 8 frames a step. ONNX Runtime "
        f"{found['onnxruntime']}.\n\n" + table(columns, rows)
    )


def goals(found: dict, on_gpu: bool):
    """The pretrained encoder costs no more than the U-Net of the same width."""
    parts = {(row["name"], row["width"]): row["operations"] for row in found["rows"]}
    for (name, width), count in parts.items():
        if name == "resunet:tf_efficientnet_lite0":
            share = count / parts["unet", width]
            yield f"multiply-adds of {name} over unet's, width {width}", "<=", 1, share
