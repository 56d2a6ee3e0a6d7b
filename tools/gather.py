"""Merge what several machines made of one study into results/<study>, or refuse and say why.

    python tools/gather.py --parameters kaggle/tg3k/tg3k.yaml kaggle/tg3k/output-*

Each source is a folder or a zip with the study's folder anywhere in it, as `kaggle kernels output`
brings it. A step counts as done if every file that it wrote is there and has the checksum that was
written down for it, and a run if it was trained with the study's settings. Of a run that several
have begun the one that came furthest goes on. Nothing is written before all is found to fit
together, and nothing here is replaced by less. Logs stay where they are.
"""

import argparse
import glob
import json
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.writing import project_path
from thyroid_lib.models import checkpoint
from thyroid_lib.settings import LEAKY, list_runs, read_study, show
from thyroid_lib.study import checksums

TRAINED = (  # settings that make other weights, for every run
    "size", "resize", "width", "epochs", "batch_size", "lr", "selection", "augment", "val_share",
)  # fmt: skip
STORES = "store/store.json", "store-reported/store.json"
# What zipfile raises on a zip that is cut, altered, encrypted or of an unknown kind.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError,
)  # fmt: skip
TABLES = ("history.csv", "scores.csv", "thresholds.csv", "calibration.csv")  # without times


@dataclass
class Found:
    """What one source holds of the study."""

    name: str
    folder: Path
    steps: dict[str, list[str]] = field(default_factory=dict)  # sound ones, and their files
    begun: dict[str, tuple] = field(default_factory=dict)  # run: (epochs, steps within the next)
    keys: dict[str, str] = field(default_factory=dict)  # run: of the training that it has begun
    problems: list[str] = field(default_factory=list)


def look(name: str, folder: Path, config: dict) -> Found:
    """Find the sound steps and the runs begun in a study's folder; read every file once.

    A run that is finished with other settings than the study's is none of its runs.
    """
    found, runs = Found(name, folder), list_runs(config)
    for record in sorted(folder.glob("checksums/*.sha256")):
        step = record.stem
        if not (folder / "notebooks" / f"{step}.ipynb").is_file():
            continue  # it was to be done again
        if (sums := checksums.read(record)) is None:
            found.problems.append(f"checksums/{record.name} is damaged")
            continue
        names = list(sums)
        # a notebook that was told to leave the prepared frames out
        if step == "1-preprocess" and not all((folder / n).is_file() for n in names):
            continue
        wrong = [name for name in names if not _is(folder / name, sums[name])]
        if (run := step.removeprefix("3-train-")) in runs:
            needed = [f"runs/{run}/{table}" for table in (*TABLES, "run.json")]
            wrong += sorted({*needed} - {*names})
        if wrong:
            found.problems.append(f"{step}: {wrong[0]} is missing or not the file that was written")
        elif run in runs and (other := differing(folder / "runs" / run, run, config)):
            found.problems.append(f"{run}: {other}")
        else:
            found.steps[step] = names
    for run in runs:
        states = []
        for path in sorted(folder.glob(f"runs/{run}/checkpoint*.pt")):
            try:
                states.append(checkpoint.read(path))
            except (ValueError, OSError) as error:
                found.problems.append(str(error))
        if states and f"3-train-{run}" not in found.steps:
            state = max(states, key=_reached)
            found.begun[run], found.keys[run] = _reached(state), state.get("key", "")
    return found


def differing(folder: Path, run: str, config: dict) -> str:
    """Say in what a finished run's settings differ from the study's; "" if in none.

    Only what moves weights is compared, and of `auto` settings nothing: other scores are made anew
    by the workflow, without training. What an older run.json does not hold is taken as the same.
    """
    try:
        about = json.loads((folder / "run.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""  # not finished, or damaged: others say so
    if not isinstance(about, dict):
        return "run.json holds no settings"
    wanted = {key: config[key] for key in TRAINED} | list_runs(config)[run]
    wanted |= {key: config[key] for key in ("device", "precision") if config[key] != "auto"}
    if wanted["protocol"] == "reported":  # whose frames are as that study had them
        wanted["selection"] = "test"
    elif set(str(about.get("mend", "")).split()) != set(config["mend"]):
        wanted["mend"] = " ".join(config["mend"])
    if wanted["protocol"] not in LEAKY:
        wanted["folds"] = config["folds"]
    texts = [
        f"{key} {show(about[key])}, the study has {show(value)}"
        for key, value in wanted.items()
        if key in about and about[key] != value
    ]
    return "; ".join(texts)


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _reached(state: dict) -> tuple[int, int]:
    return state["epoch"], (state.get("within") or {}).get("steps", 0)


def contradictions(all_found: list[Found], runs: list[str]) -> list[str]:
    """Say in what these do not fit together: other frames, or other results of one run."""
    said = []
    for name in STORES:
        texts = [(f.name, f.folder.joinpath(name).read_bytes()) for f in all_found
                 if f.folder.joinpath(name).is_file()]  # fmt: skip
        if len({text for _, text in texts}) > 1:
            said.append(
                f"{name} differs between {_who(texts)}: these trained on other frames, or with "
                "another size or mending; gather each by itself"
            )
    for run in runs:
        done = [found for found in all_found if f"3-train-{run}" in found.steps]
        for table in TABLES:
            digests = [(f.name, file_digest(f.folder / "runs" / run / table)) for f in done]
            if len({digest for _, digest in digests}) > 1:
                said.append(
                    f"{run}: finished in {_who(digests)}, but its {table} differs: keep one "
                    "and take the other away (other GPUs and versions give other bits)"
                )
                break
    return said


def _who(pairs: list[tuple]) -> str:
    return ", ".join(name for name, _ in pairs)


def merge(here: Found, others: list[Found], runs: list[str]) -> list[str]:
    """Bring what is missing here from the others; return what was brought, in words.

    A step's notebook comes last: without it Snakemake does the step again.
    """
    brought = []
    for found in others:
        for step, names in found.steps.items():
            run = step.removeprefix("3-train-")
            if step in here.steps or (step != "1-preprocess" and run not in runs):
                continue  # what compares the runs is made of all of them, here
            also = [f"checksums/{step}.sha256"]
            also += [_snakemake_record(name) for name in names]
            last = f"notebooks/{step}.ipynb"
            for name in [*sorted({*names} - {last}), *also, last]:
                if (found.folder / name).is_file():
                    _bring(found.folder / name, here.folder, name)
            if run in runs:
                checkpoint.forget(here.folder / "runs" / run)
                here.begun.pop(run, None)
            here.steps[step] = names
            brought.append(f"{step} is done (from {found.name})")
    for run in runs:
        best = max(others, key=lambda found: found.begun.get(run, ()), default=here)
        reached = best.begun.get(run, ())
        if f"3-train-{run}" in here.steps or reached <= here.begun.get(run, ()):
            continue
        if run in here.begun and here.keys[run] != best.keys[run]:
            print(
                f"note: {run}: {best.name} has begun another training of it (other settings, "
                "frames, torch, device or precision): the one here goes on",
                file=sys.stderr,
            )
            continue
        for path in sorted(best.folder.glob(f"runs/{run}/checkpoint*.pt"), reverse=True):
            _bring(path, here.folder, f"runs/{run}/{path.name}")
        here.begun[run] = reached
        brought.append(f"{run} goes on after {reached[0]} epochs (from {best.name})")
    return brought


def _snakemake_record(name: str) -> str:
    return f".snakemake/metadata/{urlsafe_b64encode(name.encode()).decode()}"


def _bring(source: Path, study: Path, name: str) -> None:
    """Copy a file, whole or not at all, however large it is, to its name below the study's folder.

    Raises:
        ValueError: the name leads out of that folder, if only by a link in it.
    """
    target = study / name
    if not target.resolve().is_relative_to(study.resolve()):
        raise ValueError(f"{source}: {name} leads out of {study}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def studies_in(path: Path, study: str, work: Path) -> Iterator[tuple[Path, Path]]:
    """Find the folders of a study in a folder or a zip, which is unpacked into `work`.

    Yields where each was found, as the user knows it, and where it lies now.

    Raises:
        ValueError: it is neither, it is damaged, or the study is not in it.
    """
    if path.is_file():
        top = work / f"{len(list(work.iterdir()))}"
        try:
            _unpack(path, top)
        except DAMAGED as error:
            raise ValueError(f"{path}: is no zip that can be read ({error})") from None
    elif path.is_dir():
        top = path
        for archive in sorted(path.rglob("*.zip")):
            yield from studies_in(archive, study, work)
    else:
        raise ValueError(f"{path}: there is no such folder or zip")
    folders = [top] if top.name == study else []
    folders += [each for each in sorted(top.rglob(study)) if each.is_dir()]
    known = ("checksums", "runs", "store")
    for folder in folders:
        if any((folder / part).is_dir() for part in known):
            inside = folder.relative_to(top).as_posix()
            plain = inside in (".", study, f"results/{study}")
            yield path if plain else path / inside, folder


def _unpack(archive: Path, top: Path) -> None:
    """Write a zip's plain files below a folder; names that lead out of it are refused."""
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            name = PurePosixPath(entry.filename)
            if entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16):
                continue
            if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
                raise ValueError(f"the name {entry.filename!r} leads out of it")
            target = top / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with zipped.open(entry) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)


def gather(parameters: str | Path, sources: list[Path], overrides: dict | None = None) -> str:
    """Merge the sources into results/<study>; return what is done, what is missing and what next.

    Raises:
        ValueError: a source cannot be read, or these contradict each other; nothing is written.
        OSError: the study is at work, or the disk takes no more; start again and it goes on.
    """
    config = read_study([parameters], overrides=overrides)
    study, runs = config["study"], list(list_runs(config))
    results = project_path(f"results/{study}")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places: list[tuple[Path, Path]] = []
        for source in sources:
            places += (new := list(studies_in(source.absolute(), study, work)))
            if not new:
                print(f"note: {source} holds nothing of the study {study}", file=sys.stderr)
        names = _names([where for where, _ in places])
        others = [
            look(name, folder, config) for name, (_, folder) in zip(names, places, strict=True)
        ]
        if not others:
            raise ValueError(f"nothing of the study {study} in {len(sources)} sources")
        stack.enter_context(checksums.claim(results))
        here = look(str(results), results, config)
        for found in (here, *others):
            for problem in found.problems:
                print(f"note: {found.name}: {problem}: left out", file=sys.stderr)
        if said := contradictions([here, *others], runs):
            raise ValueError("\n".join(said))
        brought = merge(here, others, runs)
    return report(parameters, here, runs, brought, overrides)


def _names(places: list[Path]) -> list[str]:
    """Return the places without the folders that all of them lie in: short, and each another."""
    above = Path(os.path.commonpath([place.parent for place in places])) if places else None
    return [place.relative_to(above).as_posix() for place in places]


def report(
    parameters: str | Path,
    here: Found,
    runs: list[str],
    brought: list[str],
    overrides: dict | None = None,
) -> str:
    """Say what was brought, how far the study is, and the next command."""
    done = [run for run in runs if f"3-train-{run}" in here.steps]
    begun = {run: here.begun[run] for run in runs if run in here.begun and run not in done}
    missing = [run for run in runs if run not in done and run not in begun]
    lines = [*brought] or ["nothing new"]
    lines.append(f"{len(done)} of {len(runs)} runs are done")
    lines += [f"{run}: goes on after {epochs} epochs" for run, (epochs, _) in begun.items()]
    lines += [f"{run}: not begun" for run in missing]
    given = " ".join(f"{key}={_word(value)}" for key, value in (overrides or {}).items())
    which = f"PARAMETERS={parameters}" + (f' SET="{given}"' if given else "")
    if len(done) < len(runs):
        lines.append(f"next: make kaggle {which} OWNER=<your name>")
        lines.append(f"or, to finish here: make study {which}")
    else:
        lines.append(f"next: make study {which}    # compares the runs")
    return "\n".join(lines)


def _word(value) -> str:
    """A setting as SET takes it: one word, without quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def matching(words: list[str]) -> list[Path]:
    """Return the paths that words mean, which hold ~ and wildcards as a shell's do; none is lost.

    make hands them over as they are, since a shell would take more than that for its own.
    """
    paths: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        found = [] if path.exists() else sorted(glob.glob(str(path)))
        paths += map(Path, found or [path])
    return paths


def main() -> int:
    """Run the command line."""
    from snakemake.cli import parse_config

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="*", help="folders or zips")
    parser.add_argument("--parameters", required=True, help="the study's YAML")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    if not args.sources:
        print('error: nothing to gather: FROM="folder1 folder2.zip"', file=sys.stderr)
        return 2
    try:
        print(gather(args.parameters, matching(args.sources), parse_config(args.set)))
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename
        told = f"{error.strerror}: {error.filename}" if named else error
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
