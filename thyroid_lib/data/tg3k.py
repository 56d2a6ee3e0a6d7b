"""TG3K source: 3,585 real frames of healthy thyroids with masks of the gland, as a case table.

    tg3k/thyroid-image/0000.jpg   tg3k/thyroid-mask/0000.jpg   tg3k/tg3k-trainval.json

A group is consecutive frames of one size, taken as one video sweep and named run01 … run15.
Neighbouring frames are near-copies. Whether two groups come from one person is unknown.

Sources: Wunderling, Golla, Poudel, Arens, Friebe & Hansen, SPIE Medical Imaging 2017 (16 sweeps, GE
Logiq E9); re-packed by Gong et al., TRFE-Net (ISBI 2021) and TRFE+ (2022).
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from thyroid_lib.data import folder as folder_source
from thyroid_lib.data.cases import make_table, name_key
from thyroid_lib.data.frames import FORMATS, Refused
from thyroid_lib.data.locate import short_reason
from thyroid_lib.files.locks import claim_path
from thyroid_lib.files.writing import project_path, write_error

IMAGES, MASKS, SPLIT = "thyroid-image", "thyroid-mask", "tg3k-trainval.json"
DRIVE_ID = "1reHyY5eTZ5uePXMVMzFOq5j3eFOSp50F"  # of the release's archive on Google Drive
BY_HAND = (
    f"get the archive (about 395 MB) from Google Drive, file id {DRIVE_ID}, with a browser, and "
    f"set `data` to it, or to the unpacked folder that holds {IMAGES}/ and {MASKS}/"
)
DEPTH = 4  # folders below the given one that are searched
MAX_BYTES = 4 * 1024**3  # unpacked; the release has a tenth


SWEEPS = {  # name: height and width in px, first and last frame
    "run01": (191, 265, 0, 271),
    "run02": (194, 258, 272, 448),
    "run03": (187, 241, 449, 655),
    "run04": (174, 241, 656, 826),
    "run05": (182, 270, 827, 1017),
    "run06": (209, 214, 1018, 1196),
    "run07": (178, 234, 1197, 1512),
    "run08": (209, 216, 1513, 1691),
    "run09": (213, 241, 1692, 1952),
    "run10": (191, 278, 1953, 2188),
    "run11": (194, 242, 2189, 2445),
    "run12": (204, 240, 2446, 2696),
    "run13": (207, 281, 2697, 3025),
    "run14": (193, 325, 3026, 3269),
    "run15": (238, 251, 3270, 3584),
}
LAST = 3584  # frame of the release


def sweep_of(frame: int) -> str:
    """Return the sweep of a frame number, "" for a number that the release does not have."""
    found = (name for name, (_, _, first, last) in SWEEPS.items() if first <= frame <= last)
    return next(found, "")


def cases(path: str | Path) -> pd.DataFrame:
    """Make the case table of TG3K, or of any part of it.

    Args:
        path: its folder, a folder above it, or its zip archive; see `locate`.

    Returns:
        The case table, columns `cases.COLUMNS`; case_id as in the release ("0007"), group run01 …
        run15, or "" for a name that is no frame number of the release; dataset "tg3k". One more
        column, `official`, holds each frame's side in the release's own split, "train" or "test",
        and "" where the split's file is missing.

    Raises:
        ValueError: not there, or frames of other sizes than the release has.
    """
    folder = locate(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the groups are known here
        table = folder_source.cases(folder / IMAGES, folder / MASKS, dataset="tg3k")
    numbers = table["case_id"].map(
        lambda name: int(name) if name.isascii() and name.isdecimal() else -1
    )
    table["group"] = [sweep_of(number) for number in numbers]
    _check_sizes(table)
    table = make_table(table.to_numpy().tolist())
    sides = official_split(folder) if os.path.lexists(folder / SPLIT) else {}
    side_of = {case_id: side for side, case_ids in sides.items() for case_id in case_ids}
    return table.assign(official=[side_of.get(case_id, "") for case_id in table["case_id"]])


def locate(path: str | Path) -> Path:
    """Return the folder that holds thyroid-image/ and thyroid-mask/.

    Args:
        path: that folder, one up to four levels above it (the release unpacks to "Thyroid
            Dataset/tg3k"), or a zip archive with it inside, which is unpacked beside itself, or
            below results/data where that cannot be written.

    Raises:
        ValueError: not found; says what was found and how to get the release.
    """
    path = Path(os.path.expanduser(path))  # unlike Path's it leaves ~somebody alone
    if path.is_file():
        path = _unpack(path)
    if not path.is_dir():
        raise ValueError(f"no TG3K at {path}: nothing is there; {BY_HAND}, or call tg3k.download")
    for folder, below, _ in os.walk(path):
        if IMAGES in below and MASKS in below:
            return Path(folder)
        deep = len(Path(folder).relative_to(path).parts) >= DEPTH
        below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
    raise ValueError(_not_found(path, sorted(os.listdir(path))))


def _not_found(path: Path, names: list[str]) -> str:
    found = ", ".join(names[:8]) or "nothing"
    needed = f"needed are the folders {IMAGES}/ and {MASKS}/, found was {found}"
    return f"no TG3K in {path}: {needed}; {BY_HAND}, or call tg3k.download"


def official_split(path: str | Path) -> dict[str, list[str]]:
    """Read the release's own split; it leaks, as run14 lies on both sides.

    Returns:
        {"train": case_ids, "test": case_ids} of the whole release, whichever frames are there; the
        release calls its second part "val" and has no third.

    Raises:
        ValueError: no such file, or not in the release's form.
    """
    file = locate(path) / SPLIT
    if not os.path.lexists(file):
        raise ValueError(f"no {SPLIT} beside {IMAGES}/: copy it from the release")
    try:
        if not file.is_file():  # opening a pipe would wait forever
            raise ValueError("no file")
        split = json.loads(file.read_text("utf-8"))
        parts = {"train": split["train"], "test": split["val"]}
        frames = [frame for part in parts.values() for frame in part]
        integers = all(type(frame) is int for frame in frames)  # True is no number, nor is 1.5
        if not integers or sorted(frames) != list(range(LAST + 1)):
            raise ValueError("not every frame once")
        return {side: [f"{frame:04d}" for frame in part] for side, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{SPLIT} is damaged: needed are two lists of frame numbers, train and val, with each "
            f"of 0 to {LAST} once; copy it again from the release"
        ) from error


def download(folder: str | Path) -> Path:
    """Download the release's archive with gdown, unpack TG3K, and return its folder.

    Raises:
        RuntimeError: no gdown, no network or Google's quota; says how to get it by hand.
    """
    archive = Path(folder) / "tg3k-release.zip"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(".zip.partial")
        try:
            import gdown

            if not gdown.download(id=DRIVE_ID, output=str(partial)):
                raise OSError("nothing came")
            os.replace(partial, archive)
        except Exception as error:  # gdown passes on whatever its transport raises
            partial.unlink(missing_ok=True)
            raise RuntimeError(
                f"download failed ({short_reason(error)}): pip install gdown if it is missing, or "
                f"{BY_HAND}"
            ) from error
    return locate(archive)


def _check_sizes(table: pd.DataFrame) -> None:
    """Compare the first frame of each sweep with the release: other sizes are other data."""
    for case in table[table["group"] != ""].drop_duplicates("group").itertuples():
        if not os.path.isfile(case.image_path):  # opening a pipe would wait forever
            continue
        try:
            with Image.open(case.image_path, formats=FORMATS) as image:  # reads the header only
                found = image.height, image.width
        except Exception:  # decoders raise a dozen kinds
            continue  # damaged: the store reports it
        if found != (known := SWEEPS[case.group][:2]):
            is_size, has_size = (f"{height} x {width}" for height, width in (found, known))
            raise ValueError(
                f"these are not TG3K's frames: {Path(case.image_path).name} is {is_size}, "
                f"{case.group} has {has_size} (height x width); for other data, or a resized copy, "
                'use source "folder" with a groups.csv'
            )


def _unpack(archive: Path) -> Path:
    """Unpack TG3K's part of a zip once, into a folder named by the archive's list of contents."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            wanted = _wanted(zipped, archive)
            content = repr([(entry.filename, entry.CRC, entry.file_size) for entry in wanted])
            name = f"{archive.stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
            beside = os.access(archive.parent, os.W_OK)
            parent = archive.parent if beside else project_path("results/data")
            parent.mkdir(parents=True, exist_ok=True)
            with claim_path(parent / ".unpack", archive.name):  # one archive after the other
                for left in parent.glob(".unpack-*"):  # by one that was killed
                    shutil.rmtree(left, ignore_errors=True)
                if not (parent / name).is_dir():
                    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=parent) as work:
                        zipped.extractall(Path(work) / name, members=wanted)
                        os.replace(Path(work) / name, parent / name)
            return parent / name
    except Refused:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on a damaged archive
        disk = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES
        if isinstance(error, OSError) and error.errno in disk:
            raise write_error(error, archive.parent) from error
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{archive.name} cannot be unpacked ({what}): {BY_HAND}") from error


def _wanted(zipped: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """List the entries that are files of TG3K.

    Raises:
        Refused: none, too large, or an entry that would land outside of the folder or on another.
    """
    wanted = [entry for entry in zipped.infolist() if _is_wanted(PurePosixPath(entry.filename))]
    if not wanted:
        raise Refused(_not_found(archive, zipped.namelist()))
    if sum(entry.file_size for entry in wanted) > MAX_BYTES:
        raise Refused(f"{archive.name} unpacks to more than 4 GiB: this is not TG3K")
    seen = set()
    for entry in wanted:
        path = PurePosixPath(entry.filename)
        outside = path.is_absolute() or ".." in path.parts or set(entry.filename) & set("\\:")
        key = name_key(str(path))  # without regard to letter case, as some disks
        if outside or stat.S_ISLNK(entry.external_attr >> 16) or key in seen:
            raise Refused(
                f"{archive.name} is not to be trusted: its entry {entry.filename!r} points out of "
                "the archive or occurs twice, get it from another source"
            )
        seen.add(key)
    return wanted


def _is_wanted(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)
    return not hidden and (path.name == SPLIT or path.parent.name in (IMAGES, MASKS))
