"""Training steps: this project against the bare step, the reported loop, MONAI and smp.

    python benchmarks/bench.py training

One architecture (U-Net), the same weights, frames, size and batch in all; see loops.py and
peers.py. The loops take turns in one process; each turn begins with steps that are not timed.
Memory is measured in a process of its own for each.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import limit
import loops
import ours
import peers
from thyroid_lib.data.store import build_store, load_cases, open_store
from timing import figure, median, ratios, run_child, spread, take_turns

LOOPS = {  # name: (what makes it, what the table calls it)
    "bare": (loops.bare, "the bare step on ready tensors"),
    "project": (loops.project, "**this project**"),
    "project fp32": (loops.project_fp32, "this project, in fp32"),
    "reported": (loops.reported, "the reported loop"),
    "monai documented": (peers.monai_documented, "MONAI, as documented"),
    "monai equal": (peers.monai_equal, "MONAI, equal layout and precision"),
    "smp documented": (peers.smp_documented, "smp, as documented"),
    "smp equal": (peers.smp_equal, "smp, equal layout and precision"),
}
FP32 = ("project fp32", "reported", "monai documented", "smp documented")  # whatever the machine
NEEDS = {"monai": "monai", "smp": "segmentation_models_pytorch"}


def usable() -> list[str]:
    """The loops whose library is installed."""
    import importlib.util

    absent = [name for name, package in NEEDS.items() if not importlib.util.find_spec(package)]
    return [name for name in LOOPS if name.split()[0] not in absent]


def open_built(frames: Path, size: int):
    """The project's store of these frames, built beside them once."""
    built = frames.with_name(f"{frames.name}-store-{size}")
    return build_store(load_cases("folder", frames), built, size=size)


def settle(asked) -> dict:
    """Sizes of the measurement; few and small for a smoke run."""
    on_gpu = asked.device.type == "cuda"
    how = {"width": 64 if on_gpu else 16, "size": 256, "batch": 16}
    how |= {"steps": 120 if on_gpu else 8, "warm": 40 if on_gpu else 2, "repeats": 5}
    if asked.quick:
        how |= {"width": 4, "size": 64, "batch": 4, "steps": 2, "warm": 1, "repeats": 2}
    return how


def make_setting(frames: Path, device, precision: str, how: dict) -> loops.Setting:
    sizes = {key: how[key] for key in ("width", "size", "batch")}
    built = frames.with_name(f"{frames.name}-store-{how['size']}")
    return loops.Setting(frames, open_store(built), device, precision, **sizes)


def turn(run, how: dict, device: torch.device) -> float:
    """Frames a second of one turn: steps to settle, then those that count."""
    run(how["warm"])
    limit.wait(device)
    began = time.perf_counter()
    frames = run(how["steps"])
    limit.wait(device)
    rate = frames / (time.perf_counter() - began)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # each turn has the whole memory
    return rate


def measure(asked) -> dict:
    """Time all loops in turns, then look at the memory of each by itself."""
    torch.backends.cudnn.benchmark = True  # as a run of the project has it; for all alike
    how, device = settle(asked), asked.device
    precision = ours.pick_precision(device)
    open_built(asked.frames, how["size"])
    setting = make_setting(asked.frames, device, precision, how)
    names = usable()
    if "monai equal" in names:
        peers.monai_cache(setting)
    runs = {name: LOOPS[name][0](setting) for name in names}
    turns = {name: (lambda run=run: turn(run, how, device)) for name, run in runs.items()}
    rates = take_turns(turns, how["repeats"])
    found = {
        "how": how, "precision": precision, "rates": rates,
        "peaks": limit.peaks(device, asked.quick),
        "operations": limit.step_operations(setting.make_model().cpu(), how["size"]),
        "frames": len(setting.store), "cache_seconds": peers.filled.get("seconds"),
    }  # fmt: skip
    del runs, turns
    peers.filled.clear()
    found["memory"] = {name: memory_of(name, asked, precision, how) for name in names}
    return found


def memory_of(name: str, asked, precision: str, how: dict) -> float | None:
    """Peak MiB of a fresh process that runs one loop: anonymous memory, or what CUDA gave out."""
    words = [name, "--frames", str(asked.frames), "--device", asked.device.type]
    answer = run_child("training", *words, "--precision", precision, "--how", json.dumps(how))
    return answer["cuda_mib"] or answer["peak_mib"]


def show(found: dict) -> str:
    """The tables, in Markdown."""
    how, ours_rates = found["how"], found["rates"]["project"]
    lines = [
        f"U-Net of width {how['width']}, {how['size']}×{how['size']} px, batch {how['batch']}, "
        f"{found['frames']} frames; {how['steps']} steps a turn, {how['repeats']} turns each. "
        f"This project trains in {found['precision']} here. Ratio: this project's rate over "
        "theirs, within a repeat. Share: of the rate of a large matrix product in the same "
        "precision.",
        "",
        "| loop | precision | frames/s | ratio | share of the limit | memory, MiB |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for name, rates in found["rates"].items():
        precision = precision_of(name, found)
        share = median(rates) * found["operations"] / found["peaks"][precision]
        faster = "" if name == "project" else spread(ratios(ours_rates, rates))
        memory = found["memory"].get(name)
        lines.append(
            f"| {LOOPS[name][1]} | {precision} | {spread(rates)} | {faster} | {share:.0%} | "
            f"{'–' if memory is None else round(memory)} |"
        )
    if found["cache_seconds"]:
        lines += ["", f"Filling MONAI's cache, once, took {figure(found['cache_seconds'])} s more."]
    if absent := [name for name in LOOPS if name not in found["rates"]]:
        lines += ["", f"Not installed, so not measured: {', '.join(absent)}."]
    return "\n".join(lines)


def precision_of(name: str, found: dict) -> str:
    return "fp32" if name in FP32 else found["precision"]


def reached(found: dict) -> dict[str, float]:
    """What the goals are held against."""
    rates = found["rates"]
    faster = {name: ratios(rates["project"], theirs) for name, theirs in rates.items()}
    values = {"share of the bare step": median(faster["bare"])}
    values["times the reported loop"] = median(faster["reported"])
    for peer in NEEDS:
        if f"{peer} equal" in faster:
            values[f"times {peer} as documented"] = median(faster[f"{peer} documented"])
            values[f"times {peer} at equal layout"] = median(faster[f"{peer} equal"])
    return values


def main() -> None:
    """Train a few steps by one loop, for whoever watches this process's memory."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--how", type=json.loads, required=True)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    setting = make_setting(asked.frames, device, asked.precision, asked.how)
    LOOPS[asked.loop][0](setting)(4)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    print(json.dumps({"cuda_mib": peak}))


if __name__ == "__main__":
    sys.exit(main())
