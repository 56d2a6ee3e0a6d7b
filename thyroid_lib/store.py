"""Store: what training reads, checked, mended and resized once, so that no image is opened again.

    built = build_store(load_cases("folder", "my-data"), "results/mine/store", size=256)

    images.npy  masks.npy  uint8 (N,S,S), opened as memory maps; masks hold 0 and 1
    reference.npy          uint8 (bytes,): mended masks at native size, bits packed, end to end
    index.csv              one row per stored case: what it is, native size, where its bits begin
    quarantine.csv         one row per case that cannot be used, with its reason
    store.json             settings, counts, fingerprint, checksums; written last: then it is whole

The same sources give the same bytes, on any number of threads and in any place: no file holds a
time or an absolute path.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import folder as folder_source
from thyroid_lib import frames, phantom, tg3k, write_file
from thyroid_lib.cases import BadCase, problem_row, read_pair, table_problems
from thyroid_lib.fingerprint import code_fingerprint

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
CODE = ("thyroid_lib.frames", "thyroid_lib.cases", "thyroid_lib.store")


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
        case = self.index.iloc[i]
        pixels = int(case["height"]) * int(case["width"])
        packed = self.bits[case["offset"] : case["offset"] + -(-pixels // 8)]
        return np.unpackbits(packed, count=pixels).reshape(case["height"], case["width"]) > 0


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
        data: where "tg3k" (folder or zip) or "folder" lies.
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
    return SOURCES[source](data, made)


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
        workers: threads; by default one per core, eight at most. The result does not depend on it.

    Raises:
        ValueError: a wrong argument, or not one usable case; then the reasons are counted.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise ValueError(f"size: got {size!r}, need a whole number of pixels, 1 to 4096")
    if resize not in frames.RESIZES:
        raise ValueError(f"resize: got {resize!r}, need one of {', '.join(frames.RESIZES)}")
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers: got {workers}, need 1 or more")
    folder = Path(folder)
    frames.mend_mask(np.zeros((1, 1), bool), mend)  # an unknown rule stops here, before any work
    mend = [rule for rule in frames.MENDS if rule in mend]
    settings = {"size": size, "resize": resize, "mend": mend}
    cases = cases.assign(official=cases.get("official", "")).reset_index(drop=True)
    problems = table_problems(cases)
    cases = cases.sort_values(["case_id", "image_path", "mask_path"])
    fingerprint = _fingerprint(cases, settings, workers)
    try:
        store = open_store(folder, verify=True)
        if store.fingerprint == fingerprint:
            return store
    except (OSError, ValueError):
        pass  # none there, or a damaged one: build it
    _build(cases, problems, folder, settings, fingerprint, workers)
    return open_store(folder)


def open_store(folder: str | Path, *, verify: bool = False) -> Store:
    """Open a store; its arrays are memory maps, read when they are used.

    Args:
        folder: where `build_store` wrote it.
        verify: compare every file's checksum, too; reads them whole.

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
            for name in FILES:
                _need(_sha256(folder / name) == about["files"][name], f"{name} has changed")
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
    except (ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise ValueError(
            f"the store at {folder} is damaged ({error}): delete it and build it again"
        ) from error
    return Store(folder, images, masks, bits, index, quarantine, settings, fingerprint)


def _fingerprint(cases: pd.DataFrame, settings: dict, workers: int) -> str:
    """SHA-256 over everything that decides what the store holds."""
    paths = [
        path for pair in zip(cases["image_path"], cases["mask_path"], strict=True) for path in pair
    ]
    sources = _in_order(lambda path: (Path(path).name, _sha256(path)), paths, workers)
    content = {
        "code": code_fingerprint(*CODE),
        "settings": settings,
        "cases": cases[["case_id", "group", "dataset", "official"]].to_numpy().tolist(),
        "sources": list(sources),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes; "" for a case's missing or unreadable file, which will say so."""
    try:
        if not Path(path).is_file():  # opening a pipe would wait forever
            return ""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _in_order(work: Callable, items: Iterable, workers: int) -> Iterator:
    """Map over threads, in order and with only a few results at a time in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _prepare(case, settings: dict) -> tuple:
    """Make everything the store holds of one case: an index row and three arrays, or a BadCase."""
    size, resize = settings["size"], settings["resize"]
    try:
        image, mask = read_pair(case.image_path, case.mask_path)
        mask, changed = frames.mend_mask(mask, settings["mend"])
        if not mask.any():
            gone = ", ".join(f"{pixels} px of {rule}" for rule, (_, pixels) in changed.items())
            raise BadCase("empty mask", f"nothing is left of it after mending: {gone}")
    except BadCase as bad:
        return case, bad
    row = {
        "case_id": case.case_id,
        "dataset": case.dataset,
        "group": case.group,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "foreground": mask.mean(),
        "official": case.official,
        **{f"{rule}_components": components for rule, (components, _) in changed.items()},
        **{f"{rule}_pixels": pixels for rule, (_, pixels) in changed.items()},
    }
    image, small = frames.fit_image(image, size, resize), frames.fit_mask(mask, size, resize)
    return row, (image, small, np.packbits(mask))


def _build(cases, problems, folder: Path, settings: dict, fingerprint: str, workers: int) -> None:
    """Stream all usable cases into partial files, then move these into place, store.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        leftover.unlink()
    (folder / "store.json").unlink(missing_ok=True)
    usable = cases.drop(index=problems.index).itertuples(index=False)
    prepared = _in_order(lambda case: _prepare(case, settings), usable, workers)
    rows, quarantine, offset = [], problems.to_numpy().tolist(), 0
    square = (settings["size"], settings["size"])
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.partial", "wb")) for name in FILES[:3]]
        shapes = ((0, *square), (0, *square), (0,))
        starts = [_write_header(*pair) for pair in zip(files, shapes, strict=True)]
        for case, made in prepared:
            if isinstance(made, BadCase):
                quarantine.append(problem_row(case, made.reason, made.detail))
                continue
            rows.append(case | {"offset": offset})
            offset += made[2].size
            for file, array in zip(files, made, strict=True):
                file.write(array.tobytes())
        _need_cases(rows, quarantine)
        # how many rows there are is known only now, and NumPy leaves room for it
        shapes = ((len(rows), *square), (len(rows), *square), (offset,))
        for file, start, shape in zip(files, starts, shapes, strict=True):
            if _write_header(file, shape) != start:
                raise RuntimeError("NumPy's .npy header grew with the count, the rows would shift")
            file.flush()
            os.fsync(file.fileno())
    for name in FILES[:3]:
        os.replace(folder / f"{name}.partial", folder / name)
    index = pd.DataFrame(rows, columns=list(INDEX))
    quarantine = pd.DataFrame(sorted(quarantine), columns=list(QUARANTINE))
    for name, table in zip(FILES[3:], (index, quarantine), strict=True):
        write_file(
            folder / name, table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        )
    mended = {rule: int((index[f"{rule}_components"] > 0).sum()) for rule in frames.MENDS}
    about = {
        "counts": {"cases": len(index), "mended": mended, "quarantined": len(quarantine)},
        "files": {name: _sha256(folder / name) for name in FILES},
        "fingerprint": fingerprint,
        "settings": settings,
    }
    write_file(folder / "store.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


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
