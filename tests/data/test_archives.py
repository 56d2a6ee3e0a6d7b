"""Archives: unpacked once and whole, nothing outside of the folder, refusals with advice."""

import io
import os
import shutil
import tarfile
import zipfile

import pytest
from conftest import files_of

from thyroid_lib.data import archives

CONTENT = {"set/images/a.png": b"image", "set/masks/a.png": b"mask" * 1000}
LITTER = ("__MACOSX/set/._a.png", "set/.DS_Store", "set/..a.png", "set/a.png:Zone.Identifier")
OUTSIDE = ("../out.png", "set/../../out.png", "set\\..\\b.png", "C:\\set\\b.png")


def write_zip(path, content, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("set/empty")
        for name, data in content:
            archive.writestr(name, data)
    return path


def write_tar(path, content):
    mode = path.suffix[1:].replace("tgz", "gz").replace("tar", "")
    with tarfile.open(path, f"w:{mode}") as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


WRITERS = {".zip": write_zip, ".tar": write_tar, ".tgz": write_tar, ".tar.xz": write_tar}
EVERY = pytest.mark.parametrize("suffix", WRITERS)


def write(path, suffix, content=CONTENT):
    return WRITERS[suffix](path / f"my.set{suffix}", list(dict(content).items()))


@EVERY
def test_an_archive_is_unpacked_once_beside_itself(tmp_path, suffix):
    archive = write(tmp_path, suffix)
    assert archives.is_archive(archive)
    folder = archives.unpack(archive)
    assert folder.parent == tmp_path
    assert folder.name.startswith("my.set-")
    assert files_of(folder) == CONTENT
    before = folder.stat().st_ino, (folder / "set/images/a.png").stat().st_mtime_ns
    again = archives.unpack(archive)
    assert (again.stat().st_ino, (again / "set/images/a.png").stat().st_mtime_ns) == before
    write(tmp_path, suffix, CONTENT | {"set/images/a.png": b"other"})  # of the same length
    assert files_of(archives.unpack(archive))["set/images/a.png"] == b"other"


@EVERY
def test_nothing_lands_outside_and_litter_is_left_out(tmp_path, suffix):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in OUTSIDE:  # nothing vanishes
        archive = write(tmp_path / "a" / "b", suffix, CONTENT | {name: b"x"})
        with pytest.raises(ValueError, match="which leads outside of it: unpack it by hand"):
            archives.unpack(archive)
    names = [*LITTER, "/set/masks/b.png", "set\\masks\\c.png"]
    archive = write(tmp_path / "a" / "b", suffix, CONTENT | dict.fromkeys(names, b"x"))
    found = files_of(archives.unpack(archive))
    assert found == CONTENT | {"set/masks/b.png": b"x", "set/masks/c.png": b"x"}
    assert len(list(tmp_path.rglob("*.png"))) == len(found)


def test_links_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"set/{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("set/a.txt"))
    assert files_of(archives.unpack(tmp_path / "a.tar")) == {"set/a.txt": b""}
    link = zipfile.ZipInfo("set/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    write_zip(tmp_path / "a.zip", [(link, b"/etc/passwd"), ("set/a.txt", b"")])
    assert files_of(archives.unpack(tmp_path / "a.zip")) == {"set/a.txt": b""}


def encrypted(path):
    data = bytearray(write(path, ".zip").read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag, in both headers
        start = 0
        while (start := data.find(sign, start)) >= 0:
            data[start + offset] |= 1
            start += 4
    return data


def twice(path):
    return write_zip(path / "a.zip", [("set/a.png", b"1"), ("set\\a.png", b"2")]).read_bytes()


def damaged(path):
    data = bytearray(write_zip(path / "my.zip", CONTENT.items(), zipfile.ZIP_STORED).read_bytes())
    data[data.index(b"maskmask")] ^= 1
    return data


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("my.zip", damaged, "cannot be unpacked.*Bad CRC"),
        ("my.zip", lambda path: write(path, ".zip").read_bytes()[:90], "not a zip file"),
        ("my.zip", encrypted, "cannot be unpacked.*encrypted"),
        ("my.zip", lambda _: b"PK\x05\x06" + bytes(18), "holds no file .*but nothing"),
        ("my.tgz", lambda path: write(path, ".tgz").read_bytes()[:-30], "cannot be unpacked"),
        ("my.tar", lambda path: write(path, ".tar").read_bytes()[:3000], "cannot be unpacked"),
        ("my.tar", lambda _: b"<html>", "cannot be unpacked"),
        ("my.7z", lambda _: b"7z", "is no zip or tar archive: unpack it by hand"),
        ("my.zip", twice, "two files of the name 'set/a.png'"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path, name, content, words):
    (tmp_path / "made").mkdir()
    (tmp_path / name).write_bytes(content(tmp_path / "made"))
    shutil.rmtree(tmp_path / "made")
    with pytest.raises(ValueError, match=words) as error:
        archives.unpack(tmp_path / name)
    assert name in str(error.value)
    assert "set `data` to the folder" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_archive_that_would_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 3000))
    with pytest.raises(ValueError, match=r"unpacks to 0.0 GB, but .* has 0.0 GB free"):
        archives.unpack(write(tmp_path, ".zip"))
    assert len(list(tmp_path.iterdir())) == 1


def test_beside_an_archive_that_cannot_be_written_results_data_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    assert archives.unpack(write(tmp_path, ".tgz")).parent == tmp_path / "results" / "data"


def test_what_a_killed_process_left_goes_and_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    archive = write(tmp_path, ".zip")
    folder = archives.unpack(archive)
    left = tmp_path / f".unpack-{folder.name}-killed"
    folder.rename(left)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(ValueError, match=r"cannot be unpacked.*full"):
            archives.unpack(archive)
    assert list(tmp_path.iterdir()) == [archive]
    assert files_of(archives.unpack(archive)) == CONTENT


def test_what_is_no_archive_by_its_name(tmp_path):
    (tmp_path / "b.tar").mkdir()  # a folder
    for name in ("a.npz", "a.zip.partial"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    names = "a.npz", "a.zip.partial", "missing.zip", "b.tar"
    assert not any(archives.is_archive(tmp_path / name) for name in names)
