"""Folders that `kaggle datasets create` and `kaggle kernels push` take, for a study's missing runs.

    python tools/kaggle.py --parameters parameters/tg3k.yaml --owner me --data somebody/tg3k/1

    kaggle/<study>/dataset/     the project, its wheel, and wheels of what Kaggle lacks
    kaggle/<study>/kernel-1/ …  a notebook each, which trains its share of the runs
    kaggle/<study>/<study>.yaml the settings, as the kernels have them

Runs that results/<study> holds finished are left out; begun ones go along and go on. Nothing is
sent anywhere: the commands that send it are printed. docs/kaggle.md tells the rest.
"""

import argparse
import hashlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gather
from thyroid_lib.files.writing import project_path, write_file
from thyroid_lib.models import build_model, multiply_adds
from thyroid_lib.settings import list_runs, read_study

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("notebooks", "workflow", "thyroid_lib", "architectures", "pyproject.toml")
# Snakemake runs beside the platform's own packages; these and what they need are never replaced.
PLATFORM = {"matplotlib", "numpy", "pandas", "pillow", "scipy", "seaborn", "statsmodels", "torch"}
PYTHON = "3.12"  # Kaggle's
SYSTEMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
# The reported study: a Residual U-Net's epoch on Kaggle, seconds for so many frames of 256² px.
EPOCH_SECONDS, EPOCH_FRAMES, EPOCH_SIZE = 208, 2509, 256
MARGIN = 1.2  # on top of training: the validation of each epoch, and the scores
FIXED_MINUTES = 2  # of a run, whatever its size
START_MINUTES = 10  # of a session, before and after its runs
SESSION_HOURS, WEEK_HOURS = 12, 30  # Kaggle's limits, of a session and of its GPUs in a week
FRAMES = {"tg3k": 3585}
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{2,49}")


def build(
    parameters: str | Path,
    *,
    owner: str,
    data: str = "",
    hours: float = 8,
    gpus: int = 1,
    frames: int = 0,
    overrides: dict | None = None,
    out: str | Path = "kaggle",
    wheels: str | Path = "",
) -> list[list[str]]:
    """Write the folders of a study; return the missing runs, kernel by kernel.

    Args:
        parameters, overrides: the study's file, and settings that go before it.
        owner: whose account on Kaggle it is.
        data: the data set there, `owner/slug/version`; "" for phantoms.
        hours: that a session may take.
        gpus: 1 or 2, runs that a session does at a time.
        frames: how many the data hold; 0 where source or store say it.
        out: the folder in which <study>/ gets dataset/, kernel-*/ and <study>.yaml; what else lies
            there stays.
        wheels: a folder with requirements.txt and the wheels for it; "" to download them.

    Raises:
        ValueError: what Kaggle does not take; no run is missing.
    """
    if not 0.5 <= hours <= SESSION_HOURS:
        raise ValueError(f"hours: got {hours}, need 0.5 to {SESSION_HOURS}, a session's limit")
    if frames < 0:
        raise ValueError(f"frames: got {frames}, need their number, or 0 where it is known")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise ValueError(f"owner: got {owner!r}, need the name in your Kaggle profile's address")
    if data and not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/[1-9][0-9]*", data):
        raise ValueError(f"data: got {data!r}, need owner/slug/version, the version 1 or more")
    named = {"data": f"kaggle:{data}"} if data else {}
    # a session trains; the release is made where its results are gathered
    config = read_study([parameters], overrides=(overrides or {}) | named)
    config |= {"budget_minutes": 0, "deploy": False}
    study, slug = config["study"], f"thyroid-{config['study'].replace('_', '-')}"
    source = re.fullmatch(r"kaggle:([\w-]+/[\w-]+)/[1-9][0-9]*", config["data"])
    if config["data"] not in ("", "auto") and not source:
        raise ValueError(
            f"data: got {config['data']!r}, which Kaggle cannot see: upload it as a data set and "
            "give DATA=owner/slug/version"
        )
    if not SLUG.fullmatch(f"{slug}-999"):
        raise ValueError(f"study: {study} is too long for a name on Kaggle, need 38 letters")
    results = project_path(f"results/{study}")
    missing = [run for run in list_runs(config) if not _done(results, run, config)]
    if not missing:
        raise ValueError(f"{study}: no run is missing in {results}")
    minutes = estimate(config, missing, frames or count_frames(config, results), results)
    room = (60 * hours - START_MINUTES) * gpus
    kernels = pack(minutes, room)

    top = Path(out, study)
    again = any(top.glob("output-*"))  # of kernels, which had the data set
    # All that may fail or take long comes first, and to another place.
    wheels = wheels or download_wheels(Path(out, "wheels"))
    top.mkdir(parents=True, exist_ok=True)
    new = top / ".new"
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write_dataset(new / "dataset", config, f"{owner}/{slug}", results, missing, wheels)
        whole_store = (results / "store" / "images.npy").exists()
        for number, runs in enumerate(kernels, 1):
            _write_kernel(
                new / f"kernel-{number}", f"{owner}/{slug}-{number}",
                gpu=config["device"] != "cpu" and gpus,
                datasets=[f"{owner}/{slug}", *([source[1]] if source else [])],
                bundle=f"{owner}/{slug}", study=study, runs=runs,
                minutes=60.0 * hours - START_MINUTES,
                keep_store=number == 1 and not whole_store,
            )  # fmt: skip
        write_file(top / f"{study}.yaml", yaml.safe_dump(config, sort_keys=False))
        _swap(new, top)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _tell(top, config, kernels, minutes, room, gpus, again)
    return kernels


def _done(results: Path, run: str, config: dict) -> bool:
    """Whether a run is finished here, with the settings that are asked for."""
    if not (results / "notebooks" / f"3-train-{run}.ipynb").is_file():
        return False
    if other := gather.differing(results / "runs" / run, run, config):
        print(f"note: {run}: {other}: it is trained anew", file=sys.stderr)
    return not other


def count_frames(config: dict, results: Path) -> int:
    """Return how many frames a study has.

    Raises:
        ValueError: neither its source nor its store says it.
    """
    if config["source"] == "phantom":
        return config["phantom_sweeps"] * config["phantom_frames"]
    if (results / "store" / "index.csv").is_file():
        return len((results / "store" / "index.csv").read_text("utf-8").splitlines()) - 1
    if config["source"] in FRAMES:
        return FRAMES[config["source"]]
    raise ValueError("frames: how many there are is not known yet: FRAMES=<number>")


def estimate(config: dict, runs: list[str], frames: int, results: Path) -> dict[str, float]:
    """Return the minutes that each of these runs will take on one of Kaggle's GPUs, roughly.

    From the seconds that finished runs of the same network took, else from its multiply-adds and
    the one time that the reported study gives.
    """
    wide, size = config["width"] or None, config["size"]
    measured: dict[str, list[float]] = {}
    for path in results.glob("runs/*/run.json"):
        try:
            about = json.loads(path.read_text("utf-8"))
            alike = all(about[key] == config[key] for key in ("width", "size"))
            if alike and (about["device"] == "cuda" or config["device"] == "cpu"):
                seen = about["epochs"] * about["cases"]["train"]
                measured.setdefault(about["model"], []).append(about["train_seconds"] / seen)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # not finished, or damaged: nothing is lost
    usual = multiply_adds(build_model("resunet_reported"), EPOCH_SIZE)
    minutes, work = {}, {}
    for run in runs:
        about = list_runs(config)[run]
        if about["model"] in measured:
            seconds = statistics.median(measured[about["model"]])
        else:
            if (model := about["model"]) not in work:
                work[model] = multiply_adds(build_model(model, width=wide), size)
            seconds = EPOCH_SECONDS / EPOCH_FRAMES * work[model] / usual
        grouped = about["protocol"] in ("grouped", "leave-one-group-out")
        trained = frames * (1 - 1 / config["folds"] if grouped else 0.7)
        minutes[run] = FIXED_MINUTES + MARGIN * seconds * trained * config["epochs"] / 60
    return minutes


def pack(minutes: dict[str, float], room: float) -> list[list[str]]:
    """Deal runs out to as few sessions of `room` minutes as that takes, the longest first.

    A run that is longer than a session has one to itself, and goes on in the next round.
    """
    sessions: list[list[str]] = []
    for run in sorted(minutes, key=lambda run: -minutes[run]):
        fits = (s for s in sessions if sum(map(minutes.get, s)) + minutes[run] <= room)
        if (session := next(fits, None)) is None:
            sessions.append(session := [])
        session.append(run)
    return sessions


def _swap(new: Path, top: Path) -> None:
    """Put what was built in the place of what an earlier round built, and touch nothing else."""
    old = top / ".old"
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    built = {path.name for path in new.iterdir()}
    before = {path.name for path in (top / "dataset", *top.glob("kernel-*")) if path.exists()}
    for name in sorted(built | before):  # renamed only: a kill finds all but no time for itself
        if name in before:
            (top / name).rename(old / name)
        if name in built:
            (new / name).rename(top / name)
    shutil.rmtree(old, ignore_errors=True)


def _write_dataset(
    folder: Path, config: dict, name: str, results: Path, missing: list[str], wheels: str | Path
) -> None:
    project = folder / "project"
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.partial")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, project / part, ignore=unwanted)
        elif (ROOT / part).exists():
            shutil.copy2(ROOT / part, project / part)
    text = yaml.safe_dump(config, sort_keys=False)
    write_file(project / "parameters" / f"{config['study']}.yaml", text)
    # what the runs begun so far have reached
    for run in missing:
        for path in sorted((results / "runs" / run).glob("*.pt")):
            target = folder / "results" / config["study"] / "runs" / run / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copytree(wheels, folder / "wheels")
    about = {"title": name.split("/")[1], "id": name, "licenses": [{"name": "other"}]}
    write_file(folder / "dataset-metadata.json", json.dumps(about, indent=1) + "\n")


def download_wheels(folder: Path) -> Path:
    """Fetch what Kaggle may lack, in the lock's versions and held to its hashes; return the folder.

    pip takes of it there only what the platform lacks, or has in a version that will not do.
    """
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = needs["optional-dependencies"]["study"]
    roots = [*needs["dependencies"], *(need for need in extra if need.startswith("snakemake"))]
    wanted = _closure(roots)
    entries = re.split(r"(?m)^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text("utf-8"))
    lock = "".join(entry for entry in entries if entry.split("==")[0] in wanted)
    mark = folder / f"{hashlib.sha256(lock.encode()).hexdigest()[:16]}.lock"
    if mark.is_file():
        return folder
    print("fetching wheels: once, some minutes …", flush=True)
    whole, folder = folder, folder.with_name(f"{folder.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    there = ["--python-version", PYTHON, "--implementation", "cp", "--abi", "cp312"]
    there += ["--abi", "abi3", "--abi", "none"]
    for system in SYSTEMS:
        there += ["--platform", f"{system}_x86_64"]
    with tempfile.TemporaryDirectory() as work:
        for entry in filter(None, re.split(r"(?m)^(?=[a-z0-9])", lock)):
            if "; " in entry.splitlines()[0] and not _meant(entry):
                continue
            one = write_file(Path(work, "one.lock"), entry)
            get = [*pip, "download", "-qq", "--no-deps", "--require-hashes", "-r", str(one)]
            wheel = [*get, "--only-binary", ":all:", *there, "--dest", str(folder)]
            if subprocess.run(wheel, capture_output=True).returncode == 0:
                continue
            # no wheel of it is published: it is made here, of Python alone
            make = [*pip, "wheel", "-qq", "--no-deps", "--no-build-isolation", "--require-hashes"]
            subprocess.run([*make, "-r", str(one), "-w", str(folder)], check=True)
    make = [*pip, "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    with tempfile.TemporaryDirectory() as work:  # its build leaves folders behind
        for part in ("thyroid_lib", "pyproject.toml", "README.md", "LICENSE"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, Path(work, part))
        subprocess.run([*make, work], check=True)
    built = [path.name for path in folder.glob("*.whl") if "-any.whl" not in path.name]
    if odd := [name for name in built if not re.search(r"manylinux|musllinux", name)]:
        raise ValueError(f"{', '.join(odd)}: made for this machine alone, no wheel for Kaggle")
    versions = dict(re.findall(r"(?m)^([a-z0-9-]+)==([^ \n]+)", lock))
    text = "".join(f"{need}\n" for need in needs["dependencies"])
    write_file(folder / "requirements.txt", f"{text}snakemake=={versions['snakemake']}\n")
    write_file(folder / mark.name, lock)
    shutil.rmtree(whole, ignore_errors=True)
    return folder.rename(whole)


def _meant(entry: str) -> bool:
    """Whether the lock's marker holds on Kaggle."""
    need = Requirement(entry.splitlines()[0].rstrip(" \\"))
    return need.marker.evaluate(THERE)


THERE = {
    "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux",
    "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
    "platform_python_implementation": "CPython", "implementation_name": "cpython", "extra": "",
}  # fmt: skip


def _closure(needs: list[str]) -> set[str]:
    """Names of all that these need on Kaggle, but for what its packages bring themselves."""
    todo, seen = [(need, "") for need in needs], set()
    names = set()
    while todo:
        text, extra = todo.pop()
        need = Requirement(text)
        name = canonicalize_name(need.name)
        if (text, extra) in seen or name in PLATFORM:
            continue
        seen.add((text, extra))
        if need.marker and not need.marker.evaluate(THERE | {"extra": extra}):
            continue
        names.add(name)
        try:
            inner = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another Python than this one's: in the lock
            continue
        todo += [(line, one) for line in inner for one in ("", *need.extras)]
    return names


def _write_kernel(folder: Path, name: str, *, gpu: int, datasets: list[str], **settings) -> None:
    """One folder for `kaggle kernels push`: a notebook with its settings, and what it is."""
    notebook = nbformat.read(ROOT / "tools" / "kernel.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    lines = []
    for line in cell.source.splitlines():
        key, comment = line.split(" = ")[0], line.split("  # ")[1]
        value = (settings | {"gpu": bool(gpu)})[key]
        lines.append(f"{key} = {json.dumps(value) if isinstance(value, str | list) else value}"
                     f"  # {comment}")  # fmt: skip
    cell.source = "\n".join(lines)
    title = name.split("/")[1]
    write_file(folder / f"{title}.ipynb", nbformat.writes(notebook) + "\n")
    about = {
        "id": name, "title": title, "code_file": f"{title}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": "true",
        "enable_gpu": "true" if gpu else "false", "enable_internet": "false",
        "machine_shape": {0: "", 1: "NvidiaTeslaT4", 2: "NvidiaTeslaT4Highmem"}[int(gpu)],
        "dataset_sources": datasets, "competition_sources": [], "kernel_sources": [],
        "model_sources": [],
    }  # fmt: skip
    write_file(folder / "kernel-metadata.json", json.dumps(about, indent=1) + "\n")


def _tell(
    top: Path,
    config: dict,
    kernels: list,
    minutes: dict,
    room: float,
    gpus: int,
    again: bool,
) -> None:
    """Say what was made, how long it may take, and the commands that come next, one a line."""
    total = 0.0
    for number, runs in enumerate(kernels, 1):
        hours = min(sum(minutes[run] for run in runs), room) / gpus / 60
        total += hours + START_MINUTES / 60
        print(f"kernel-{number}: about {hours:.1f} h for {len(runs)} runs: {', '.join(runs)}")
    for run in (run for run in minutes if minutes[run] > room / gpus):
        print(f"{run} takes longer than a session: it stops in time and goes on in the next round")
    what = "GPU hours" if config["device"] != "cpu" else "hours"
    print(f"{len(minutes)} runs in {len(kernels)} sessions, about {total:.1f} {what} in all"
          f" (Kaggle gives about {WEEK_HOURS} GPU hours a week)")  # fmt: skip
    about = json.loads((top / "kernel-1" / "kernel-metadata.json").read_text("utf-8"))
    name = about["id"].removesuffix("-1")
    numbers = range(1, len(kernels) + 1)
    print("\nto send it:")
    if again:
        print(f"kaggle datasets version -m again -p {top}/dataset --dir-mode zip")
    else:
        print(f"kaggle datasets create -p {top}/dataset --dir-mode zip")
    print("\nwhen the data set is ready, as the first of these says:")
    print(f"kaggle datasets status {name}")
    for number in numbers:
        print(f"kaggle kernels push -p {top}/kernel-{number}")
    print("\nwhen they have ended, as the first of these say:")
    for number in numbers:
        print(f"kaggle kernels status {name}-{number}")
    for number in numbers:
        print(f"kaggle kernels output {name}-{number} -p {top}/output-{number}")
    print(f'make gather PARAMETERS={top}/{config["study"]}.yaml FROM="{top}/output-*"')


def main() -> int:
    """Run the command line."""
    from snakemake.cli import parse_config

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parameters", required=True, help="the study's YAML")
    parser.add_argument("--owner", required=True, help="your name on Kaggle")
    parser.add_argument("--data", default="", help="data set on Kaggle, owner/slug/version")
    parser.add_argument("--hours", type=float, default=8, help="of a session, 12 at most")
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1, help="T4, or T4 x2")
    parser.add_argument("--frames", type=int, default=0, help="of the data, if source is folder")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    data = args.data if args.data.count("/") != 1 else f"{args.data}/1"
    try:
        build(
            args.parameters, owner=args.owner, data=data, hours=args.hours, gpus=args.gpus,
            frames=args.frames, overrides=parse_config(args.set),
        )  # fmt: skip
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
