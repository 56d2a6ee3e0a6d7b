"""Training steps: this project against the bare step, the reported loop, MONAI and smp.

    python benchmarks/bench.py training

One architecture (U-Net) with the same weights, frames, size and batch in all; see loops.py and
peers.py. Each turn begins with steps that are not timed. Memory is measured in processes apart.
"""

import importlib.util
from pathlib import Path

import torch

import loops
import ours
import peers
import timing
from data import store_of
from timing import median, ratios, spread

LOOPS = {  # name: (function, its name in the table)
    "bare": (loops.bare, "the bare step on ready tensors"),
    "project": (loops.project, "**this project**"),
    "project fp32": (loops.project_fp32, "this project, in fp32"),
    "reported": (loops.reported, "the reported loop"),
    "monai documented": (peers.monai_documented, "MONAI, as documented"),
    "monai equal": (peers.monai_equal, "MONAI, equal layout and precision"),
    "smp documented": (peers.smp_documented, "smp, as documented"),
    "smp equal": (peers.smp_equal, "smp, equal layout and precision"),
}
FP32 = ("project fp32", "reported", "monai documented", "smp documented")  # on every machine
NEEDS = {"monai": "monai", "smp": "segmentation_models_pytorch"}
EQUAL = "at equal layout (3 % are the noise that the bare step is allowed, too)"


def usable() -> list[str]:
    """The loops whose library is installed."""
    absent = [name for name, package in NEEDS.items() if not importlib.util.find_spec(package)]
    return [name for name in LOOPS if name.split()[0] not in absent]


def make_setting(frames: Path, device, precision: str, how: dict) -> loops.Setting:
    sizes = {key: how[key] for key in ("width", "size", "batch")} | {"epoch_steps": how["warm"]}
    return loops.Setting(frames, store_of(frames, how["size"]), device, precision, **sizes)


def turn(run: loops.Run, how: dict, device: torch.device) -> float:
    """Frames a second of one turn: steps to warm up, then those that are timed."""

    def timed() -> None:
        frames.append(run(how["steps"]))
        timing.wait(device)

    frames: list[int] = []
    run(how["warm"])
    timing.wait(device)
    rate = 1 / timing.seconds_of(timed)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # each turn has the whole memory
    return rate * frames[0]


def measure(args) -> dict:
    """Time all loops in turns, then measure the memory of each by itself."""
    torch.backends.cudnn.benchmark = True  # as in a run of the project, and for all loops
    device, on_gpu = args.device, args.device.type == "cuda"
    how = {"width": 64 if on_gpu else 16, "size": 256, "batch": 16}
    how |= {"steps": 120 if on_gpu else 8, "warm": 40 if on_gpu else 2, "repeats": 5}
    if args.quick:
        how |= {"width": 4, "size": 64, "batch": 4, "steps": 2, "warm": 1, "repeats": 2}
    precision = ours.pick_precision(device)
    setting = make_setting(args.frames, device, precision, how)
    names = [name for name in usable() if name in (args.loops or LOOPS)]
    if "monai equal" in names:
        peers.monai_cache(setting)
    runs = {name: LOOPS[name][0](setting) for name in names}
    turns = {name: (lambda run=run: turn(run, how, device)) for name, run in runs.items()}
    found = {
        "how": how, "precision": precision, "rates": timing.take_turns(turns, how["repeats"]),
        "peaks": timing.peaks(device, args.quick),
        "operations": timing.step_operations(setting.make_model().cpu(), how["size"]),
        "frames": len(setting.store), "cache_seconds": peers.filled.get("seconds"),
    }  # fmt: skip
    del runs, turns
    peers.filled.clear()
    found["memory"] = {name: memory_of(name, args, precision, how) for name in names}
    return found


def memory_of(name: str, args, precision: str, how: dict) -> float | None:
    """Peak MiB of a process that runs one loop: anonymous memory, or that allocated on the GPU."""
    answer = timing.run_child("training", "train_briefly", loop=name, frames=str(args.frames),
                       device=args.device.type, precision=precision, how=how)  # fmt: skip
    return answer["cuda_mib"] or answer["peak_mib"]


def train_briefly(loop: str, frames: str, device: str, precision: str, how: dict) -> dict:
    """Train a few steps by one loop, while another process watches the memory."""
    LOOPS[loop][0](make_setting(Path(frames), torch.device(device), precision, how))(4)
    mib = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return {"cuda_mib": mib}


def show(found: dict) -> str:
    """The table, in Markdown."""
    how, rows = found["how"], []
    for name, rates in found["rates"].items():
        precision = "fp32" if name in FP32 else found["precision"]
        share = median(rates) * found["operations"] / found["peaks"][precision]
        faster = "" if name == "project" else spread(ratios(found["rates"]["project"], rates))
        memory = found["memory"].get(name)
        memory = "–" if memory is None else round(memory)
        rows.append((LOOPS[name][1], precision, spread(rates), faster, f"{share:.0%}", memory))
    columns = ("loop", "precision", "frames/s", "ratio", "share of the limit", "memory, MiB")
    lines = [
        f"U-Net of width {how['width']}, {how['size']}×{how['size']} px, batch {how['batch']}, "
        f"{found['frames']} frames; {how['steps']} steps a turn, {how['repeats']} turns each. "
        f"This project trains in {found['precision']} here. Ratio: this project's rate over "
        "theirs, within a repeat. Share: of the rate of a large matrix product in the same "
        "precision.",
        "",
        timing.table(columns, rows, texts=2),
    ]
    if seconds := found["cache_seconds"]:
        lines += ["", f"Filling MONAI's cache, once, took {timing.figure(seconds)} s more."]
    if absent := [name for name in LOOPS if name not in found["rates"]]:
        lines += ["", f"Not installed or not asked for: {', '.join(absent)}."]
    return "\n".join(lines)


def goals(found: dict, on_gpu: bool):
    """(sentence, sign, limit, value); the value is None where it was not measured."""
    rates = found["rates"]

    def faster(name: str) -> float | None:
        return median(ratios(rates["project"], rates[name])) if name in rates else None

    yield "rate over the bare step's", ">=", 0.97, faster("bare")
    yield "rate over the reported loop's", ">=", 3.0 if on_gpu else 1.8, faster("reported")
    sign, limit = (">=", 1.5) if on_gpu else (">", 1.0)
    for peer, name in (("monai", "MONAI"), ("smp", "smp")):
        yield f"rate over {name}'s, as documented", sign, limit, faster(f"{peer} documented")
    for peer, name in (("monai", "MONAI"), ("smp", "smp")):
        yield f"rate over {name}'s, {EQUAL}", ">=", 0.97, faster(f"{peer} equal")
