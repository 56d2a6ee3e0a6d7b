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
import peers
import timing
import training
from timing import figure, median, ratios, spread, table

NETWORKS = "unet", "segnet", "resunet"
VARIANTS = {  # of this project's step: its settings
    "plain": {}, "CUDA graph": {"cuda_graph": True}, "compiled": {"compile": True},
    "compiled, CUDA graph": {"compile": True, "cuda_graph": True},
}  # fmt: skip
FULL = {
    "width": 64, "size": 256, "batch": 16, "warm": 20, "steps": 60, "repeats": 3, "epochs": 25,
    "frames": 2509, "small_width": 16, "small_size": 128, "learned": 20, "networks": 3,
    "variants": 4, "checked": 4, "drawn": {"sweeps": 16, "frames": 40},
}  # fmt: skip
TINY = {
    "width": 4, "size": 64, "batch": 4, "warm": 1, "steps": 2, "repeats": 2, "epochs": 2,
    "frames": 30, "small_width": 4, "small_size": 32, "learned": 6, "networks": 1,
    "variants": 2, "checked": 3, "drawn": {"sweeps": 6, "frames": 8},
}  # fmt: skip
# Largest differences from fp32 on the CPU; of losses and the gradient relative. Seen on a CPU where
# only the memory layout or the order of the frames changed: 7e-5, 4e-3, 0.014, 0.01. Rounding
# decides between equal pixels in a max-pool, and SegNet's unpooling then moves whole gradients.
MEASURES = "first loss", "first gradient", "any loss", "Dice"
TOLERANCES = {
    "fp32": (2e-4, 0.02, 0.03, 0.05), "bf16": (0.01, 0.1, 0.05, 0.05),
    "fp16": (2e-3, 0.05, 0.05, 0.05),
}  # fmt: skip
NOT_JUDGED = "segnet", "first gradient"
DRAWN = partial(data.draw_frames, data.CACHE)


def measure(args) -> Iterator[dict]:
    """Run the parts; yield all results so far whenever there is a new one."""
    if args.device.type == "cpu" and not args.quick:
        raise SystemExit("gpu: a CPU would train for days: run it on a GPU, or give SIZE=tiny")
    began, how = time.time(), (TINY if args.quick else FULL) | {"device": args.device.type}
    found = {"how": how | {"precision": ours.pick_precision(args.device)}, "parts": {}}
    for name, (_, share) in PARTS.items():
        print(f"{name} …", flush=True)
        until = began + share * args.seconds
        command = [sys.executable, __file__, name, json.dumps(found["how"] | {"until": until})]
        for found["parts"][name] in follow(command, until):
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
                    found = json.loads(line)
                    yield found
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                kill()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no message"])[-1]
    seconds = f"after {time.time() - began:.0f} s"
    if cut.is_set():
        yield found | {"stopped": f"cut {seconds}, at the end of its share of the time"}
    elif code:
        yield found | {"stopped": f"ended with {code} {seconds}: {last}"}


def main(part: str, given: str) -> None:
    """Run one part; print what it has found after each result, as one line of JSON."""
    found = {}
    try:
        for found in PARTS[part][0](json.loads(given)):
            print(json.dumps(found), flush=True)
    except Exception as error:
        print(json.dumps(found | {"stopped": sentence(error)}), flush=True)


def sentence(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"


def make_setting(how: dict, size: str = "", model: str = "unet") -> loops.Setting:
    """Frames, device and sizes; `size` is "" or "small_"."""
    frames, side = DRAWN(**how["drawn"]), how[f"{size}size"]
    return loops.Setting(
        frames, data.store_of(frames, side), torch.device(how["device"]), how["precision"],
        how[f"{size}width"], side, how["batch"], model, epoch_steps=how["warm"],
    )  # fmt: skip


def correctness(how: dict) -> Iterator[dict]:
    """Train each network for some steps, in several ways, and compare with fp32 on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ways, n = {precision: {"precision": precision} for precision in TOLERANCES}, how["checked"]
    ways |= {f"fp32, {v}": {"precision": "fp32"} | VARIANTS[v] for v in [*VARIANTS][1:n]}
    rows, errors, known = [], {}, {}
    for way, settings in ways.items():
        for name in NETWORKS if "compile" not in settings else NETWORKS[:1]:
            try:
                setting = make_setting(how, "small_", name)
                if name not in known:
                    known[name] = learn(setting, torch.device("cpu"), how, precision="fp32")
                run = learn(setting, setting.device, how, **settings)
                rows.append({"model": name, "way": way} | apart(run, known[name]))
            except Exception as error:
                errors[f"{name}, {way}"] = sentence(error)
            yield {"rows": rows, "errors": errors}


def learn(setting: loops.Setting, device: torch.device, how: dict, **settings) -> dict:
    """Train on one batch, so that each epoch is a step; losses, first gradient, weights, Dice."""
    net = ours.make_model(setting.model, setting.width, device)
    batch = np.linspace(0, len(setting.store) - 1, setting.batch).astype(int)
    start, losses, gradient = kernels(net.parameters()), [], None
    settings |= {"epochs": how["learned"], "lr": 1e-3, "batch_size": setting.batch}
    for state in ours.fit(net, setting.store, batch, device=device, **settings):
        losses.append(state["loss"])
        moments = state["optimiser"]["state"].values()  # no step while fp16's scale is too large
        if gradient is None and any(each["step"] > 0 for each in moments):
            gradient = kernels(each["exp_avg"] for each in moments)
    moved, dice = kernels(net.parameters()), ours.mean_dice(net.cpu(), setting.store, batch)
    return {"losses": np.array(losses), "gradient": gradient, "moved": moved - start, "dice": dice}


def kernels(tensors) -> torch.Tensor:
    """All convolution kernels as one vector; gradients of biases before batch norm are noise."""
    parts = [each.detach().cpu().double().flatten() for each in tensors if each.ndim > 1]
    return torch.cat(parts)


def apart(run: dict, known: dict) -> dict:
    """How far a run is from the one that is known to be right; weights over the way they moved."""
    losses = abs(run["losses"] - known["losses"]) / known["losses"]
    gradient, moved = (
        float((run[name] - known[name]).norm() / known[name].norm())
        for name in ("gradient", "moved")
    )
    found = losses[0], gradient, losses.max(), abs(run["dice"] - known["dice"]), moved, run["dice"]
    names = [*MEASURES, "weights", "its Dice"]
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def resume(how: dict) -> Iterator[dict]:
    """Train a run twice undisturbed, and once killed within an epoch and started again."""
    with tempfile.TemporaryDirectory(prefix="thyroid-gpu-") as folder:
        train = partial(timing.run_child, "gpu", "train_runs", how=how, folder=folder)
        train(names=["one", "two"])
        mark = Path(folder, "mark")
        try:
            train(names=["killed"], die=str(mark))
        except RuntimeError:
            if not mark.exists():
                raise
        again = train(names=["killed"], die=str(mark))
        files = [Path(folder, name, "model.pt") for name in ("one", "two", "killed")]
        weights = [kernels(ours.read_weights(file)["weights"].values()) for file in files]
    two, killed = (float((weights[0] - each).norm() / weights[0].norm()) for each in weights[1:])
    yield {"kept": 4 - again["trained"], "apart": killed, "two apart": two}


def train_runs(names: list[str], how: dict, folder: str, die: str = "") -> dict:
    """Train a small U-Net into folder/<name>; with `die`, kill itself in the third epoch, once."""
    setting = make_setting(how, "small_")
    if die:
        steps = 0.7 * len(setting.store) / setting.batch  # of an epoch: 4/5 train, less 1/10
        bits.die_once(Path(die), int(2.5 * steps))
    settings = {"width": setting.width, "epochs": 4, "batch_size": setting.batch, "lr": 1e-3}
    settings |= {"device": how["device"], "protocol": "random", "val_share": 0.1, "model": "unet"}
    runs = [ours.train_run(setting.store, out=Path(folder, name), **settings) for name in names]
    return {"trained": runs[-1].meta["trained_epochs"]}


def in_turns(makers: dict[str, Callable], how: dict, first: int = 0) -> Iterator[dict]:
    """Rates of loops (frames/s), seconds to set one up and its memory; yield after each turn.

    The `first` ones, whose set-up is short, take all their turns alone, and then again with all.
    """
    torch.backends.cudnn.benchmark = True  # as in a run of the project, and for all loops
    device, runs = torch.device(how["device"]), {}
    found = {"rates": {}, "setup": {}, "memory": {}, "errors": {}}
    order = timing.order_of_turns([*makers][:first], how["repeats"])
    for name in order + timing.order_of_turns([*makers], how["repeats"]):
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


def set_up(make: Callable[[], loops.Run], steps: int, device) -> tuple:
    """Make a loop and train some steps, in which kernels are chosen; then MiB of some more."""
    before, cuda = 0, torch.cuda if device.type == "cuda" else None
    if cuda:
        before = cuda.memory_allocated()
    began, run = time.perf_counter(), make()
    run(steps)
    timing.wait(device)
    seconds = time.perf_counter() - began
    if not cuda:
        return run, seconds, None
    cuda.reset_peak_memory_stats()
    run(steps)
    return run, seconds, (cuda.max_memory_allocated() - before) / 2**20


def rate(how: dict) -> Iterator[dict]:
    """This project, the reported loop, MONAI's and smp's; then the variants of this project's."""
    setting = make_setting(how)
    found = {
        "precision": setting.precision, "frames": len(setting.store),
        "peaks": timing.peaks(setting.device, how["width"] == TINY["width"]),
        "operations": timing.step_operations(setting.make_model().cpu(), how["size"]),
    }  # fmt: skip
    makers = {name: partial(training.LOOPS[name][0], setting) for name in training.usable()}
    for part in in_turns(makers, how):
        found |= part | {"cache_seconds": peers.filled.get("seconds")}
        yield found
    for part in variants(how, "", 1):
        yield found | {"variants": part}


def variants(how: dict, size: str = "small_", networks: int = 3) -> Iterator[dict]:
    """The variants of this project's step; small networks wait for the processor to launch."""
    networks, variants = min(networks, how["networks"]), [*VARIANTS.items()][: how["variants"]]
    makers = {
        f"{model}: {name}": partial(loops.project, make_setting(how, size, model), **settings)
        for name, settings in variants for model in NETWORKS[:networks]
    }  # fmt: skip
    how = how | {"steps": 5 * how["steps"]} if size else how  # a step is short
    return in_turns(makers, how, first=2 * networks)  # without those that are compiled


def fullsize(how: dict) -> Iterator[dict]:
    """The epochs of the reported study, all three networks; fewer if the time is short."""
    torch.backends.cudnn.benchmark = True
    setting, trained, took = make_setting(how), {}, {}
    rows = np.resize(np.arange(len(setting.store)), how["frames"])
    settings = {"precision": setting.precision, "batch_size": how["batch"]}
    found = {"different": len(setting.store), "rows": [], "errors": {}}

    def epoch(name: str) -> None:
        next(trained[name])
        timing.wait(setting.device)

    for name in NETWORKS:
        try:
            net = ours.make_model(name, how["width"], setting.device)
            trained[name] = ours.train(net, setting.store, rows, device=setting.device, **settings)
            epoch(name)  # sets up the GPU: it does not count
            took[name] = timing.seconds_of(partial(epoch, name))
        except Exception as error:
            found["errors"][name] = sentence(error)
    left = 0.9 * (how["until"] - time.time())
    epochs = min(how["epochs"], 1 + int(left / (sum(took.values()) or 1)))
    found["rows"] = [{"model": name, "epochs": 1, "seconds": took[name]} for name in took]
    yield found
    for row in found["rows"]:
        while row["epochs"] < epochs:
            row["seconds"] += timing.seconds_of(partial(epoch, row["model"]))
            row["epochs"] += 1
            yield found


PARTS = {  # name: what yields its results, and the share of the time at whose end it is cut
    "correctness": (correctness, 0.16),
    "resume": (resume, 0.26),
    "rate": (rate, 0.54),
    "fullsize": (fullsize, 0.92),
    "small": (variants, 1.0),
}


def show(found: dict) -> str:
    """All parts, in Markdown."""
    lines = []
    for name, part in found["parts"].items():
        title, text = SHOWN[name]
        text = text(part, found["how"]) if part.keys() - {"stopped"} else ""
        errors = part.get("errors", {}) | part.get("variants", {}).get("errors", {})
        lines += [f"#### {title}", text, *(f"{key} failed: {errors[key]}." for key in errors)]
        lines += [f"Not to its end: {part['stopped']}."] if "stopped" in part else []
    return "\n\n".join(line for line in lines if line)


def show_correctness(part: dict, how: dict) -> str:
    columns = (*MEASURES, "weights", "its Dice")
    rows = [(row["model"], row["way"], *(f"{row[name]:.1e}" for name in columns[:-1]),
             figure(row["its Dice"])) for row in part["rows"]]  # fmt: skip
    return (
        f"Width {how['small_width']}, {how['small_size']} px, {how['learned']} steps on one batch "
        f"of {how['batch']} frames, lr 0.001, TF32 off. Differences from the same training in fp32 "
        "on the CPU: of losses and the first gradient relative, of weights over the way that they "
        "moved (not judged: Adam makes whole steps of rounding).\n\n"
        + table(("network", "way", *columns), rows, texts=2)
    )


def show_resume(part: dict, how: dict) -> str:
    words = [f"are {part[k]:.1e} of their norm apart" if part[k] else "are the same to the bit"
             for k in ("apart", "two apart")]  # fmt: skip
    return (
        "A small U-Net of 4 epochs, killed by SIGKILL in its third and started again, went on "
        f"after epoch {part['kept']}. Its weights and the undisturbed training's {words[0]}; those "
        f"of two undisturbed trainings {words[1]}."
    )


def complete(part: dict) -> dict[str, list[float]]:
    """The rates of all loops that had a turn, in as many repeats as all of these have."""
    rates = part.get("rates", {})
    done = min(map(len, rates.values()), default=0)
    return {name: each[:done] for name, each in rates.items()}


def as_training(part: dict, how: dict) -> dict:
    """What the section `training` would have found; {} before this project's first turn."""
    rates = complete(part)
    how = how | {"repeats": len(rates.get("project", []))}
    return part | {"rates": rates, "how": how} if "project" in rates else {}


def show_rate(part: dict, how: dict) -> str:
    text = training.show(whole) if (whole := as_training(part, how)) else ""
    more = show_variants(part["variants"], how, "") if "variants" in part else ""
    return f"{text}\n\n{more}".strip()


def show_variants(part: dict, how: dict, size: str = "small_") -> str:
    rows, rates = [], part["rates"]
    for name, each in rates.items():
        model, step = name.split(": ")
        plain, memory = rates.get(f"{model}: plain", []), part["memory"][name]
        last = -min(len(plain), len(each))  # turns that they took together
        ratio = spread(ratios(each[last:], plain[last:])) if last and step != "plain" else ""
        memory = "–" if memory is None else round(memory)
        steps = spread([rate / how["batch"] for rate in each])
        rows.append((model, step, steps, ratio, figure(part["setup"][name]), memory))
    columns = ("network", "step", "steps/s", "over plain", "set-up, s", "memory, MiB")
    about = f"Width {how[f'{size}width']}, {how[f'{size}size']} px, batch {how['batch']}"
    return f"{about}, {how['precision']}:\n\n{table(columns, rows, texts=2)}"


def show_fullsize(part: dict, how: dict) -> str:
    rows = []
    for row in part["rows"]:
        rate = row["epochs"] * how["frames"] / row["seconds"]
        rows.append((row["model"], row["epochs"], figure(row["seconds"]), figure(rate)))
    fewer = any(row["epochs"] < how["epochs"] for row in part["rows"])
    return (
        f"Width {how['width']}, {how['size']} px, batch {how['batch']}, {how['precision']}; an "
        f"epoch is {how['frames']} frames, {part['different']} different ones repeated. One "
        "more epoch at first, which sets up the GPU, validation and checkpoints are not counted."
        + f" The time did not do for {how['epochs']} epochs of each." * fewer
        + f"\n\n{table(('network', 'epochs', 'seconds', 'frames/s'), rows)}"
    )


SHOWN = {
    "correctness": ("Right on the GPU", show_correctness),
    "resume": ("Killed and started again", show_resume),
    "rate": ("Rate and memory", show_rate),
    "fullsize": ("The three full-size networks", show_fullsize),
    "small": ("Small networks, where launches are the limit", show_variants),
}


def seconds_of_study(found: dict) -> float | None:
    """Seconds of all epochs of the three networks, extrapolated where fewer were trained."""
    rows = found["parts"].get("fullsize", {}).get("rows", [])
    each = [row["seconds"] / row["epochs"] * found["how"]["epochs"] for row in rows]
    return sum(each) if len(each) == len(NETWORKS) else None


def goals(found: dict, on_gpu: bool) -> Iterator[tuple]:
    """(sentence, sign, limit, value); the value is None where it was not measured."""
    parts, tiny = found["parts"], found["how"]["width"] == TINY["width"]
    rows, resumed = (parts.get("correctness", {}).get("rows", []), parts.get("resume", {}))
    for way, limits in TOLERANCES.items() if not tiny else ():
        for name, limit in zip(MEASURES, limits, strict=True):
            seen = [row[name] for row in rows if row["way"].split(",")[0] == way
                    and (row["model"], name) != NOT_JUDGED]  # fmt: skip
            but = ", SegNet left out," * (name == NOT_JUDGED[1])
            largest = float(np.max(seen)) if seen else None  # nan, if one is
            yield f"difference of {name}{but} in {way}", "<=", limit, largest
    yield "epochs that a killed training need not repeat", ">=", 1, resumed.get("kept")
    limit = 0 if not on_gpu else max(1e-6, 2 * resumed.get("two apart", 0))
    yield "difference of a killed training's weights", "<=", limit, resumed.get("apart")
    if not tiny and (whole := as_training(parts.get("rate", {}), found["how"])):
        yield from training.goals(whole, on_gpu)
    if not tiny:
        what = f"seconds of the three full-size networks, {found['how']['epochs']} epochs each"
        for limit in (150, 300):  # the goal, and what it must not take longer than
            yield what, "<=", limit, seconds_of_study(found)


def summary(machine: dict, sections: dict) -> str:
    """For the project's README: what was measured on this GPU."""
    found = sections["gpu"]["result"]
    rates, text = complete(found["parts"].get("rate", {})), f"On {machine.get('gpu', 'no GPU')}, "
    for name, what in (("reported", "reported loop"), ("monai documented", "example of MONAI")):
        if {name, "project"} <= rates.keys():
            faster = figure(median(ratios(rates["project"], rates[name])))
            text += f"U-Net at full width trains {faster} times as fast as the {what}; "
    seconds = seconds_of_study(found)
    study = f"the three full-size networks take {figure(seconds)} s together; " if seconds else ""
    return f"{text}{study}[all figures](benchmarks/README.md)."


if __name__ == "__main__":
    main(*sys.argv[1:])
