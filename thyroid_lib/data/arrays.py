"""Arrays of pictures in NumPy (npy, npz) and HDF5 files, as a case table.

    images.npy (N,H,W), masks.npy (N,H,W)   two files in one folder
    a.npz, b.npz …                          each with the arrays image and mask
    dataset.hdf5                            image (N,H,W), mask (N,H,W), annot_id (N), frame_num (N)

A case table names a picture by its file and "array/number", such as "mask/12".

The last example is the Stanford thyroid ultrasound cine-clip data set, 192 nodules of 167 patients:
its groups are nodules (`annot_id`); the file does not say which nodules share a patient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.data.cases import make_table, reference
from thyroid_lib.data.frames import check_levels
from thyroid_lib.data.layouts import list_files
from thyroid_lib.data.readers import ARRAYS, PICTURES

IMAGES = ("image", "images", "img", "imgs", "x", "frames", "data")
MASKS = ("mask", "masks", "label", "labels", "gt", "y", "seg", "segmentation", "annotations")
# the first that is there counts: a patient may have several annotated nodules
GROUPS = ("patient_id", "patient", "patients", "subject", "group", "groups", "annot_id")
FRAMES = ("frame_num", "frame_number", "frame")


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table of an npz or HDF5 file, or of a folder of arrays; None for other data.

    The pictures of one file are one group where there are several files; an array `annot_id`,
    `patient_id` … says it better. `problem` is None, or why a file cannot be used. ValueError: no
    file has an image's and a mask's array.
    """
    files, rows, known = _find_files(Path(path)), [], set()
    for unit, parts in files.items():
        try:
            arrays = _list_arrays(parts)
            known |= arrays.keys()
            rows += _rows(unit, arrays, len(files) > 1)
        except ValueError as error:
            problem = "unreadable image", str(error) if unit in str(error) else f"{unit}: {error}"
            rows.append((unit, str(parts[0]), str(parts[0]), unit, "arrays", problem))
    images, others = list_files(Path(path))
    others = [file for file in others if file.suffix.lower() in ARRAYS]
    more = sorted({*images, *others}.difference(*files.values()))
    if all(row[5] for row in rows):  # not one that can be used
        if not rows or more or Path(rows[0][1]).suffix.lower() == ".npy":
            return None  # they lie beside data of another layout
        raise ValueError(rows[0][5][1])
    if more:
        held = f"{', '.join(files)} and {len(more)} other files, such as {more[0].name!r}"
        raise ValueError(f"there are arrays in {held}: give the path of one data set alone")
    table = make_table(rows, "problem")
    names = [f"array {name}" for name in GROUPS if name in known]
    names += ["one per file"] * bool(len(files) > 1 and table["group"].duplicated().any())
    unread = sorted(known - {*IMAGES, *MASKS, *GROUPS, *FRAMES})
    more = f"; not read: {', '.join(unread)}" * bool(unread)
    table.attrs["layout"] = f"arrays: {len(table)} pictures in {len(files)} files or pairs{more}"
    table.attrs["groups"] = names[0] if names else ""
    return table


def read_image(path: str | Path, part: str) -> np.ndarray:
    """Read a picture as stored: gray (H,W) of any type, or RGB (H,W,3)."""
    key, _, number = part.rpartition("/") if "/" in part or part.isdecimal() else (part, "", "")
    with _opened(path) as file:
        count = count_pictures(file[key].shape)
        if count > 1 and not number:
            raise ValueError(f"it holds {count} pictures, save the one that is meant alone")
        levels = check_levels(np.array(file[key][int(number or 0) if count else ()]))
    if levels.ndim == 3 and levels.shape[2] not in (1, 3):
        levels = np.moveaxis(levels, 0, 2)
    one = levels.ndim == 3 and (levels == levels[..., :1]).all()
    return levels[..., 0] if one else levels


def read_mask(path: str | Path, part: str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask's levels as stored, (H,W); `shape` is not needed."""
    levels = read_image(path, part)
    if levels.ndim == 3:
        raise ValueError(f"{Path(path).name!r} holds a mask in colours, save one of levels (H,W)")
    return levels


def count_pictures(shape: tuple[int, ...]) -> int:
    """Return the length of the axis of pictures; 0 for one picture, (H,W) or (H,W,C).

    (N,H,W) must make pictures of usual sides, and (H,W,N) none, or pictures be squares.
    """
    colour = shape[-1:] in ((1,), (3,))
    if len(shape) == 2 or (len(shape) == 3 and colour):
        return 0
    usual = [max(two) <= 2 * min(two) for two in (shape[:2], shape[1:])]
    if len(shape) == 3 and usual != [False, True] and not shape[0] != shape[1] == shape[2]:
        advice = "save (N,H,W,1): x[..., None], or np.moveaxis(x, 2, 0)[..., None] of (H,W,N)"
        raise ValueError(f"its shape {shape} may be (N,H,W) or (H,W,N): {advice}")
    if len(shape) == 3 or (len(shape) == 4 and (colour or shape[1] in (1, 3))):
        return shape[0]
    raise ValueError(f"its shape {shape} is not that of pictures: save (H,W) or (N,H,W)")


def _find_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of each unit: an npz or HDF5 file, else all npy files of the folder."""
    found = [path] if path.is_file() else sorted(path.glob("*"))
    if any(file.suffix.lower() in PICTURES for file in found):
        return {}
    npy = [file for file in found if file.suffix.lower() == ".npy"]
    files = [file for file in found if file.suffix.lower() in ARRAYS and file not in npy]
    if not files:
        return {path.name: npy} if npy else {}
    twice = len({file.stem for file in files}) < len(files)  # a.npz and a.h5
    return {file.name if twice else file.stem: [file] for file in files}


def _list_arrays(files: list[Path]) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """Return the file, key and shape of each array, by its name in lower case."""
    arrays = {}
    for path in files:
        with _opened(path) as file:
            for key in file:
                name = (key or path.stem).lower()
                arrays[name] = path, key, getattr(file[key], "shape", ())
    return arrays


def _rows(unit: str, arrays: dict, several: bool) -> list[tuple]:
    """Return the rows of one unit: `COLUMNS` and None for no problem."""
    large = [name for name, (*_, shape) in arrays.items() if len(shape) > 1]
    named = [[name for name in large if name in names] for names in (IMAGES, MASKS)]
    if [len(names) for names in named] != [1, 1]:
        held = ", ".join(f"{name} {shape}" for name, (*_, shape) in arrays.items()) or "no array"
        raise ValueError(f"{unit} holds {held}: name one array image, and one mask")
    pair = [arrays[name] for [name] in named]
    counts = [count_pictures(shape) for *_, shape in pair]
    count = counts[0] or 1
    if count != (counts[1] or 1):
        raise ValueError(f"{unit} holds {count} images and {counts[1] or 1} masks")
    groups, frames, clips = (
        _read_names(arrays, names, count) for names in (GROUPS, FRAMES, GROUPS[::-1])
    )
    names = [f"{number:0{len(str(count))}}" if counts[0] else "" for number in range(count)]
    if len(set(zip(clips, frames, strict=False))) == count > 1:
        width, pictures = max(map(len, frames)), zip(clips, frames, strict=True)
        names = [f"{clip.rstrip('_')}_{frame:0>{width}}" for clip, frame in pictures]
    rows = []
    for number, name in enumerate(names):
        case_id = "_".join(filter(None, (unit if several or not name else "", name)))
        paths = (
            reference(path, "/".join(filter(None, (key, str(number) * (own > 0)))))
            for (path, key, _), own in zip(pair, counts, strict=True)
        )
        group = groups[number] if groups else unit if several else case_id
        rows.append((case_id, *paths, group, "arrays", None))
    return rows


def _read_names(arrays: dict, names: tuple[str, ...], count: int) -> list[str]:
    """Read the first array of these names as texts, one for each picture; [] if there is none."""
    if not (held := [name for name in names if name in arrays]):
        return []
    path, key, shape = arrays[held[0]]
    with _opened(path) as file:
        values = np.ravel(file[key][()]).tolist()
    if len(values) not in (1, count):
        raise ValueError(f"{held[0]} {shape} needs a value for each of {count} pictures")
    texts = [(v.decode() if isinstance(v, bytes) else str(v)).strip() for v in values]
    return texts * (count // len(texts))


@contextmanager
def _opened(path: str | Path) -> Iterator[dict]:
    """Open a file as {name: array}; errors within this context name the file."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".npz":
            yield _load(path, path.stat().st_mtime_ns)
        elif path.suffix.lower() == ".npy":
            yield {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            import h5py

            with h5py.File(path, "r") as file:
                yield file
    except Exception as error:  # of a dozen kinds on a damaged file
        what = " ".join(str(error).split()) or type(error).__name__
        more = ": pip install h5py" * isinstance(error, ImportError)
        raise ValueError(f"{path.name!r} cannot be read: {what}{more}") from error


@lru_cache(maxsize=2)
def _load(path: Path, _changed: int) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
