"""Store: what training reads, checked, mended and resized once, so that no image is opened again.

    built = build_store(load_cases("folder", "my-data"), "results/mine/store", size=256)

    images.npy  masks.npy  uint8 (N,S,S), opened as memory maps; masks hold 0 and 1
    reference.npy          uint8 (bytes,): mended masks at native size, bits packed, end to end
    index.csv              one row per stored case: what it is, native size, where its bits begin
    quarantine.csv         one row per case that cannot be used, with its reason
    store.json             settings, counts, fingerprint, checksums; written last: then it is whole

The same sources give the same bytes, on any number of processes and in any place: no file holds a
time or an absolute path.
"""

import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from tokenize import TokenError
from types import SimpleNamespace

import numpy as np
import pandas as pd

from thyroid_lib.data import folder as folder_source
from thyroid_lib.data import frames, phantom, tg3k
from thyroid_lib.data.cases import BadCase, problem_row, read_pair, table_problems
from thyroid_lib.data.locate import find_data
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.locks import folder_lock
from thyroid_lib.files.parallel import count_workers, map_in_order
from thyroid_lib.files.writing import print_note, write_error, write_file

SOURCES = {
    "phantom": lambda data, made: phantom.cases(**made),
    "tg3k": lambda data, made: tg3k.cases(data),
    "folder": lambda data, made: folder_source.cases_in(data),
}
FILES = ("images.npy", "masks.npy", "reference.npy", "index.csv", "quarantine.csv")
INDEX = {  # column: dtype; identifiers stay text, "0007" is not 7
    "case_id": str,
    "dataset": str,
    "group": str,
    "height": int,
    "width": int,
    "foreground": float,  # the native mask's share of the frame
    "official": str,  # side in the data's own split: "train", "test", or "" where it has none
    **{f"{rule}_{what}": int for rule in frames.MENDS for what in ("components", "pixels")},
    "offset": int,  # into reference.npy, bytes
}
QUARANTINE = dict.fromkeys(("case_id", "file", "reason", "detail"), str)
# Raise by one with every change that moves a byte of a store: of reading, mending, resizing or
# packing. Stores of another version are built again. tests/train/test_versions.py fails where that
# was forgotten.
STORE_VERSION = 1
SOURCE = ["image_path", "mask_path", "case_id", "group", "dataset", "official"]
CHUNK = 32  # cases that a process takes at a time


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store of N cases; `images[i]`, `masks[i]` and `index.iloc[i]` belong together."""

    folder: Path
    images: np.ndarray  # uint8 (N,S,S)
    masks: np.ndarray  # uint8 (N,S,S) of 0 and 1
    bits: np.ndarray  # uint8 (bytes,)
    index: pd.DataFrame
    quarantine: pd.DataFrame
    settings: dict  # size, resize, mend
    fingerprint: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Side of the stored squares in pixels."""
        return self.settings["size"]

    @property
    def mended(self) -> dict[str, int]:
        """Number of masks that each rule of `frames.MENDS` changed."""
        return {rule: int((self.index[f"{rule}_components"] > 0).sum()) for rule in frames.MENDS}

    def reference(self, i: int) -> np.ndarray:
        """Return the mended mask of case i at its native size, bool (H,W)."""
        height, width, offset = (self.index[name].iat[i] for name in ("height", "width", "offset"))
        packed = self.bits[offset : offset - (-height * width // 8)]
        return np.unpackbits(packed, count=height * width).reshape(height, width).view(bool)


def load_cases(
    source: str,
    data: str | Path = "",
    *,
    folder: str | Path = "",
    sweeps: int = 8,
    frames: int = 12,
    seed: int = 0,
    text: bool = True,
) -> pd.DataFrame:
    """Make the case table of a source.

    Args:
        source: a key of `SOURCES`.
        data: where "tg3k" (folder or zip) or "folder" lies, as `datasets.find_data` takes it.
        folder, sweeps, frames, seed, text: where "phantom" is written, and what is drawn.

    Raises:
        ValueError: unknown source, or the source's own complaint.
    """
    if source not in SOURCES:
        raise ValueError(f"source: got {source!r}, need one of {', '.join(SOURCES)}")
    place = {"data": data} if source != "phantom" else {"folder": folder}
    if not all(str(path) for path in place.values()):
        raise ValueError(f"source {source} needs {', '.join(place)}: give a path")
    made = {"folder": folder, "sweeps": sweeps, "frames": frames, "seed": seed, "text": text}
    return SOURCES[source](data if source == "phantom" else find_data(data), made)


def build_store(
    cases: pd.DataFrame,
    folder: str | Path,
    *,
    size: int = 256,
    resize: str = "square",
    mend: Sequence[str] = ("text",),
    workers: int | None = None,
) -> Store:
    """Check, mend and resize every case in one pass, streamed to disk; open what is up to date.

    A case that cannot be used is set aside with its reason: each row of `cases` ends up in the
    store's index or in its quarantine.

    Args:
        cases: a case table.
        folder: where the store is written; files of other names are left alone.
        size: side of the stored squares in pixels.
        resize: "square" or "letterbox", see `frames.fit_image`.
        mend: rules that mend the masks, see `frames.mend_mask`.
        workers: processes; by default one per core, eight at most, and one if the cases are few.
            The result does not depend on it.

    Raises:
        ValueError: a wrong argument, or not one usable case; then the reasons are counted.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise ValueError(f"size: got {size!r}, need a whole number of pixels, 1 to 4096")
    if resize not in frames.RESIZES:
        raise ValueError(f"resize: got {resize!r}, need one of {', '.join(frames.RESIZES)}")
    if workers is None:
        workers = count_workers(len(cases))
    if workers < 1:
        raise ValueError(f"workers: got {workers}, need 1 or more")
    folder = Path(folder)
    frames.mend_mask(np.zeros((1, 1), bool), mend)  # an unknown rule stops here, before any work
    mend = [rule for rule in frames.MENDS if rule in mend]
    settings = {"size": size, "resize": resize, "mend": mend}
    cases = cases.assign(official=cases.get("official", "")).reset_index(drop=True)
    cases = cases.assign(problem=table_problems(cases).apply(list, axis=1, result_type="reduce"))
    # in the same order on every machine; sources give it so, and a sorted copy would cost memory
    keys = ["case_id", "image_path", "mask_path"]
    if any(a > b for a, b in pairwise(cases[keys].itertuples(index=False, name=None))):
        cases = cases.sort_values(keys)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            if not _holds(folder, cases, settings, workers):
                _build(cases, folder, settings, workers)
    except BaseException as error:
        for partly in folder.glob(f"*.{os.getpid()}.partial"):
            partly.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of writing: sources that cannot be read are set aside
            raise write_error(error, error.filename or folder) from error
        raise
    return open_store(folder, verify=False)


def _holds(folder: Path, cases: pd.DataFrame, settings: dict, workers: int) -> bool:
    """Say whether a sound store of these cases lies there already."""
    try:
        store = open_store(folder)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        print_note(f"{error.__cause__ or error} in {folder.name}: it is built again")
        return False
    return _is_up_to_date(store, cases, settings, workers)


def open_store(folder: str | Path, *, verify: bool = True) -> Store:
    """Open a store; its arrays are memory maps, read when they are used.

    Args:
        folder: where `build_store` wrote it.
        verify: compare every file's checksum, too; reads them whole, once.

    Raises:
        FileNotFoundError: no store there, or one that is not whole.
        ValueError: its files are damaged or do not belong together.
    """
    folder = Path(folder)
    if missing := [name for name in ("store.json", *FILES) if not (folder / name).is_file()]:
        some = "an incomplete" if len(missing) <= len(FILES) else "no"
        raise FileNotFoundError(
            f"{some} store at {folder}: {', '.join(missing)} missing; build it (1-preprocess)"
        )
    try:
        about = json.loads((folder / "store.json").read_text("utf-8"))
        settings, fingerprint = about["settings"], about["fingerprint"]
        if verify:
            _need(about.pop("checksum") == _checksum(about), "store.json has changed")
            for name, digest in _digest_files(folder).items():
                _need(digest == about["files"][name], f"{name} has changed")
        images, masks, bits = (np.load(folder / name, mmap_mode="r") for name in FILES[:3])
        index, quarantine = (
            pd.read_csv(folder / name, dtype=dtype, na_filter=False)[list(dtype)]
            for name, dtype in zip(FILES[3:], (INDEX, QUARANTINE), strict=True)
        )
        shape = (len(index), settings["size"], settings["size"])
        for name, array in (("images", images), ("masks", masks)):
            _need(
                array.shape == shape and array.dtype == np.uint8,
                f"{name}.npy is {array.dtype} {array.shape}, index.csv asks for uint8 {shape}",
            )
        lengths = -(-index["height"] * index["width"] // 8)  # bytes
        _need(
            bits.shape == (lengths.sum(),)
            and (index["offset"] + lengths == lengths.cumsum()).all(),
            f"reference.npy holds {bits.size} bytes, index.csv asks for {lengths.sum()}",
        )
    except (ValueError, KeyError, TypeError, IndexError, EOFError, TokenError) as error:
        what = " ".join(str(error).split())
        raise ValueError(
            f"the store at {folder} is damaged ({what}): delete it and build it again"
        ) from error
    return Store(folder, images, masks, bits, index, quarantine, settings, fingerprint)


def _chunks(cases: pd.DataFrame) -> Iterator[list[SimpleNamespace]]:
    """Cut a case table into lists of a few cases, in order."""
    for start in range(0, len(cases), CHUNK):
        part = cases.iloc[start : start + CHUNK].to_dict("records")
        yield [SimpleNamespace(**case) for case in part]


def _digest_cases(chunk: list) -> list[tuple[str, str]]:
    """SHA-256 of image and of mask, for each of these cases."""
    return [(_sha256(case.image_path), _sha256(case.mask_path)) for case in chunk]


def _checksum(about: dict) -> str:
    """SHA-256 of what store.json says."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each of a store's files."""
    with ThreadPoolExecutor() as pool:  # Python's lock is free while they are summed up
        return dict(zip(FILES, pool.map(lambda name: _sha256(folder / name), FILES), strict=True))


class _Fingerprint:
    """SHA-256 over everything that decides what a store holds, case by case."""

    def __init__(self, settings: dict):
        about = {"store_version": STORE_VERSION, "settings": settings}
        self.total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())

    def add(self, source: tuple, digests: tuple) -> None:
        """Add the next case: its columns of `SOURCE` and the digests of its two files."""
        image, mask, *names = source
        line = [*names, Path(image).name, Path(mask).name, *digests]
        self.total.update(json.dumps(line).encode() + b"\n")

    def hexdigest(self) -> str:
        return self.total.hexdigest()


def _is_up_to_date(store: Store, cases: pd.DataFrame, settings: dict, workers: int) -> bool:
    fingerprint = _Fingerprint(settings)
    sources = cases[SOURCE].itertuples(index=False, name=None)
    with closing(map_in_order(_digest_cases, _chunks(cases), workers)) as digests:
        for source, digest in zip(sources, chain.from_iterable(digests), strict=True):
            fingerprint.add(source, digest)
    return fingerprint.hexdigest() == store.fingerprint


def _sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes; "" for a case's missing or unreadable file, which will say so."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait forever
            return ""
        return file_digest(path)
    except OSError:
        return ""


def _prepare(case, settings: dict) -> tuple[dict, tuple]:
    """Make everything the store holds of one case: its row of the index and three arrays.

    Raises:
        BadCase: it cannot be used.
    """
    image, mask = read_pair(case.image_path, case.mask_path)
    mask, changed = frames.mend_mask(mask, settings["mend"])
    if not mask.any():
        gone = ", ".join(f"{pixels} px of {rule}" for rule, (_, pixels) in changed.items())
        raise BadCase("empty mask", f"nothing is left of it after mending: {gone}")
    row = {
        "case_id": case.case_id,
        "dataset": case.dataset,
        "group": case.group,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "foreground": f"{np.count_nonzero(mask) / mask.size:.6f}",
        "official": case.official,
    }
    for rule, (components, pixels) in changed.items():
        row |= {f"{rule}_components": components, f"{rule}_pixels": pixels}
    fit = settings["size"], settings["resize"]
    return row, (frames.fit_image(image, *fit), frames.fit_mask(mask, *fit), np.packbits(mask))


def _prepare_chunk(
    task: tuple[int, list], *, settings: dict, squares: list[Path], start: int
) -> list[tuple]:
    """Prepare a few cases and write their squares in place, the first one's at the task's slot.

    Args:
        start: where the arrays begin in the files `squares`, bytes.

    Returns:
        For each case its digests, its row of the index and its mask's bits; or, where it cannot
        be used and its slot stays empty, its row of the quarantine and None.
    """
    first, chunk = task
    made = []
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "r+b", buffering=0)) for path in squares]
        for slot, (case, digests) in enumerate(
            zip(chunk, _digest_cases(chunk), strict=True), first
        ):
            if isinstance(case.problem, list):
                made.append((digests, case.problem, None))
                continue
            try:
                row, (*pair, bits) = _prepare(case, settings)
            except BadCase as bad:
                made.append((digests, problem_row(case, bad.reason, bad.detail), None))
                continue
            for file, square in zip(files, pair, strict=True):
                file.seek(start + slot * square.size)
                _write(file, square)
            made.append((digests, row, bits.tobytes()))
    return made


def _build(cases: pd.DataFrame, folder: Path, settings: dict, workers: int) -> None:
    """Stream all usable cases into partial files, then move these into place, store.json last."""
    (folder / "store.json").unlink(missing_ok=True)
    # Named after this process: workers of one that was just killed may still be at theirs.
    partial_files = [folder / f"{name}.{os.getpid()}.partial" for name in FILES[:4]]
    square = (settings["size"], settings["size"])
    slots, quarantine, offset = [], [], 0  # slots: of the cases that can be used
    mended = dict.fromkeys(frames.MENDS, 0)
    fingerprint = _Fingerprint(settings)
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "w+b")) for path in partial_files[:3]]
        table = stack.enter_context(open(partial_files[3], "w", encoding="utf-8", newline=""))
        index = csv.writer(table, lineterminator="\n")
        index.writerow(INDEX)
        start = _write_header(files[0], (len(cases), *square))
        files[2].seek(_write_header(files[2], (0,)))
        prepare = partial(_prepare_chunk, settings=settings, squares=partial_files[:2], start=start)
        tasks = ((place * CHUNK, chunk) for place, chunk in enumerate(_chunks(cases)))
        prepared = stack.enter_context(closing(map_in_order(prepare, tasks, workers)))
        sources = cases[SOURCE].itertuples(index=False, name=None)
        each = zip(sources, chain.from_iterable(prepared), strict=True)
        for slot, (source, (digests, row, bits)) in enumerate(each):
            fingerprint.add(source, digests)
            if bits is None:
                quarantine.append(row)
                continue
            slots.append(slot)
            index.writerow((*row.values(), offset))
            offset += files[2].write(bits)
            for rule in mended:
                mended[rule] += row[f"{rule}_components"] > 0
        _need_cases(slots, quarantine)
        for file in files[:2]:
            _close_gaps(file, start, slots, square)
        # how many rows there are is known only now, and NumPy leaves room for it
        shapes = ((len(slots), *square), (len(slots), *square), (offset,))
        for file, shape in zip(files, shapes, strict=True):
            if _write_header(file, shape) != start:
                raise RuntimeError("NumPy's .npy header grew with the count, the rows would shift")
        for file in (*files, table):
            file.flush()
        with ThreadPoolExecutor() as pool:  # on to the disk, and summed up meanwhile
            synced = [pool.submit(os.fsync, file.fileno()) for file in (*files, table)]
            sums = [*pool.map(_sha256, partial_files)]
            for each in synced:
                each.result()
    for path, name in zip(partial_files, FILES, strict=False):
        os.replace(path, folder / name)
    quarantine = pd.DataFrame(sorted(quarantine), columns=list(QUARANTINE))
    sums += [
        _sha256(write_file(folder / FILES[4], quarantine.to_csv(index=False, lineterminator="\n")))
    ]
    about = {
        "counts": {"cases": len(slots), "mended": mended, "quarantined": len(quarantine)},
        "files": dict(zip(FILES, sums, strict=True)),
        "fingerprint": fingerprint.hexdigest(),
        "settings": settings,
    }
    about |= {"checksum": _checksum(about)}
    write_file(folder / "store.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


def _close_gaps(file, start: int, slots: list[int], square: tuple[int, int]) -> None:
    """Move the squares of these slots together, in place, and cut the file off behind them."""
    size = square[0] * square[1]  # bytes
    for place, slot in enumerate(slots):
        if place != slot:
            file.seek(start + slot * size)
            content = file.read(size)
            file.seek(start + place * size)
            file.write(content)
    file.truncate(start + len(slots) * size)


def _write(file, array: np.ndarray) -> None:
    """Write all of an array, or raise: an unbuffered file may take less and say nothing."""
    if file.write(array) != array.nbytes:
        raise OSError(errno.ENOSPC, "the disk is full", file.name)


def _write_header(file, shape: tuple[int, ...]) -> int:
    """Write the .npy header of a uint8 array at the file's start; return where it ends."""
    file.seek(0)
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.tell()


def _need_cases(rows: list, quarantine: list) -> None:
    """Raise ValueError if nothing can be stored; it counts the reasons and quotes one."""
    if not rows:
        reasons = pd.Series([row[2] for row in quarantine], dtype=object).value_counts()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        first = f"; the first: {' '.join(sorted(quarantine)[0][1:])}" if quarantine else ""
        raise ValueError(f"no case can be used, of {len(quarantine)}: {counts or 'none'}{first}")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def phantom_store(folder: str | Path) -> Store:
    """Build the store of the embedded phantoms, for a notebook that is run by itself."""
    cases = load_cases("phantom", folder=Path(folder) / "phantom")
    return build_store(cases, Path(folder) / "store", size=64)
