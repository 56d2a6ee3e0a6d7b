"""Build a Kaggle data set and Kaggle kernels that train the missing runs of a study.

    python tools/kaggle.py --parameters parameters/tg3k.yaml --owner me --data somebody/tg3k/1

    kaggle/<study>/dataset/     the project, its wheel, and wheels of what Kaggle lacks
    kaggle/<study>/kernel-1/ …  a notebook each, which trains its share of the runs
    kaggle/<study>/<study>.yaml the settings of the kernels

Runs that are finished in results/<study> are left out; unfinished ones continue from their
checkpoints. Nothing is uploaded: the commands that do are printed. See docs/kaggle.md.
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
# Packages of the platform that Snakemake uses; these and their requirements are never replaced.
PLATFORM = {"matplotlib", "numpy", "pandas", "pillow", "scipy", "seaborn", "statsmodels", "torch"}
PYTHON = "3.12"  # on Kaggle
SYSTEMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
# The reported study: seconds of a Residual U-Net's epoch on Kaggle, for so many frames of 256² px.
EPOCH_SECONDS, EPOCH_FRAMES, EPOCH_SIZE = 208, 2509, 256
MARGIN = 1.2  # factor for validation and scoring
FIXED_MINUTES = 2  # of a run of any size
START_MINUTES = 10  # of a session, before and after its runs
SESSION_HOURS, WEEK_HOURS = 12, 30  # Kaggle's limits: a session, and GPU time in a week
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
        parameters, overrides: the study's file, and settings that replace its own.
        owner: the account on Kaggle.
        data: the data set there, `owner/slug/version`; "" for phantoms.
        hours: the limit of a session.
        gpus: 1 or 2, the number of runs that a session trains at a time.
        frames: number of frames in the data; 0 where source or store say it.
        out: the folder in which <study>/ gets dataset/, kernel-*/ and <study>.yaml; other files
            there stay.
        wheels: a folder with requirements.txt and the wheels for it; "" to download them.

    Raises:
        ValueError: a value that Kaggle does not accept; no run is missing.
    """
    named = {"data": f"kaggle:{data}"} if data else {}
    # a session only trains; the model is exported where its results are gathered
    config = read_study([parameters], overrides=(overrides or {}) | named)
    config |= {"budget_minutes": 0, "deploy": False}
    study, slug = config["study"], f"thyroid-{config['study'].replace('_', '-')}"
    source = re.fullmatch(r"kaggle:([\w-]+/[\w-]+)/[1-9][0-9]*", config["data"])
    for accepted, message in (
        (0.5 <= hours <= SESSION_HOURS, f"hours: got {hours}, need 0.5 to {SESSION_HOURS}"),
        (frames >= 0, f"frames: got {frames}, need their number, or 0 where it is known"),
        (
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner),
            f"owner: got {owner!r}, need the name in the address of your Kaggle profile",
        ),
        (
            source or (config["data"] in ("", "auto") and not data),
            f"data: got {data or config['data']!r}, which Kaggle cannot see: upload it as a data "
            "set and give DATA=owner/slug/version, the version 1 or more",
        ),
        (
            SLUG.fullmatch(f"{slug}-999"),
            f"study: {study} is too long for a name on Kaggle, need 38 letters at most",
        ),
    ):
        if not accepted:
            raise ValueError(message)
    results = project_path(f"results/{study}")
    missing = [run for run in list_runs(config) if not _done(results, run, config)]
    if not missing:
        raise ValueError(f"{study}: no run is missing in {results}")
    minutes = estimate(config, missing, frames or count_frames(config, results), results)
    room = (60 * hours - START_MINUTES) * gpus
    kernels = pack(minutes, room)

    top = Path(out, study)
    again = any(top.glob("output-*"))  # of kernels that used the data set
    # Everything that may fail or take long comes first, and in another folder.
    wheels = wheels or download_wheels(Path(out, "wheels"))
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
        for old in (top / "dataset", *top.glob("kernel-*")):
            shutil.rmtree(old, ignore_errors=True)
        for built in list(new.iterdir()):
            built.rename(top / built.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _print_next(top, f"{owner}/{slug}", kernels, minutes, room, gpus, again, config)
    return kernels


def _done(results: Path, run: str, config: dict) -> bool:
    """Return whether a run is finished here, with the study's settings."""
    if not (results / "notebooks" / f"3-train-{run}.ipynb").is_file():
        return False
    if other := gather.differing(results / "runs" / run, run, config):
        print(f"note: {run}: {other}: it is trained again", file=sys.stderr)
    return not other


def count_frames(config: dict, results: Path) -> int:
    """Return the number of frames of a study.

    Raises:
        ValueError: neither its source nor its store tells the number.
    """
    if config["source"] == "phantom":
        return config["phantom_sweeps"] * config["phantom_frames"]
    if (results / "store" / "index.csv").is_file():
        return len((results / "store" / "index.csv").read_text("utf-8").splitlines()) - 1
    if config["source"] in FRAMES:
        return FRAMES[config["source"]]
    raise ValueError("frames: their number is not known yet: give FRAMES=<number>")


def estimate(config: dict, runs: list[str], frames: int, results: Path) -> dict[str, float]:
    """Estimate the minutes of each of these runs on one of Kaggle's GPUs.

    From the seconds of finished runs of the same network, or else from its multiply-adds and the
    one time that the reported study gives.
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
            continue  # unfinished or damaged: the estimate does without
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
    """Pack runs into few sessions of `room` minutes, the longest first (first fit decreasing).

    A run that is longer than a session has one of its own, and continues in the next round.
    """
    sessions: list[list[str]] = []
    for run in sorted(minutes, key=lambda run: -minutes[run]):
        fits = (s for s in sessions if sum(map(minutes.get, s)) + minutes[run] <= room)
        if (session := next(fits, None)) is None:
            sessions.append(session := [])
        session.append(run)
    return sessions


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
    # checkpoints of unfinished runs
    for run in missing:
        for path in sorted((results / "runs" / run).glob("*.pt")):
            target = folder / "results" / config["study"] / "runs" / run / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copytree(wheels, folder / "wheels")
    about = {"title": name.split("/")[1], "id": name, "licenses": [{"name": "other"}]}
    write_file(folder / "dataset-metadata.json", json.dumps(about, indent=1) + "\n")


def download_wheels(folder: Path) -> Path:
    """Download what Kaggle may lack, in the versions and with the hashes of the lock.

    On Kaggle, pip installs from this folder only what is missing or in an unsuitable version.
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
    print("downloading wheels: once, some minutes …", flush=True)
    whole, folder = folder, folder.with_name(f"{folder.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    target = ["--python-version", PYTHON, "--implementation", "cp", "--abi", "cp312"]
    target += ["--abi", "abi3", "--abi", "none"]
    target += [word for system in SYSTEMS for word in ("--platform", f"{system}_x86_64")]
    with tempfile.TemporaryDirectory() as work:
        for entry in filter(None, re.split(r"(?m)^(?=[a-z0-9])", lock)):
            marker = Requirement(entry.splitlines()[0].rstrip(" \\")).marker
            if marker and not marker.evaluate(KAGGLE):
                continue
            one = write_file(Path(work, "one.lock"), entry)
            get = [*pip, "download", "-qq", "--no-deps", "--require-hashes", "-r", str(one)]
            wheel = [*get, "--only-binary", ":all:", *target, "--dest", str(folder)]
            if subprocess.run(wheel, capture_output=True).returncode == 0:
                continue
            # no wheel is published: one of pure Python is built here
            make = [*pip, "wheel", "-qq", "--no-deps", "--no-build-isolation", "--require-hashes"]
            subprocess.run([*make, "-r", str(one), "-w", str(folder)], check=True)
    make = [*pip, "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    with tempfile.TemporaryDirectory() as work:  # the build leaves folders behind
        for part in ("thyroid_lib", "pyproject.toml", "README.md", "LICENSE"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, Path(work, part))
        subprocess.run([*make, work], check=True)
    built = [path.name for path in folder.glob("*.whl") if "-any.whl" not in path.name]
    if odd := [name for name in built if not re.search(r"manylinux|musllinux", name)]:
        raise ValueError(f"{', '.join(odd)}: built for this machine only, no wheel for Kaggle")
    versions = dict(re.findall(r"(?m)^([a-z0-9-]+)==([^ \n]+)", lock))
    text = "".join(f"{need}\n" for need in needs["dependencies"])
    write_file(folder / "requirements.txt", f"{text}snakemake=={versions['snakemake']}\n")
    write_file(folder / mark.name, lock)
    shutil.rmtree(whole, ignore_errors=True)
    return folder.rename(whole)


KAGGLE = {
    "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux",
    "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
    "platform_python_implementation": "CPython", "implementation_name": "cpython", "extra": "",
}  # fmt: skip


def _closure(needs: list[str]) -> set[str]:
    """Return the names of all requirements on Kaggle, except those of its own packages."""
    todo, seen = [(need, "") for need in needs], set()
    names = set()
    while todo:
        text, extra = todo.pop()
        need = Requirement(text)
        name = canonicalize_name(need.name)
        if (text, extra) in seen or name in PLATFORM:
            continue
        seen.add((text, extra))
        if need.marker and not need.marker.evaluate(KAGGLE | {"extra": extra}):
            continue
        names.add(name)
        try:
            inner = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another Python version only: the lock has it
            continue
        todo += [(line, one) for line in inner for one in ("", *need.extras)]
    return names


def _write_kernel(folder: Path, name: str, *, gpu: int, datasets: list[str], **settings) -> None:
    """Write a folder for `kaggle kernels push`: a notebook with its settings, and its metadata."""
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


def _print_next(
    top: Path, name: str, kernels: list, minutes: dict, room: float, gpus: int, again: bool,
    config: dict,
) -> None:  # fmt: skip
    """Print what was built, how long it may take, and the next commands, one a line."""
    total = 0.0
    for number, runs in enumerate(kernels, 1):
        hours = min(sum(minutes[run] for run in runs), room) / gpus / 60
        total += hours + START_MINUTES / 60
        print(f"kernel-{number}: about {hours:.1f} h for {len(runs)} runs: {', '.join(runs)}")
    for run in (run for run in minutes if minutes[run] > room / gpus):
        print(f"{run} takes longer than a session: it stops in time, and continues in the next one")
    unit = "GPU hours" if config["device"] != "cpu" else "hours"
    print(f"{len(minutes)} runs in {len(kernels)} sessions, about {total:.1f} {unit} in all"
          f" (Kaggle gives about {WEEK_HOURS} GPU hours a week)")  # fmt: skip
    numbers = range(1, len(kernels) + 1)
    upload = "version -m again" if again else "create"
    lines = ["", "to upload:", f"kaggle datasets {upload} -p {top}/dataset --dir-mode zip"]
    lines += ["", "when the data set is ready, as the first of these says:"]
    lines += [f"kaggle datasets status {name}"]
    lines += [f"kaggle kernels push -p {top}/kernel-{number}" for number in numbers]
    lines += ["", "when the kernels have ended, as the first of these say:"]
    lines += [f"kaggle kernels status {name}-{number}" for number in numbers]
    lines += [f"kaggle kernels output {name}-{n} -p {top}/output-{n}" for n in numbers]
    lines += [f'make gather PARAMETERS={top}/{config["study"]}.yaml FROM="{top}/output-*"']
    print("\n".join(lines))


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
