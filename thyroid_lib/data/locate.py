"""Where data lie: at a path, among what Kaggle or Colab's Drive has, or in a public place.

A study names its data by one text, `data`, which can be the same on every machine.
"""

import os
import re
import shutil
from pathlib import Path

from thyroid_lib.files.writing import print_note, project_path

DATASET = re.compile(r"kaggle:([\w-]+)/([\w-]+)/(\d+)")


def where() -> str:
    """Return "kaggle", "colab" or "local"; Kaggle first, whose image is made from Colab's."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if os.environ.get("COLAB_RELEASE_TAG") else "local"


def folder_of(path: str) -> Path:
    """Return one of the platform's own folders; tests put all of them below a root of theirs."""
    return Path(os.environ.get("THYROID_PLATFORM_ROOT") or "/", path)


def find_data(data: str | Path) -> Path | None:
    """Find a study's data, and get them where that was asked for.

    Args:
        data: a path, which may be relative to the project; `kaggle:owner/slug/version`, a data set
            of Kaggle: the one attached to this notebook under that name, whose version was chosen
            there, else fetched in this version; `auto`, TG3K's release: among what is attached on
            Kaggle, in data/ or results/data of the project, on Colab's Drive (a folder or zip named
            tg3k…), else fetched from its public place; or "", none.

    Returns:
        A folder or a zip; None for "".

    Raises:
        ValueError: no such data set, or none in the words above.
        RuntimeError: it cannot be fetched; says how to get it by hand.
    """
    data = str(data)
    if data == "auto":
        return _find_release()
    if data.startswith("kaggle:"):
        return _find_dataset(data)
    return project_path(data) if data else None


def asks_network(data: str) -> bool:
    """Say whether these data may be fetched: they are the same then wherever they lie."""
    return data == "auto" or data.startswith("kaggle:")


def _attached() -> list[Path]:
    """Data sets attached to a Kaggle notebook, which are mounted in either of two ways."""
    top = folder_of("kaggle/input")
    found = [*top.glob("*"), *top.glob("datasets/*/*")]
    return sorted(path for path in found if path.is_dir() and path != top / "datasets")


def _find_release() -> Path:
    from thyroid_lib.data import tg3k  # loads pandas, which the workflow does without

    for folder in (*_attached(), project_path("data"), project_path("results/data")):
        if folder.is_dir():
            try:
                return tg3k.locate(folder)
            except ValueError:
                continue
    drive = folder_of("content/drive/MyDrive")
    names = os.listdir(drive) if os.path.isdir(drive) else []  # a Drive that dropped is none
    found = [drive / name for name in sorted(names) if name.lower().startswith("tg3k")]
    for path in found:
        if path.is_dir():
            return path
        if path.suffix.lower() == ".zip":  # unpacked there, each of its files would be fetched
            target = project_path("results/data") / path.name
            if not target.exists() or target.stat().st_size != path.stat().st_size:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target.with_suffix(".partial"))
                os.replace(target.with_suffix(".partial"), target)
            return target
    print_note("no TG3K here: it is fetched from its public place, about 395 MB")
    return tg3k.download(project_path("results/data"))


def _find_dataset(data: str) -> Path:
    named = DATASET.fullmatch(data)
    if not named:
        raise ValueError(
            f"data: got {data}, need kaggle:owner/slug/version with the version as a number, such "
            "as kaggle:somebody/tg3k/1: without it, other data would come one day"
        )
    owner, slug, version = named.groups()
    top = folder_of("kaggle/input")
    for folder in (top / "datasets" / owner / slug, top / slug):
        if folder.is_dir():
            print_note(f"{data}: the attached {slug} is used, in the version that was attached")
            return folder
    by_hand = (
        f"attach the data set {owner}/{slug} to the notebook (Add Input), or get it with a browser "
        "and set `data` to its folder"
    )
    try:
        import kagglehub
    except ImportError as error:
        raise RuntimeError(
            f"kagglehub is not installed: pip install kagglehub, or {by_hand}"
        ) from error
    try:
        return Path(kagglehub.dataset_download(f"{owner}/{slug}/versions/{version}"))
    except Exception as error:  # kagglehub passes on whatever its transport raises
        what = (str(error).strip().splitlines() or [""])[0]
        raise RuntimeError(
            f"{data} cannot be fetched ({type(error).__name__}: {what}): {by_hand}"
        ) from error
