"""Merge the results of several machines for one study into results/<study>.

    python tools/gather.py --parameters kaggle/tg3k/tg3k.yaml kaggle/tg3k/output-*

A source is a folder or a zip with the study's folder anywhere in it, such as the output of `kaggle
kernels output`. A step is finished if all its files are there with the recorded checksums, and a
run moreover if it was trained with the study's settings. Of an unfinished run the checkpoint with
most epochs is taken. All sources are checked before anything is written; a contradiction between
them is an error. Nothing here is replaced by something less complete; logs are not copied.
"""

import argparse
import glob
import json
import os
import re
import sys
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.paths import project_path
from thyroid_lib.models import checkpoint
from thyroid_lib.settings import DEFAULTS, LEAKY, TRAINING, list_runs, read_study, read_words, show
from thyroid_lib.study import checksums
from thyroid_lib.study.second_copy import copy_whole

# Settings that change the weights of every run; those of the machine are compared if not `auto`.
MACHINE = "threads", "device", "precision"
TRAINED = ("size", "resize", "val_share", *(key for key in TRAINING if key not in MACHINE))
STORES = "store/store.json", "store-reported/store.json"
# without times
TABLES = ("history.csv", "scores.csv", "thresholds.csv", "calibration.csv", "variations.csv")


@dataclass
class Found:
    """What one source holds of the study."""

    name: str
    folder: Path
    steps: dict[str, list[str]] = field(default_factory=dict)  # finished steps and their files
    begun: dict[str, tuple[int, str]] = field(default_factory=dict)  # run: epochs, training's key
    problems: list[str] = field(default_factory=list)

    def finished(self, run: str) -> bool:
        return f"3-train-{run}" in self.steps

    def epochs(self, run: str) -> int:
        return self.begun.get(run, (-1, ""))[0]


def records_of(files: list[str]) -> list[str]:
    """Return where Snakemake's records of files lie, relative to the study's folder."""
    ids = (urlsafe_b64encode(name.encode()).decode() for name in files)
    return [f".snakemake/metadata/{each}" for each in ids]


def look(name: str, folder: Path, config: dict) -> Found:
    """Find the finished steps and the unfinished runs in a study's folder; read each file once."""
    found, runs = Found(name, folder), list_runs(config)
    for record in sorted(folder.glob("checksums/*.sha256")):
        step, run = record.stem, record.stem.removeprefix("3-train-")
        if not (folder / "notebooks" / f"{step}.ipynb").is_file():
            continue  # the step is to be done again
        if (digests := checksums.read(record)) is None:
            found.problems.append(f"checksums/{record.name} is damaged")
            continue
        files = list(digests)
        if step == "1-preprocess" and not all((folder / file).is_file() for file in files):
            continue  # a notebook that was set to remove the prepared frames
        wrong = [
            file for file, digest in digests.items()
            if not (folder / file).is_file() or file_digest(folder / file) != digest
        ]  # fmt: skip
        if run in runs:
            wrong += sorted({f"runs/{run}/{each}" for each in (*TABLES, "run.json")} - {*files})
        if wrong:
            found.problems.append(f"{step}: {wrong[0]} is missing or not the file that was written")
        elif run in runs and (other := differing(folder / "runs" / run, run, config)):
            found.problems.append(f"{run}: {other}")
        else:
            found.steps[step] = files
    for run in runs:
        for path in sorted(folder.glob(f"runs/{run}/checkpoint*.pt")):
            try:
                state = checkpoint.read(path)
            except (ValueError, OSError) as error:
                found.problems.append(str(error))
                continue
            if not found.finished(run) and state["epoch"] > found.epochs(run):
                found.begun[run] = state["epoch"], state.get("key", "")
    return found


def differing(folder: Path, run: str, config: dict) -> str:
    """Return how a finished run's settings differ from the study's; "" if they do not.

    Only settings that change the weights are compared, and those set to `auto` are not.
    """
    try:
        about = DEFAULTS | json.loads((folder / "run.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return ""  # unfinished, or damaged, which the checksums show
    wanted = {key: config[key] for key in TRAINED} | list_runs(config)[run]
    wanted |= {key: config[key] for key in ("device", "precision") if config[key] != "auto"}
    if wanted["protocol"] == "reported":  # its frames are not mended
        wanted["selection"] = "test"
    elif set(str(about.get("mend", "")).split()) != set(config["mend"]):
        wanted["mend"] = " ".join(config["mend"])
    if wanted["protocol"] not in LEAKY:
        wanted["folds"] = config["folds"]
    return "; ".join(
        f"{key} {show(about[key])}, the study has {show(value)}"
        for key, value in wanted.items()
        if key in about and about[key] != value
    )


def contradictions(sources: list[Found], runs: list[str]) -> Iterator[str]:
    """Yield what differs between sources and must not: frames, or the results of one run."""

    def differ(name: str, among: list[Found]) -> str:
        """Name the sources, if one of them has another content of this file."""
        digests = {file_digest(source.folder / name) for source in among}
        return ", ".join(source.name for source in among) if len(digests) > 1 else ""

    for name in STORES:
        if names := differ(name, [s for s in sources if (s.folder / name).is_file()]):
            yield (
                f"{name} differs between {names}: these trained on other frames, or with another "
                "size or mending; gather each by itself"
            )
    for run in runs:
        finished = [source for source in sources if source.finished(run)]
        for table in TABLES:
            if names := differ(f"runs/{run}/{table}", finished):
                yield (
                    f"{run}: finished in {names}, but its {table} differs: keep one and remove the "
                    "other (other GPUs and versions give other bits)"
                )
                break


def merge(here: Found, others: list[Found], runs: list[str]) -> list[str]:
    """Copy what is missing here from the other sources; return a sentence per step or run.

    A step's notebook is copied last: without it Snakemake does the step again.
    """
    copied = []
    for source in others:
        for path in source.folder.glob("pace/*.json"):  # seconds, by which runs are dealt out
            _copy(path, here.folder, f"pace/{path.name}")
        for step, files in source.steps.items():
            run = step.removeprefix("3-train-")
            if step in here.steps or (step != "1-preprocess" and run not in runs):
                continue  # the comparison needs all runs, and is made here
            last = f"notebooks/{step}.ipynb"
            names = [*sorted({*files} - {last}), *records_of(files)]
            for name in (*names, f"checksums/{step}.sha256", last):
                if (source.folder / name).is_file():
                    _copy(source.folder / name, here.folder, name)
            if run in runs:
                checkpoint.forget(here.folder / "runs" / run)
                here.begun.pop(run, None)
            here.steps[step] = files
            copied.append(f"{step} is done (from {source.name})")
    for run in runs:
        best = max(others, key=lambda source: source.epochs(run))
        epochs = best.epochs(run)
        if here.finished(run) or epochs <= here.epochs(run):
            continue
        if run in here.begun and here.begun[run][1] != best.begun[run][1]:
            print(
                f"note: {run}: {best.name} holds another training of it (other settings, frames, "
                "torch, device or precision): the one here goes on",
                file=sys.stderr,
            )
            continue
        for path in sorted(best.folder.glob(f"runs/{run}/checkpoint*.pt"), reverse=True):
            _copy(path, here.folder, f"runs/{run}/{path.name}")
        here.begun[run] = best.begun[run]
        copied.append(f"{run} goes on after {epochs} epochs (from {best.name})")
    return copied


def _copy(source: Path, study: Path, name: str) -> None:
    """Copy a file to its name in the study's folder; ValueError if that leads out, as by a link."""
    target = study / name
    if not target.resolve().is_relative_to(study.resolve()):
        raise ValueError(f"{source}: {name} leads out of {study}")
    copy_whole(source, target)


def studies_in(path: Path, study: str, work: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each folder of the study in a folder or a zip: its name for messages, and its path.

    Zips are unpacked into the folder `work`. ValueError: the path is neither, or a damaged zip.
    """
    top = path
    if path.is_file():
        top = work / f"{len(list(work.iterdir()))}"
        try:
            with zipfile.ZipFile(path) as zipped:
                zipped.extractall(top)  # strips "..", writes links as plain files
        except Exception as error:  # zipfile raises a dozen kinds on a damaged one
            raise ValueError(f"{path}: cannot be read as a zip ({error})") from None
    elif not path.is_dir():
        raise ValueError(f"{path}: there is no such folder or zip")
    else:
        for archive in sorted(path.rglob("*.zip")):
            yield from studies_in(archive, study, work)
    for folder in (*([top] if top.name == study else []), *sorted(top.rglob(study))):
        if any((folder / part).is_dir() for part in ("checksums", "runs", "store")):
            inside = folder.relative_to(top).as_posix()
            yield path if inside in (".", study, f"results/{study}") else path / inside, folder


def gather(parameters: str | Path, sources: list[Path], overrides: dict | None = None) -> str:
    """Merge the sources into results/<study>; return what is finished, missing and to do next.

    Raises:
        ValueError: a source cannot be read, or sources contradict each other; nothing is written.
        OSError: another process works on the study, or the disk is full; start again later.
    """
    config = read_study([parameters], overrides=overrides)
    study, runs = config["study"], list(list_runs(config))
    results = project_path(f"results/{study}")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders: list[tuple[Path, Path]] = []
        for source in sources:
            folders += (new := list(studies_in(source.absolute(), study, work)))
            if not new:
                print(f"note: {source} holds nothing of the study {study}", file=sys.stderr)
        if not folders:
            raise ValueError(f"nothing of the study {study} in {len(sources)} sources")
        above = os.path.commonpath([name.parent for name, _ in folders])
        others = [look(name.relative_to(above).as_posix(), path, config) for name, path in folders]
        stack.enter_context(checksums.claim(results))
        here = look(str(results), results, config)
        for source in (here, *others):
            for problem in source.problems:
                print(f"note: {source.name}: {problem}: left out", file=sys.stderr)
        if found := list(contradictions([here, *others], runs)):
            raise ValueError("\n".join(found))
        copied = merge(here, others, runs)
    missing = [run for run in runs if not here.finished(run)]
    lines = [*(copied or ["nothing new"])]
    lines += [f"{len(runs) - len(missing)} of {len(runs)} runs are done"]
    for run in missing:
        begun = f"goes on after {here.epochs(run)} epochs" if run in here.begun else "not begun"
        lines.append(f"{run}: {begun}")
    # SET takes a setting as one word, without quotes
    given = [f"{key}={json.dumps(value, default=str)}" for key, value in (overrides or {}).items()]
    text = " ".join(re.sub('[ "]', "", word) for word in given)
    words = f"PARAMETERS={parameters}" + (f' SET="{text}"' if text else "")
    if not missing:
        return "\n".join([*lines, f"next: make study {words}    # compares the runs"])
    lines.append(f"next: make kaggle {words} OWNER=<your name>")
    return "\n".join([*lines, f"or, to finish here: make study {words}"])


def matching(words: list[str]) -> list[Path]:
    """Expand ~ and wildcards as a shell does; make passes the words on unexpanded.

    A word without a match is kept, so that it is named in an error.
    """
    paths = [Path(word).expanduser() for word in words]
    found = {path: [] if path.exists() else sorted(glob.glob(str(path))) for path in paths}
    return [Path(each) for path in paths for each in found[path] or [path]]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="*", help="folders or zips")
    parser.add_argument("--parameters", required=True, help="the study's YAML")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    try:
        if not args.sources:
            raise ValueError('nothing to gather: FROM="folder1 folder2.zip"')
        print(gather(args.parameters, matching(args.sources), read_words(args.set)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
