"""This project on a GPU in 8 minutes: correctness, rate and memory, full-size and small networks.

    make gpu                   # writes results/gpu-<machine>.json and README.md after each result
    make gpu SIZE=tiny         # all parts at tiny sizes, on a CPU too, into a temporary folder

The parts run in this order, each in a process of its own until its share of the time is used up.
What a part has reported is kept if it fails, is cut, or the machine is taken away; the next part
begins. Frames are phantoms; there are fewer than an epoch has, so they are repeated.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

import bits
import data
import loops
import ours
import timing
import training
from timing import figure, median, ratios, spread, table

NETWORKS = "unet", "segnet", "resunet"
VARIANTS = {  # of this project's step: its settings; those that the recipe lacks are left out
    "plain": {}, "CUDA graph": {"cuda_graph": True}, "compile": {"compile": True},
    "compile and CUDA graph": {"compile": True, "cuda_graph": True},
}  # fmt: skip
FULL = {
    "width": 64, "size": 256, "batch": 16, "warm": 20, "steps": 60, "repeats": 3, "epochs": 25,
    "frames": 2509, "small_width": 16, "small_size": 128, "learned": 20,
    "drawn": {"sweeps": 16, "frames": 40},
}  # fmt: skip
TINY = {
    "width": 4, "size": 64, "batch": 4, "warm": 1, "steps": 2, "repeats": 2, "epochs": 2,
    "frames": 30, "small_width": 4, "small_size": 32, "learned": 6,
    "drawn": {"sweeps": 6, "frames": 8},
}  # fmt: skip
# Largest differences from fp32 on the CPU. Seen on a CPU, where only the memory layout or the order
# of the frames changed: 7e-5, 4e-3, 0.014, 0.01. Rounding decides between equal pixels in a
# max-pool, and SegNet's unpooling then moves whole gradients: its first one is not judged.
TOLERANCES = {  # losses and gradient relative
    "fp32": {"first loss": 2e-4, "first gradient": 0.02, "any loss": 0.03, "Dice": 0.05},
    "bf16": {"first loss": 0.01, "first gradient": 0.1, "any loss": 0.05, "Dice": 0.05},
    "fp16": {"first loss": 2e-3, "first gradient": 0.05, "any loss": 0.05, "Dice": 0.05},
}


def measure(args) -> Iterator[dict]:
    """Run the parts; yield all results so far whenever there is a new one."""
    if args.device.type == "cpu" and not args.quick:
        raise SystemExit("gpu: a CPU would train for days: run it on a GPU, or give SIZE=tiny")
    began, how = time.time(), (TINY if args.quick else FULL) | {"device": args.device.type}
    how |= {"precision": ours.pick_precision(args.device), "cache": str(args.cache)}
    found = {"how": {k: v for k, v in how.items() if k != "cache"}, "parts": {}}
    for name, (_, share) in PARTS.items():
        how["until"] = began + share * args.seconds
        command = [sys.executable, __file__, name, json.dumps(how)]
        for found["parts"][name] in follow(command, how["until"]):
            yield found


def follow(command: list[str], until: float) -> Iterator[dict]:
    """Yield what a process reports, dict by dict; `stopped` says why it did not come to its end.

    It and all processes that it started are killed at `until`, seconds since the epoch.
    """
    found, began, cut = {}, time.time(), threading.Event()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        pipe = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        process = subprocess.Popen(command, start_new_session=True, **pipe)

        def kill() -> None:
            cut.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(0.0, until - began), kill)
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    found = json.loads(line) | {"seconds": time.time() - began}
                    yield found
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                kill()
                process.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no message"])[-1]
    seconds = time.time() - began
    if cut.is_set():
        yield found | {"stopped": f"cut after {seconds:.0f} s, at the end of its share of the time"}
    elif code:
        yield found | {"stopped": f"ended with {code} after {seconds:.0f} s: {last}"}


def main(part: str, given: str) -> None:
    """Run one part; print what it has found after each result, as one line of JSON."""
    how, found = json.loads(given), {}
    try:
        for found in PARTS[part][0](how):
            print(json.dumps(found), flush=True)
    except Exception as error:
        print(json.dumps(found | {"stopped": sentence(error)}), flush=True)


def sentence(error: Exception) -> str:
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"


def variants() -> dict[str, dict]:
    """Those of `VARIANTS` that the recipe has the settings for."""
    return {name: each for name, each in VARIANTS.items() if each.keys() <= ours.SETTINGS.keys()}


def make_setting(how: dict, size: str = "", model: str = "unet") -> loops.Setting:
    """Frames, device and sizes; `size` is "" or "small_"."""
    frames, device = data.draw_frames(Path(how["cache"]), **how["drawn"]), how["device"]
    return loops.Setting(
        frames, data.store_of(frames, how[f"{size}size"]), torch.device(device), how["precision"],
        how[f"{size}width"], how[f"{size}size"], how["batch"], model, epoch_steps=how["warm"],
    )  # fmt: skip


def correctness(how: dict) -> Iterator[dict]:
    """Train each network for some steps, in several ways, and compare with fp32 on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, rows, known = torch.device(how["device"]), [], {}
    ways = [({"precision": p}, p) for p in TOLERANCES]
    ways += [({"precision": "fp32"} | each, f"fp32, {v}") for v, each in variants().items() if each]
    for settings, way in ways:
        for name in NETWORKS if "compile" not in settings else NETWORKS[:1]:
            setting, row = make_setting(how, "small_", name), {"model": name, "way": way}
            try:
                if name not in known:
                    known[name] = learn(setting, torch.device("cpu"), how, precision="fp32")
                row["apart"] = apart(learn(setting, device, how, **settings), known[name])
            except Exception as error:
                row["error"] = sentence(error)
            rows.append(row)
            yield {"rows": rows}


def learn(setting: loops.Setting, device: torch.device, how: dict, **settings) -> dict:
    """Train on one batch, so that each epoch is a step; losses, first gradient, weights, Dice."""
    net = ours.make_model(setting.model, setting.width, device)
    batch = np.linspace(0, len(setting.store) - 1, setting.batch).astype(int)
    start, losses, gradient = kernels(net.parameters()), [], None
    settings |= {"epochs": how["learned"], "lr": 1e-3, "batch_size": setting.batch}
    for state in ours.fit(net, setting.store, batch, device=device, **settings):
        losses.append(state["loss"])
        moments = state["optimiser"]["state"]
        if gradient is None and moments:  # Adam's mean of gradients, after its first step
            gradient = kernels(each["exp_avg"] for each in moments.values())
    weights, dice = kernels(net.parameters()), ours.mean_dice(net.cpu(), setting.store, batch)
    return {"losses": losses, "gradient": gradient, "weights": weights, "start": start,
            "dice": dice}  # fmt: skip


def kernels(tensors) -> torch.Tensor:
    """All convolution kernels as one vector; gradients of biases before batch norm are noise."""
    parts = [each.detach().cpu().double().flatten() for each in tensors if each.ndim > 1]
    return torch.cat(parts)


def apart(run: dict, known: dict) -> dict:
    """How far a run is from the one that is known to be right; weights over the way they moved."""
    losses = [abs(a - b) / b for a, b in zip(run["losses"], known["losses"], strict=True)]
    gradient = (run["gradient"] - known["gradient"]).norm() / known["gradient"].norm()
    moved = (known["weights"] - known["start"]).norm()
    return {
        "first loss": losses[0], "first gradient": float(gradient), "any loss": max(losses),
        "Dice": run["dice"] - known["dice"], "dice": run["dice"],
        "weights": float((run["weights"] - known["weights"]).norm() / moved),
    }  # fmt: skip


def resume(how: dict) -> Iterator[dict]:
    """Train a run twice undisturbed, and once killed within an epoch and started again."""
    with tempfile.TemporaryDirectory(prefix="thyroid-gpu-") as folder:
        give = {"how": how, "folder": folder}
        timing.run_child("gpu", "train_runs", names=["one", "two"], **give)
        mark = Path(folder, "mark")
        try:
            timing.run_child("gpu", "train_runs", names=["killed"], die=str(mark), **give)
        except RuntimeError:
            if not mark.exists():
                raise
        again = timing.run_child("gpu", "train_runs", names=["killed"], die=str(mark), **give)
        read = [ours.read_weights(Path(folder, name, "model.pt"))["weights"]
                for name in ("one", "two", "killed")]  # fmt: skip
    vectors = [torch.cat([part.double().flatten() for part in each.values()]) for each in read]
    size = vectors[0].norm()
    two, killed = (float((vectors[0] - each).norm() / size) for each in vectors[1:])
    yield {"kept": 4 - again["trained"], "apart": killed, "apart undisturbed": two}


def train_runs(names: list[str], how: dict, folder: str, die: str = "") -> dict:
    """Train a small U-Net into folder/<name>; with `die`, kill itself in the third epoch, once."""
    setting = make_setting(how, "small_")
    if die:
        share = len(setting.store) * 0.7 / setting.batch  # at least so many steps has an epoch
        bits.die_once(Path(die), int(2.5 * share))
    settings = {"model": "unet", "width": setting.width, "epochs": 4, "batch_size": setting.batch}
    settings |= {"lr": 1e-3, "device": how["device"], "protocol": "random", "val_share": 0.1}
    runs = [ours.train_run(setting.store, out=Path(folder, name), **settings) for name in names]
    return {"trained": runs[-1].meta["trained_epochs"]}


def in_turns(makers: dict[str, Callable], how: dict, device: torch.device) -> Iterator[dict]:
    """Frames a second, seconds to set up and peak memory of loops; yield after each turn."""
    torch.backends.cudnn.benchmark = True  # as in a run of the project, and for all loops
    found, runs = {"rates": {}, "setup": {}, "memory": {}, "errors": {}}, {}
    for name in timing.order_of_turns(list(makers), how["repeats"]):
        if name in found["errors"]:
            continue
        try:
            if name not in runs:
                runs[name], *seen = set_up(makers[name], how["warm"], device)
                found["setup"][name], found["memory"][name] = seen
            rate = training.turn(runs[name], how, device)
            found["rates"].setdefault(name, []).append(rate)
        except Exception as error:
            runs.pop(name, None)
            found["errors"][name] = sentence(error)
        yield found


def set_up(make: Callable[[], loops.Run], steps: int, device) -> tuple[loops.Run, float, float]:
    """Make a loop and train some steps, in which kernels are chosen; then MiB of some more."""

    def start() -> None:
        made.append(make())
        made[0](steps)
        timing.wait(device)

    made, cuda = [], torch.cuda if device.type == "cuda" else None
    before = cuda.memory_allocated() if cuda else 0
    seconds = timing.seconds_of(start)
    if cuda:
        cuda.reset_peak_memory_stats()
        made[0](steps)
    return made[0], seconds, (cuda.max_memory_allocated() - before) / 2**20 if cuda else None


def rate(how: dict) -> Iterator[dict]:
    """This project, the reported loop, MONAI's and smp's; then the variants of this project's."""
    setting = make_setting(how)
    found = {
        "precision": setting.precision, "frames": len(setting.store),
        "peaks": timing.peaks(setting.device, how["width"] == TINY["width"]),
        "operations": timing.step_operations(setting.make_model().cpu(), how["size"]),
        "cache_seconds": None,
    }  # fmt: skip
    makers = {name: partial(training.LOOPS[name][0], setting) for name in training.usable()}
    for part in in_turns(makers, how, setting.device):
        yield (found := found | part | {"cache_seconds": loops_cache_seconds()})
    makers = {name: partial(loops.project, setting, **each) for name, each in variants().items()}
    for part in in_turns(makers if len(makers) > 1 else {}, how, setting.device):
        yield found | {"variants": part}


def loops_cache_seconds() -> float | None:
    return training.peers.filled.get("seconds")


def small(how: dict) -> Iterator[dict]:
    """Small networks, where a GPU waits for the processor to launch: the variants of the step."""
    device = torch.device(how["device"])
    makers = {
        f"{model}, {name}": partial(loops.project, make_setting(how, "small_", model), **each)
        for name, each in variants().items()
        for model in NETWORKS
    }
    return in_turns(makers, how, device)


def fullsize(how: dict) -> Iterator[dict]:
    """The epochs of the reported study, all three networks; fewer if the time does not do."""
    torch.backends.cudnn.benchmark = True
    setting, trained, took = make_setting(how), {}, {}
    device, rows = setting.device, np.resize(np.arange(len(setting.store)), how["frames"])
    settings = {"device": device, "precision": setting.precision, "batch_size": how["batch"]}
    found = {"frames": len(setting.store), "rows": [], "errors": {}}

    def epoch(name: str) -> None:
        next(trained[name])
        timing.wait(device)

    for name in NETWORKS:
        try:
            net = ours.make_model(name, how["width"], device)
            trained[name] = ours.train(net, setting.store, rows, **settings)
            epoch(name)  # sets up the GPU: not counted
            took[name] = timing.seconds_of(partial(epoch, name))
        except Exception as error:
            trained.pop(name, None)
            found["errors"][name] = sentence(error)
    left = 0.9 * (how["until"] - time.time())
    epochs = max(1, min(how["epochs"], int(left / sum(took.values())))) if took else 0
    for name in took:
        row = {"model": name, "epochs": 0, "seconds": 0.0}
        found["rows"].append(row)
        for row["epochs"] in range(1, epochs + 1):
            row["seconds"] += timing.seconds_of(partial(epoch, name))
            yield found
    yield found


PARTS = {  # name: what yields its results, and the share of the time at whose end it is cut
    "correctness": (correctness, 0.16),
    "resume": (resume, 0.22),
    "rate": (rate, 0.5),
    "fullsize": (fullsize, 0.92),
    "small": (small, 1.0),
}


def show(found: dict) -> str:
    """All parts, in Markdown."""
    lines = []
    for name, part in found["parts"].items():
        text = SHOWN[name][1](part, found["how"]) if part.keys() - {"stopped"} else ""
        lines += [f"#### {SHOWN[name][0]}", "", text, ""]
        lines += [f"{key} failed: {error}.\n" for key, error in part.get("errors", {}).items()]
        lines += [f"Not to its end: {part['stopped']}.", ""] if "stopped" in part else []
    return "\n".join(lines).strip()


def show_correctness(part: dict, how: dict) -> str:
    columns = ("first loss", "first gradient", "any loss", "Dice", "weights")
    rows = []
    for row in part["rows"]:
        cells = [row.get("error"), *[""] * 5]
        if far := row.get("apart"):
            cells = [*(f"{far[name]:.1e}" for name in columns), figure(far["dice"])]
        rows.append((row["model"], row["way"], *cells))
    return (
        f"Width {how['small_width']}, {how['small_size']} px, {how['learned']} steps on one batch "
        f"of {how['batch']} frames, lr 0.001, TF32 off. Differences from the same training in fp32 "
        "on the CPU: of losses and the first gradient relative, of weights over the way that they "
        "moved (Adam turns rounding into whole steps, so they are not judged).\n\n"
        + table(("network", "way", *columns, "its Dice"), rows, texts=2)
    )


def show_resume(part: dict, how: dict) -> str:
    far = "the same to the bit" if part["apart"] == 0 else f"{part['apart']:.1e} of their norm away"
    two = part["apart undisturbed"]
    two = "are equal to the bit" if two == 0 else f"are {two:.1e} apart"
    return (
        "A small U-Net of 4 epochs, killed by SIGKILL in its third and started again, went on "
        f"after epoch {part['kept']}. Its weights are {far}; two trainings left alone {two}."
    )


def complete(part: dict) -> dict[str, list[float]]:
    """The rates of all loops that had a turn, in as many repeats as all of these have."""
    done = min(map(len, part["rates"].values()), default=0)
    return {name: each[:done] for name, each in part["rates"].items()}


def as_training(part: dict, how: dict) -> dict:
    """What the section `training` would have found."""
    rates = complete(part)
    return part | {"rates": rates, "how": how | {"repeats": max(map(len, rates.values()))}}


def show_rate(part: dict, how: dict) -> str:
    if "project" not in part["rates"]:
        return ""
    text = training.show(as_training(part, how))
    if rates := complete(part.get("variants", {"rates": {}})):
        plain, setup, memory = rates["plain"], *(part["variants"][k] for k in ("setup", "memory"))
        rows = [
            (name, spread(each), spread(ratios(each, plain)), figure(setup[name]),
             "–" if memory[name] is None else round(memory[name]))
            for name, each in rates.items()
        ]  # fmt: skip
        columns = ("step of this project", "frames/s", "ratio", "set-up, s", "memory, MiB")
        failed = [f"\n{key} failed: {e}." for key, e in part["variants"]["errors"].items()]
        text += "\n\n" + "\n".join([table(columns, rows), *failed])
    return text


def show_fullsize(part: dict, how: dict) -> str:
    rows = [
        (row["model"], row["epochs"], figure(row["seconds"]),
         figure(row["epochs"] * how["frames"] / row["seconds"]))
        for row in part["rows"] if row["epochs"]
    ]  # fmt: skip
    columns = ("network", "epochs", "their seconds", "frames/s")
    fewer = any(row["epochs"] < how["epochs"] for row in part["rows"])
    return (
        f"Width {how['width']}, {how['size']} px, batch {how['batch']}, {how['precision']}; an "
        f"epoch is {how['frames']} frames, {part['frames']} different ones repeated. The first two "
        "epochs of each, which set up the GPU, are not counted, nor are validation and tables."
        + f" There was no time for {how['epochs']} epochs of each." * fewer
        + f"\n\n{table(columns, rows)}"
    )


def show_small(part: dict, how: dict) -> str:
    rows = []
    for name, rates in complete(part).items():
        steps = [each / how["batch"] for each in rates]
        plain = part["rates"].get(f"{name.split(', ')[0]}, plain", [])[: len(rates)]
        ratio = spread(ratios(rates, plain)) if plain else ""
        rows.append((*name.split(", "), spread(steps), ratio, figure(part["setup"][name])))
    columns = ("network", "step", "steps/s", "ratio", "set-up, s")
    about = f"Width {how['small_width']}, {how['small_size']} px, batch {how['batch']}"
    return f"{about}, {how['precision']}.\n\n{table(columns, rows, texts=2)}"


SHOWN = {
    "correctness": ("Right on the GPU", show_correctness),
    "resume": ("Killed and started again", show_resume),
    "rate": ("Rate and memory", show_rate),
    "fullsize": ("The three full-size networks", show_fullsize),
    "small": ("Small networks, where launches are the limit", show_small),
}


def seconds_of_study(found: dict) -> float | None:
    """Seconds of all epochs of the three networks; extrapolated where fewer were trained."""
    rows = [row for row in found["parts"].get("fullsize", {}).get("rows", []) if row["epochs"]]
    each = [row["seconds"] / row["epochs"] * found["how"]["epochs"] for row in rows]
    return sum(each) if len(each) == len(NETWORKS) else None


def goals(found: dict, on_gpu: bool) -> Iterator[tuple]:
    """(sentence, sign, limit, value); the value is None where it was not measured."""
    rows = found["parts"].get("correctness", {}).get("rows", [])
    for way, limits in TOLERANCES.items():
        for measure, limit in limits.items():
            names = [name for name in NETWORKS if (name, measure) != ("segnet", "first gradient")]
            seen = [abs(row["apart"][measure]) for row in rows if row["way"].split(",")[0] == way
                    and row["model"] in names and "apart" in row]  # fmt: skip
            what = f"difference of {measure} from fp32 on the CPU, of {', '.join(names)}"
            yield f"{what}, in {way}", "<=", limit, max(seen, default=None)
    resumed, rate = (found["parts"].get(name, {}) for name in ("resume", "rate"))
    yield "epochs that a killed training need not repeat", ">=", 1, resumed.get("kept")
    if not on_gpu:
        yield "difference of its weights", "<=", 0, resumed.get("apart")
    if "project" in rate.get("rates", {}):
        yield from training.goals(as_training(rate, found["how"]), on_gpu)
    what = f"seconds of the three full-size networks, {found['how']['epochs']} epochs each"
    yield what, "<=", 150, seconds_of_study(found)


def summary(machine: dict, sections: dict) -> str:
    """For the project's README: what is known of this GPU."""
    found = sections["gpu"]["result"]
    rates = complete(found["parts"].get("rate", {"rates": {}}))
    others = {"reported": "the reported loop", "monai documented": "MONAI's example",
              "smp documented": "smp's"}  # fmt: skip
    faster = [
        f"{figure(median(ratios(rates['project'], rates[name])))} times as fast as {title}"
        for name, title in others.items() if {name, "project"} <= rates.keys()
    ]  # fmt: skip
    text = f"On {machine.get('gpu', 'no GPU')} U-Net at full width trains {', '.join(faster)}."
    if seconds := seconds_of_study(found):
        text += f" {found['how']['epochs']} epochs of {found['how']['frames']} frames of all three "
        text += f"full-size networks take {figure(seconds)} s."
    return text if faster else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
