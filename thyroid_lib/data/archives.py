"""Zip and tar archives: unpacked once, into a folder beside the archive or below results/data.

    folder = archives.unpack("BUSI.zip")

Only regular files are unpacked; hidden ones are left out, a path outside is refused. The
folder appears whole or not at all: it is filled under another name, then renamed.
"""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from thyroid_lib.data.frames import Refused
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.locks import claim_path
from thyroid_lib.files.paths import project_path

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
OTHERS = (".7z", ".rar", ".zst")
ADVICE = "unpack it by hand, and set `data` to the folder"
LINK = 0o12  # a symbolic link's type in a zip


class Member(NamedTuple):
    """A file in an archive."""

    name: str  # relative, parts joined by "/"
    size: int  # bytes
    checksum: object  # changes with the file's bytes
    open: Callable[[], IO[bytes]]


def is_archive(path: str | Path) -> bool:
    """Say whether a file is an archive by its name; a NumPy file (npz) is none."""
    return str(path).lower().endswith(SUFFIXES + OTHERS) and os.path.isfile(path)


def unpack(path: str | Path, *, pattern: str = "", advice: str = ADVICE) -> Path:
    """Unpack an archive and return the folder, which is named after the archive and its content.

    Only names in which `pattern` is found are unpacked. ValueError, with `advice` what to do: no
    archive, damaged, encrypted, nothing wanted in it, more than the disk can hold.
    """
    path = Path(path)
    try:
        if path.name.lower().endswith(OTHERS):
            raise Refused("is no zip or tar archive")
        with ExitStack() as stack:
            members = _list_members(path, stack)
            wanted = [member for member in members if re.search(pattern, member.name)]
            if not wanted:
                there = ", ".join(member.name for member in members[:8]) or "nothing"
                raise Refused(f"holds no file that is needed, but {there}")
            if outside := [m.name for m in wanted if ".." in m.name.split("/") or ":" in m.name]:
                raise Refused(f"holds {outside[0]!r}, which leads outside of it")
            content = repr([member[:3] for member in wanted])
            digest = hashlib.sha256(content.encode()).hexdigest()
            stem = re.sub(r"\.tar$", "", path.stem, flags=re.IGNORECASE)
            return _unpack(path, wanted, f"{stem}-{digest[:8]}")
    except Exception as error:  # zipfile and tarfile raise a dozen kinds on a damaged archive
        what = " ".join(str(error).split()) or type(error).__name__
        what = what if isinstance(error, Refused) else f"cannot be unpacked ({what})"
        raise ValueError(f"{path.name} {what}: {advice}") from error


def _unpack(path: Path, members: list[Member], name: str) -> Path:
    parent = path.parent if os.access(path.parent, os.W_OK) else project_path("results/data")
    parent.mkdir(parents=True, exist_ok=True)
    with claim_path(parent / ".unpack", path.name):  # one archive after the other
        if (parent / name).is_dir():
            return parent / name
        for killed in parent.glob(f".unpack-{name}-*"):  # left by a process that was killed
            shutil.rmtree(killed, ignore_errors=True)
        total, free = sum(member.size for member in members), shutil.disk_usage(parent).free
        if total > free:
            room = f"{parent} has {free / 1e9:.1f} GB free"
            raise Refused(f"unpacks to {total / 1e9:.1f} GB, but {room}")
        with tempfile.TemporaryDirectory(prefix=f".unpack-{name}-", dir=parent) as work:
            for member in members:
                target = Path(work, name, member.name)
                if target.exists():
                    raise Refused(f"holds two files of the name {member.name!r}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 2**20)
            os.replace(Path(work, name), parent / name)
    return parent / name


def _list_members(path: Path, stack: ExitStack) -> list[Member]:
    """List the regular files of an archive, which the stack will close."""
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        zipped = stack.enter_context(zipfile.ZipFile(path))
        files = [e for e in zipped.infolist() if not e.is_dir() and e.external_attr >> 28 != LINK]
        found = [Member(e.filename, e.file_size, e.CRC, partial(zipped.open, e)) for e in files]
    else:
        packed, digest = stack.enter_context(tarfile.open(path)), file_digest(path)  # noqa: SIM115
        files = [entry for entry in packed if entry.isfile()]  # a tar has no checksums
        found = [Member(e.name, e.size, digest, partial(packed.extractfile, e)) for e in files]
    safe = [member._replace(name=_safe_name(member.name)) for member in found]
    return [member for member in safe if member.name]


def _safe_name(name: str) -> str:
    """Return a name with / between its parts; "" for a hidden file."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    hidden = re.compile(r"\.(?!\.$)|__macosx$|.*:zone\.identifier$", re.IGNORECASE)
    return "" if any(map(hidden.match, parts)) else "/".join(parts)
