"""Store: every case checked, mended and resized once, in memory-mapped arrays that training reads.

    built = build_store(load_cases("folder", "my-data"), "results/mine/store", size=256)

    images.npy  masks.npy  uint8 (N,S,S), opened as memory maps; masks hold 0 and 1
    reference.npy          uint8 (bytes,): mended masks at native size, bits packed, end to end
    index.csv              one row per stored case: names, native size, offset of its packed mask
    quarantine.csv         one row per case that cannot be used, with its reason
    store.json             settings, counts, fingerprint, checksums; written last

Of a study with K > 1 classes, masks are label maps, see `classes`.

The same sources give the same bytes, on any number of processes and in any folder.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from thyroid_lib.data import cases as case_table
from thyroid_lib.data import frames, phantom, tg3k
from thyroid_lib.data.classes import one_class, pack_labels, unpack_labels
from thyroid_lib.data.groups import groups_note, waits
from thyroid_lib.data.locate import find_data
from thyroid_lib.data.look import CHOICES, look
from thyroid_lib.data.shrink import lost_sentence, sizes_needed
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.locks import folder_lock
from thyroid_lib.files.parallel import count_workers, map_in_order
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import print_note, write_error, write_file, write_table

SOURCES = ("phantom", "tg3k", "folder")
FILES = ("images.npy", "masks.npy", "reference.npy", "index.csv", "quarantine.csv")
INDEX = {  # column: dtype; identifiers stay text, "0007" is not 7
    **dict.fromkeys(("case_id", "dataset", "group"), str),
    **dict.fromkeys(("height", "width"), int),
    "foreground": float,  # the native mask's share of the frame
    "official": str,  # side in the data's own split: "train", "test", or "" where it has none
    **{f"{rule}_{what}": int for rule in frames.MENDS for what in ("components", "pixels")},
    "offset": int,  # into reference.npy, bytes
}
# How a row's files are read: column of the case table: default. In index.csv where it is not that.
READING = {"mask_rule": "", "image_highest": 0}
# Further columns of it that are texts, "" by default.
TEXTS = ("annotated", *case_table.DETAILS)
DEFAULTS = READING | dict.fromkeys(TEXTS, "")
# Raise by one with every change that moves a byte of a store: such stores are built again.
# tests/train/test_versions.py fails where that was forgotten.
STORE_VERSION = 1
ALONE = "results/alone"  # where notebooks write that are run by themselves


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store of N cases; `images[i]`, `masks[i]` and `index.iloc[i]` belong together."""

    folder: Path
    images: np.ndarray  # uint8 (N,S,S)
    masks: np.ndarray  # uint8 (N,S,S) of 0 and 1, or label maps
    bits: np.ndarray  # uint8 (bytes,)
    index: pd.DataFrame
    quarantine: pd.DataFrame
    settings: dict  # size, resize, mend; task if it is not gland, classes if there are several
    fingerprint: str
    seen: dict  # what `look` said of the source: layout, masks, images, groups, split

    def __len__(self) -> int:
        return len(self.index)

    def __str__(self) -> str:
        source, groups = ", ".join(self.index["dataset"].unique()), self.index["group"].nunique()
        return f"{len(self)} cases, {groups} groups, {self.size} x {self.size} px, source {source}"

    @property
    def size(self) -> int:
        """Side of the stored squares in pixels."""
        return self.settings["size"]

    @property
    def task(self) -> str:
        """What is segmented: gland, nodule or gland+nodule."""
        return self.settings.get("task", "gland")

    @property
    def classes(self) -> list[str]:
        """Names of the classes 1 to K; one, named by the task, where the study declares none."""
        return self.settings.get("classes", [self.task])

    @property
    def annotated(self) -> np.ndarray:
        """Say which classes were outlined in which case, bool (N,K)."""
        said = self.index.get("annotated", pd.Series(" ".join(self.classes), self.index.index))
        return np.array([[name in of.split() for name in self.classes] for of in said])

    @property
    def mended(self) -> dict[str, int]:
        """Number of masks that each rule of `frames.MENDS` changed."""
        return _mended(self.index)

    def reference(self, i: int) -> np.ndarray:
        """Return the mended mask of case i at its native size, bool (H,W), or its label map."""
        height, width, offset = (self.index[name].iat[i] for name in ("height", "width", "offset"))
        return unpack_labels(self.bits[offset:], (height, width), len(self.classes))


def load_cases(
    source: str | list,
    data: str | Path = "",
    *,
    folder: str | Path = "",
    task: str = "gland",
    classes: Mapping[str, str] | None = None,
    annotated: str = "",
    **choices,
) -> pd.DataFrame:
    """Make the case table of a source: "phantom", "tg3k" or "folder".

    `data` is the path of "tg3k" (folder or zip) or "folder", as `locate.find_data` takes it;
    "phantom" is written to `folder`, drawn by the choices sweeps, frames, seed, text and nodules.
    Those of "folder" are `look.CHOICES`.

    `classes` of a study that has several, {name: values}: levels or colours of masks, scores of
    TI-RADS (DDTI) or tissues (`phantom.TISSUES`); `annotated`: those that the source outlines,
    joined by a space, "" for all, which in TG3K is the gland.

    A list makes one table of several sources, a mapping each (see `settings.Source`); case ids and
    groups then begin with the name of their data set, "a.0449".
    """
    if not isinstance(source, str):
        return _join_sources(source, folder, choices | {"task": task, "classes": classes})
    if source not in SOURCES:
        raise ValueError(f"source: got {source!r}, need one of {', '.join(SOURCES)}")
    name, path = ("folder", folder) if source == "phantom" else ("data", data)
    if not str(path):
        raise ValueError(f"source {source} needs {name}: give a path")
    if source == "tg3k":
        table = tg3k.cases(find_data(data))
        return one_class(table, annotated or "gland", classes) if len(classes or {}) > 1 else table
    how = {"classes": classes or {}, "annotated": annotated}
    if source == "phantom":
        drawn = {name: value for name, value in choices.items() if name not in CHOICES}
        return phantom.cases(folder, task=task, **how, **drawn)
    seen = look(find_data(data), **how, **{n: v for n, v in choices.items() if n in CHOICES})
    for what, said in seen.seen.items():
        print(f"{what}: {said}")
    if note := groups_note(seen.cases):
        print_note(note)
    return seen.cases


def _join_sources(sources: list[dict], folder: str | Path, shared: dict) -> pd.DataFrame:
    """Make one case table of several sources; no case or group of two data sets has one name."""
    tables, seen = [], {}
    for entry in sources:
        own = {name.removeprefix("phantom_"): value for name, value in entry.items()}
        dataset, below = own.pop("dataset"), folder and Path(folder, entry["dataset"])
        print(f"data set {dataset}")
        table = load_cases(own.pop("source"), own.pop("data", ""), folder=below, **(shared | own))
        # a dot is in no name of a data set: "a.b-1" and "a-b.1" stay two
        names = {of: [x and f"{dataset}.{x}" for x in table[of]] for of in ("case_id", "group")}
        tables.append(table.assign(dataset=dataset, **names))
        seen |= {f"{dataset}: {what}": x for what, x in table.attrs.get("seen", {}).items()}
    usual = dict.fromkeys(chain(*tables), "") | READING  # columns that not all sources have
    joined = pd.concat([table.assign(**(usual | dict(table))) for table in tables])
    joined.attrs["seen"] = seen
    return joined.reset_index(drop=True)


def build_store(
    cases: pd.DataFrame,
    folder: str | Path,
    *,
    size: int = 256,
    resize: str = "square",
    mend: Sequence[str] = ("text",),
    task: str = "gland",
    classes: Mapping[str, str] | Sequence[str] = (),
    workers: int | None = None,
    propose: Callable[["Store"], np.ndarray] | None = None,
) -> Store:
    """Check, mend and resize every case in one pass, streamed to disk; reuse what is up to date.

    Each row of `cases` ends up in the store's index or, with its reason, in its quarantine.
    ValueError: not one usable case, or a folder that holds the store of another source.

    size: side of the stored squares in pixels. resize, mend: see `frames.fit_image` and
    `frames.mend_mask`. task, classes: as those of `load_cases`. workers: processes; the result does
    not depend on it. propose: gives the groups of a store whose cases wait for them (`groups:
    proposed`): `leakage.propose_groups`.
    """
    if waits(cases).any() and not propose:
        raise ValueError("groups: proposed are made in 1-preprocess; here, give a table or pattern")
    workers, folder = workers or count_workers(len(cases)), Path(folder)
    settings = {"size": size, "resize": resize, "mend": [r for r in frames.MENDS if r in mend]}
    settings |= {"task": task} if task != "gland" else {}
    settings |= {"classes": [*classes]} if len(classes) > 1 else {}
    cases = _in_order(cases)
    cases = cases.assign(problem=case_table.find_problems(cases))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            fingerprint = fingerprint_of(cases, settings)
            if _held_record(folder, cases, fingerprint) != (fingerprint, settings):
                _build(cases, folder, settings, fingerprint, workers, propose)
        store = open_store(folder, verify=False)
        if any(needed := sizes_needed(store)):
            print_note(lost_sentence(needed, size))
        return store
    except BaseException as error:
        for partly in folder.glob(f"*.{os.getpid()}.partial"):
            partly.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of writing: sources that cannot be read are set aside
            raise write_error(error, error.filename or folder) from error
        raise


def _in_order(cases: pd.DataFrame) -> pd.DataFrame:
    """Give a case table all columns, and its rows the same order on every machine."""
    usual = {"official": ""} | DEFAULTS
    held = {name: cases.get(name, value) for name, value in usual.items()}
    return cases.assign(**held).sort_values(["case_id", "image_path", "mask_path"])


def open_store(folder: str | Path, *, verify: bool = True) -> Store:
    """Open a store; its arrays are memory maps. `verify` compares every file's checksum, too.

    FileNotFoundError: none there, or an incomplete one. ValueError: damaged, or of several stores.
    """
    folder = Path(folder)
    if missing := [name for name in ("store.json", *FILES) if not (folder / name).is_file()]:
        some = "an incomplete" if len(missing) <= len(FILES) else "no"
        problem = f"{some} store at {folder}: {', '.join(missing)} missing"
        raise FileNotFoundError(f"{problem}; build it (1-preprocess)")
    try:
        about = json.loads((folder / "store.json").read_text("utf-8"))
        if verify:
            sums = {"store.json": about.pop("checksum"), **about["files"]}
            found = {"store.json": _hash_json(about)} | _digest_files(folder)
            if changed := [name for name, digest in found.items() if digest != sums[name]]:
                raise ValueError(f"{changed[0]} has changed")
        images, masks, bits = (np.load(folder / name, mmap_mode="r") for name in FILES[:3])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = " ".join(str(error).split())
        problem = f"the store at {folder} is damaged ({what}): delete it and build it again"
        raise ValueError(problem) from error
    tables = zip(FILES[3:], (INDEX | dict.fromkeys(TEXTS, str), str), strict=True)
    tables = (pd.read_csv(folder / n, dtype=d, na_filter=False) for n, d in tables)
    more = about["settings"], about["fingerprint"], about.get("seen", {})
    return Store(folder, images, masks, bits, *tables, *more)


def default_store(cases: pd.DataFrame | None = None, **how) -> Store:
    """Return the store of a notebook that is run by itself, results/alone/store, and print it.

    Where it is missing, or holds another source than `cases`, a small store is built beside it: of
    `cases` or, without any, of phantoms. `how` are arguments of `build_store`.
    """
    name, store = f"{ALONE}/store", None
    with suppress(FileNotFoundError):
        store = open_store(project_path(name))
    if store and cases is not None and _is_foreign(store, cases):
        print(f"{name} is not used: it holds {store}; for it, set source and data as there")
        store = None
    if store is None:
        if cases is None:
            cases = load_cases("phantom", folder=project_path(ALONE) / "phantom")
        name = f"{ALONE}/store-{cases['dataset'].iloc[0]}"
        store = build_store(cases, project_path(name), size=64, **how)
    print(f"{name}: {store}")
    return store


def _mended(index: pd.DataFrame) -> dict[str, int]:
    return {rule: int((index[f"{rule}_components"] > 0).sum()) for rule in frames.MENDS}


def _is_foreign(store: Store, cases: pd.DataFrame) -> bool:
    """Say whether a store comes from another source: no case in common, or other images of them.

    Five cases are looked at; nearly equal ones count, as another version may resize otherwise.
    """
    names = list(zip(store.index["dataset"], store.index["case_id"], strict=True))
    rows, differ = {name: row for row, name in enumerate(names)}, []
    shared = [(rows.get((c["dataset"], c["case_id"])), c) for c in cases.to_dict("records")]
    shared = [(row, SimpleNamespace(**case)) for row, case in shared if row is not None]
    for row, case in shared[:: len(shared) // 5 + 1]:
        if case.dataset == "phantom":  # drawn anew at no cost
            return False
        with suppress(case_table.BadCase):
            image, _ = case_table.read_pair(case)
            fitted = frames.fit_image(image, store.size, store.settings["resize"])
            differ.append(np.abs(fitted.astype(int) - store.images[row]).mean() > 5)
    return not shared or (bool(differ) and all(differ))


def _held_record(folder: Path, cases: pd.DataFrame, wanted: str) -> tuple[str, dict]:
    """Return fingerprint and settings of the intact store in this folder; "", {} without one."""
    try:
        store = open_store(folder)
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError) as error:
        print_note(f"{error.__cause__ or error} in {folder.name}: it is built again")
        return "", {}
    if len(cases) and store.fingerprint != wanted and _is_foreign(store, cases):
        advice = "write to another folder, or delete that one"
        raise ValueError(f"{folder} holds another store ({store}): {advice}")
    return store.fingerprint, store.settings


def fingerprint_of(cases: pd.DataFrame, settings: dict) -> str:
    """Return the SHA-256 over everything that decides what a store holds, case by case.

    The task alone, a name, changes no mask; files hold what the columns `DETAILS` say.
    """
    settings = {name: value for name, value in settings.items() if name != "task"}
    cases, about = _in_order(cases), {"store_version": STORE_VERSION, "settings": settings}
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    pairs = [cases[n].map(case_table.split_references) for n in ("image_path", "mask_path")]
    files = dict.fromkeys(path for column in pairs for row in column for path, _ in row)
    with ThreadPoolExecutor() as pool:  # Python's lock is free while a file is hashed
        digests = dict(zip(files, pool.map(_digest, files), strict=True))
    columns = [cases[name] for name in ("case_id", "group", "dataset", "official")]
    for part_of in (
        lambda path, part: case_table.reference(Path(path).name, part),
        lambda path, part: digests[path],
    ):
        columns += [["\n".join(part_of(*each) for each in row) for row in col] for col in pairs]
    rules = zip(*(cases[name] for name in READING), strict=True)
    for *line, annotated, rule in zip(*columns, cases["annotated"], rules, strict=True):
        line += rule if rule != tuple(READING.values()) else ()
        line += [annotated] * bool(annotated)
        total.update(json.dumps(line).encode() + b"\n")
    return total.hexdigest()


def _hash_json(about: dict) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(path: str | Path) -> str:
    """SHA-256 of a file; "" for a missing or unreadable one, which reading will report."""
    with suppress(OSError):
        return file_digest(path)
    return ""


def _digest_files(folder: Path) -> dict[str, str]:
    return {name: _digest(folder / name) for name in FILES}


def _prepare(case, *, settings: dict) -> tuple[list, tuple | None]:
    """Return a case's row, and its arrays; or a row of the quarantine and None."""
    if case.problem:
        return case.problem, None
    try:
        image, mask = case_table.read_pair(case)
        mask = mask if "classes" in settings else mask > 0
        mask, changed = frames.mend_mask(mask, settings["mend"])
        if not mask.any():
            gone = ", ".join(f"{pixels} px of {rule}" for rule, (_, pixels) in changed.items())
            raise case_table.BadCase("empty mask", f"nothing is left of it after mending: {gone}")
    except case_table.BadCase as bad:
        return case_table.problem_row(case, *bad.args), None
    row = [case.case_id, case.dataset, case.group, *mask.shape, f"{(mask > 0).mean():.6f}"]
    row += [case.official, *chain.from_iterable(changed.values())]
    row += [getattr(case, name) for name in DEFAULTS]
    fit = settings["size"], settings["resize"]
    packed = pack_labels(mask, len(settings.get("classes", [""])))
    return row, (frames.fit_image(image, *fit), frames.fit_mask(mask, *fit), packed)


def _build(cases, folder: Path, settings: dict, fingerprint: str, workers: int, propose):
    """Stream the arrays of all usable cases into partial files, then rename these; tables last."""
    (folder / "store.json").unlink(missing_ok=True)
    # Named after this process: workers of one that was just killed may still write theirs.
    partial_files = [folder / f"{name}.{os.getpid()}.partial" for name in FILES[:3]]
    rows, quarantine, offset, last = [], [], 0, len(INDEX) - 1
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in partial_files]
        _write_headers(files, 0, settings["size"], 0)
        each = (SimpleNamespace(**case) for case in cases.to_dict("records"))
        work = map_in_order(partial(_prepare, settings=settings), each, workers)
        for row, arrays in stack.enter_context(closing(work)):
            if arrays is None:
                quarantine.append(row)
                continue
            for file, array in zip(files, arrays, strict=True):
                file.write(array)
            rows.append((*row[:last], offset, *row[last:]))
            offset += len(arrays[2])
        quarantine = pd.DataFrame(sorted(quarantine), columns=case_table.QUARANTINE, dtype=object)
        if not rows:
            counts = quarantine["reason"].value_counts().items()
            reasons = ", ".join(f"{number} {reason}" for reason, number in counts) or "none"
            first = "".join(f"; the first: {' '.join(row[1:])}" for row in quarantine.values[:1])
            raise ValueError(f"no case can be used, of {len(quarantine)}: {reasons}{first}")
        # the number of cases is known only now; NumPy leaves room for it in the header
        _write_headers(files, len(rows), settings["size"], offset)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    index = pd.DataFrame(rows, columns=[*INDEX, *DEFAULTS])
    if index["annotated"].any():
        index["annotated"] = index["annotated"].replace("", " ".join(settings["classes"]))
    if waits(index).any():
        arrays = (np.load(path, mmap_mode="r") for path in partial_files)
        held = Store(folder, *arrays, index, quarantine, settings, fingerprint, {})
        index["group"] = propose(held)
    for path, name in zip(partial_files, FILES, strict=False):
        os.replace(path, folder / name)
    usual = [name for name, value in DEFAULTS.items() if (index[name] == value).all()]
    index = index.drop(columns=usual)
    for name, table in zip(FILES[3:], (index, quarantine), strict=True):
        write_table(folder / name, table)
    counts = {"cases": len(index), "mended": _mended(index), "quarantined": len(quarantine)}
    about = {"counts": counts, "fingerprint": fingerprint, "settings": settings}
    about |= {"files": _digest_files(folder)}
    about |= {"seen": cases.attrs["seen"]} if "seen" in cases.attrs else {}
    about |= {"checksum": _hash_json(about)}
    write_file(folder / "store.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


def _write_headers(files: list, count: int, size: int, length: int) -> None:
    """Write the .npy headers of the store's three arrays."""
    for file, shape in zip(files, (*[(count, size, size)] * 2, (length,)), strict=True):
        file.seek(0)
        about = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
