"""Time that a study's runs take: timed steps, finished runs, or an estimate from multiply-adds.

    python tools/pace.py --parameters parameters/tg3k.yaml --frames 3585 --minutes 470 \\
        --at-once 2 unet-grouped-fold0-seed0 segnet-grouped-fold0-seed0

times a few steps of each network on this machine, writes them to results/<study>/pace/, and prints
how long each of these runs may take and when the last one ends. Kernels on Kaggle begin with it;
`make gather` brings the times along, and `make kaggle` deals out the next round by them.
"""

import argparse
import hashlib
import json
import statistics
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch

from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import build_model, multiply_adds
from thyroid_lib.settings import list_runs, read_study, variant_name
from thyroid_lib.train import device as devices
from thyroid_lib.train import recipe

# Of a T4, estimated and never measured: 40 % of its fp16 peak, training being three forward passes.
SECONDS_PER_MULTIPLY_ADD = 3.1e-13
MARGIN = 1.2  # factor for validation and scoring
FIXED_MINUTES = 2  # of a run of any size
STEPS, EPOCHS = 4, 3  # timed: all epochs but the first, in which kernels are chosen


def time_steps(config: dict, model: str) -> dict:
    """Train a few steps on noise, with the study's settings; return them as run.json holds a run.

    RuntimeError: too little memory.
    """
    where = devices.choose_device(config["device"])
    size, batch = config["size"], config["batch_size"]
    settings = {name: config[name] for name in ("batch_size", "lr", "augment")}
    settings["precision"] = devices.choose_precision(config["precision"], where)
    torch.backends.cudnn.benchmark = True
    with devices.out_of_memory(where, model=model, width=config["width"], size=size, **settings):
        net = build_model(model, width=config["width"]).to(where, memory_format=torch.channels_last)
        images = torch.randint(256, (STEPS * batch, size, size), dtype=torch.uint8)
        states = recipe.fit(net, images, (images > 127).byte(), epochs=EPOCHS, **settings)
        first, *_, last = (state["seconds"] for state in states)
    about = {"model": model, "width": config["width"], "size": size, "epochs": EPOCHS - 1}
    about |= {"cases": {"train": STEPS * batch}, "train_seconds": round(last - first, 4)}
    return about | {"device": where.type, "machine": devices.describe_machine(where)}


def estimate(config: dict, runs: list[str], frames: int, results: Path) -> dict[str, float]:
    """Estimate the minutes of each of these runs on one of Kaggle's GPUs.

    From the seconds of finished runs of the same network, or else from steps timed on a GPU, or
    else from its multiply-adds.
    """
    measured: dict[str, list[float]] = {}
    for pattern in ("runs/*/run.json", "pace/*.json"):
        found: dict[str, list[float]] = {}
        for path in results.glob(pattern):
            # the estimate does without a run that is unfinished or damaged
            with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
                about = json.loads(path.read_text("utf-8"))
                alike = all(about[key] == config[key] for key in ("width", "size"))
                if alike and (about["device"] == "cuda" or config["device"] == "cpu"):
                    seen = about["epochs"] * about["cases"]["train"]
                    found.setdefault(about["model"], []).append(about["train_seconds"] / seen)
        measured = found | measured
    listed = {run: about for run, about in list_runs(config).items() if run in runs}
    seconds = {model: statistics.median(each) for model, each in measured.items()}  # of a frame
    for model in {about["model"] for about in listed.values()} - measured.keys():
        work = multiply_adds(build_model(model, width=config["width"] or None), config["size"])
        seconds[model] = SECONDS_PER_MULTIPLY_ADD * work
    minutes = {}
    for run, about in listed.items():
        grouped = about["protocol"] in ("grouped", "leave-one-group-out")
        epochs = about.get("epochs", config["epochs"])  # a variant may have its own
        trained = frames * (1 - 1 / config["folds"] if grouped else 0.7) * epochs
        minutes[run] = FIXED_MINUTES + MARGIN * seconds[about["model"]] * trained / 60
    return minutes


def minutes_together(minutes: list[float], at_once: int) -> float:
    """Return the minutes of runs of which `at_once` are trained at a time."""
    return max(sum(minutes) / at_once, *minutes)


def main() -> int:
    """Time the networks of some runs, and print when these end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", help="names of runs of the study")
    parser.add_argument("--parameters", required=True, help="the study's YAML")
    parser.add_argument("--frames", type=int, required=True, help="of the study's data")
    parser.add_argument("--minutes", type=float, required=True, help="after which the runs stop")
    parser.add_argument("--at-once", type=int, default=1, help="runs that are trained at a time")
    args = parser.parse_args()
    try:
        config = read_study([args.parameters])
        results, listed = project_path(f"results/{config['study']}"), list_runs(config)
        for model in dict.fromkeys(listed[run]["model"] for run in args.runs):
            text = json.dumps(about := time_steps(config, model), indent=1, sort_keys=True) + "\n"
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]  # sources to gather are unlike
            write_file(results / "pace" / f"{variant_name(model)}-{digest}.json", text)
            frames = about["epochs"] * about["cases"]["train"] / about["train_seconds"]
            where = about["machine"].get("gpu", about["device"])
            print(f"{model}: {frames:.3g} frames a second on {where}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    minutes = estimate(config, args.runs, args.frames, results)
    for run, each in minutes.items():
        print(f"{run}: about {each / 60:.2g} h")
    total = minutes_together([*minutes.values()], args.at_once)
    ends = datetime.now(UTC) + timedelta(minutes=min(total, args.minutes))
    what = "they end" if total <= args.minutes else "they are stopped with their state kept"
    print(f"{args.at_once} at a time take about {total / 60:.2g} h: {what} at {ends:%H:%M} UTC")
    return 0


if __name__ == "__main__":
    sys.exit(main())
