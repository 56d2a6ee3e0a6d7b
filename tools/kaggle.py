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
import subprocess
import sys
import tempfile
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

import gather
from pace import estimate, minutes_together
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import write_file
from thyroid_lib.settings import list_runs, read_study, read_words
from thyroid_lib.study.second_copy import copy_whole

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("notebooks", "workflow", "thyroid_lib", "architectures", "tools/pace.py", "pyproject.toml")
# Packages of the platform that Snakemake uses; these and their requirements are never replaced.
PLATFORM = {"matplotlib", "numpy", "pandas", "pillow", "scipy", "seaborn", "statsmodels", "torch"}
PYTHONS = ("3.12", "3.13")  # Kaggle moves from one to the other; pip there takes what fits
KAGGLE = [
    default_environment() | {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64", "extra": "",
    }
    for python in PYTHONS
]  # fmt: skip
GPUS = 2  # of a session: Kaggle's NvidiaTeslaT4 is two T4, of which each trains a run
SYSTEMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
START_MINUTES = 10  # of a session, before and after its runs
SESSION_HOURS, WEEK_HOURS = 12, 30  # Kaggle's limits: a session, and GPU time in a week


def build(
    parameters: str | Path,
    *,
    owner: str,
    data: str = "",
    hours: float = 8,
    frames: int = 0,
    overrides: dict | None = None,
    out: str | Path = "kaggle",
    wheels: str | Path = "",
) -> list[list[str]]:
    """Write the folders of a study below `out`; return the missing runs, kernel by kernel.

    Args:
        data: the data set on Kaggle, `owner/slug/version`; "" for phantoms.
        hours: the limit of a session.
        frames: number of frames in the data; 0 where source or store say it.
        overrides: settings that replace the study's own.
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
    problem = ""
    if not 0.5 <= hours <= SESSION_HOURS:
        problem = f"hours: got {hours}, need 0.5 to {SESSION_HOURS}"
    elif frames < 0:
        problem = f"frames: got {frames}, need their number, or 0 where it is known"
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        problem = f"owner: got {owner!r}, need the name in the address of your Kaggle profile"
    elif isinstance(config["source"], list):
        problem = "source: a list of data sets cannot be sent to Kaggle, need a single one"
    elif not source and (config["data"] not in ("", "auto") or data):
        problem = (
            f"data: got {data or config['data']!r}, which Kaggle cannot see: upload it as a data "
            "set and give DATA=owner/slug/version, the version 1 or more"
        )
    elif len(slug) > 46:  # 50, with the number of a kernel
        problem = f"study: {study} is too long for a name on Kaggle, need 38 letters at most"
    results, name = project_path(f"results/{study}"), f"{owner}/{slug}"
    missing = [] if problem else [r for r in list_runs(config) if not _done(results, r, config)]
    if problem or not missing:
        raise ValueError(problem or f"{study}: no run is missing in {results}")
    frames = frames or count_frames(config, results)
    minutes = estimate(config, missing, frames, results)
    gpus = GPUS if config["device"] != "cpu" else 0
    at_once = max(1, gpus)  # runs that a session trains
    room = (60 * hours - START_MINUTES) * at_once
    kernels = pack(minutes, room)

    top = Path(out, study)
    again = any(top.glob("output-*"))  # of kernels that used the data set
    # Everything that may fail or take long comes first, and in another folder.
    wheels = wheels or download_wheels(Path(out, "wheels"))
    new = top / ".new"
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write_dataset(new / "dataset", config, name, results, missing, wheels)
        whole_store = (results / "store" / "images.npy").exists()
        for number, runs in enumerate(kernels, 1):
            _write_kernel(
                new / f"kernel-{number}", f"{name}-{number}",
                gpu=bool(gpus),
                datasets=[name, *([source[1]] if source else [])],
                bundle=name, study=study, runs=runs, frames=frames, at_once=at_once,
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
    total = 0.0
    for number, runs in enumerate(kernels, 1):
        took = minutes_together([minutes[run] for run in runs], at_once)
        took = min(took, room / at_once) / 60
        total += took + START_MINUTES / 60
        print(f"kernel-{number}: about {took:.1f} h for {len(runs)} runs: {', '.join(runs)}")
    for run in (run for run in minutes if minutes[run] > room / at_once):
        print(f"{run} takes longer than a session: it stops in time, and continues in the next one")
    week = f", of about {WEEK_HOURS} that Kaggle gives for GPUs in a week" * bool(gpus)
    print(f"{len(minutes)} runs in {len(kernels)} sessions, about {total:.1f} hours in all{week}")
    print(_next_commands(top, name, len(kernels), again))
    return kernels


def _done(results: Path, run: str, config: dict) -> bool:
    """Return whether a run is finished here, with the study's settings."""
    if not (results / "notebooks" / f"3-train-{run}.ipynb").is_file():
        return False
    if other := gather.differing(results / "runs" / run, run, config):
        print(f"note: {run}: {other}: it is trained again", file=sys.stderr)
    return not other


def count_frames(config: dict, results: Path) -> int:
    """Return the number of frames of a study; ValueError if neither source nor store tells it."""
    if config["source"] == "phantom":
        return config["phantom_sweeps"] * config["phantom_frames"]
    if (results / "store" / "index.csv").is_file():
        return len((results / "store" / "index.csv").read_text("utf-8").splitlines()) - 1
    if config["source"] == "tg3k":
        return 3585
    raise ValueError("frames: their number is not known yet: give FRAMES=<number>")


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
    _copy_project(PARTS, project)
    text = yaml.safe_dump(config, sort_keys=False)
    write_file(project / "parameters" / f"{config['study']}.yaml", text)
    for run in missing:  # checkpoints of unfinished runs
        for path in (results / "runs" / run).glob("*.pt"):
            copy_whole(path, folder / "results" / config["study"] / "runs" / run / path.name)
    shutil.copytree(wheels, folder / "wheels")
    about = {"title": name.split("/")[1], "id": name, "licenses": [{"name": "other"}]}
    write_file(folder / "dataset-metadata.json", json.dumps(about, indent=1) + "\n")


def _copy_project(parts: tuple[str, ...], folder: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.partial")
    for part in parts:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=unwanted)
        elif (ROOT / part).exists():
            copy_whole(ROOT / part, folder / part)


def download_wheels(folder: Path) -> Path:
    """Download what Kaggle may lack, in the versions and with the hashes of the lock.

    On Kaggle, pip installs from this folder only what is missing or in an unsuitable version.
    """
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra, weights = (needs["optional-dependencies"][name] for name in ("study", "pretrained"))
    roots = [*needs["dependencies"], *weights]  # no internet there for weights
    snakemake = [need for need in extra if need.startswith("snakemake")]
    wanted = _closure([*roots, *snakemake], set())
    entries = re.split(r"(?m)^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text("utf-8"))
    entries = [entry for entry in entries if entry.split("==")[0] in wanted]
    mark = folder / f"{hashlib.sha256(''.join(entries).encode()).hexdigest()[:16]}.lock"
    if mark.is_file():
        return folder
    print("downloading wheels: once, some minutes …", flush=True)
    whole, folder = folder, folder.with_name(f"{folder.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    make = [*pip, "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    get = [*pip, "download", "-qq", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    get += ["--implementation", "cp"]
    get += [word for system in SYSTEMS for word in ("--platform", f"{system}_x86_64")]
    with tempfile.TemporaryDirectory() as work:
        for entry in entries:
            marker = Requirement(entry.splitlines()[0].rstrip(" \\")).marker
            one = ["--require-hashes", "-r", str(write_file(Path(work, "one.lock"), entry))]
            for python, platform in zip(PYTHONS, KAGGLE, strict=True):
                if marker and not marker.evaluate(platform):
                    continue
                for_python = ["--python-version", python]
                for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
                    for_python += ["--abi", abi]
                if subprocess.run([*get, *for_python, *one], capture_output=True).returncode:
                    subprocess.run([*make, *one], check=True)  # no wheel is published: pure Python
        _copy_project(("thyroid_lib", "pyproject.toml", "README.md", "LICENSE"), Path(work, "own"))
        subprocess.run([*make, str(Path(work, "own"))], check=True)
    built = [path.name for path in folder.glob("*.whl") if "-any.whl" not in path.name]
    if odd := [name for name in built if not re.search(r"manylinux|musllinux", name)]:
        raise ValueError(f"{', '.join(odd)}: built for this machine only, no wheel for Kaggle")
    snakemake = next(entry.split()[0] for entry in entries if entry.startswith("snakemake=="))
    write_file(folder / "requirements.txt", "\n".join([*roots, snakemake, ""]))
    write_file(folder / mark.name, "".join(entries))
    shutil.rmtree(whole, ignore_errors=True)
    return folder.rename(whole)


def _closure(needs: list[str], seen: set[tuple[str, str]], extra: str = "") -> set[str]:
    """Return the names of all requirements on Kaggle, except those of its own packages."""
    for need in map(Requirement, needs):
        name = canonicalize_name(need.name)
        marked = not need.marker or any(
            need.marker.evaluate(platform | {"extra": extra}) for platform in KAGGLE
        )
        if marked and name not in PLATFORM:
            for pair in {(name, each) for each in ("", *need.extras)} - seen:
                seen.add(pair)
                with suppress(metadata.PackageNotFoundError):  # for another Python only
                    _closure(metadata.requires(name) or [], seen, pair[1])
    return {name for name, _ in seen}


def _write_kernel(folder: Path, name: str, *, gpu: bool, datasets: list[str], **settings) -> None:
    """Write a folder for `kaggle kernels push`: a notebook with its settings, and its metadata."""
    notebook = load_notebook_node(str(ROOT / "tools" / "kernel.ipynb"))
    notebook = parameterize_notebook(notebook, settings | {"gpu": gpu})
    title = name.split("/")[1]
    write_file(folder / f"{title}.ipynb", nbformat.writes(notebook) + "\n")
    about = {
        "id": name, "title": title, "code_file": f"{title}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": "true",
        "enable_gpu": "true" if gpu else "false", "enable_internet": "false",
        "machine_shape": "NvidiaTeslaT4" if gpu else "",
        "dataset_sources": datasets, "competition_sources": [], "kernel_sources": [],
        "model_sources": [],
    }  # fmt: skip
    write_file(folder / "kernel-metadata.json", json.dumps(about, indent=1) + "\n")


def _next_commands(top: Path, name: str, kernels: int, again: bool) -> str:
    """Return the next commands, one a line."""
    upload, numbers = "version -m again" if again else "create", range(1, kernels + 1)
    return "\n".join([
        "", "to upload:", f"kaggle datasets {upload} -p {top}/dataset --dir-mode zip",
        "", "when the data set is ready, as the first of these says:",
        f"kaggle datasets status {name}",
        *(f"kaggle kernels push -p {top}/kernel-{number}" for number in numbers),
        "", "when the kernels have ended, as the first of these say:",
        *(f"kaggle kernels status {name}-{number}" for number in numbers),
        *(f"kaggle kernels output {name}-{n} -p {top}/output-{n}" for n in numbers),
        f'make gather PARAMETERS={top}/{top.name}.yaml FROM="{top}/output-*"',
    ])  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parameters", required=True, help="the study's YAML")
    parser.add_argument("--owner", required=True, help="your name on Kaggle")
    parser.add_argument("--data", default="", help="data set on Kaggle, owner/slug/version")
    parser.add_argument("--hours", type=float, default=8, help="of a session, 12 at most")
    parser.add_argument("--frames", type=int, default=0, help="of the data, if source is folder")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    data = args.data if args.data.count("/") != 1 else f"{args.data}/1"
    try:
        build(
            args.parameters, owner=args.owner, data=data, hours=args.hours,
            frames=args.frames, overrides=read_words(args.set),
        )  # fmt: skip
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
