"""Locating data: a path, a data set of Kaggle, a folder on Colab's Drive, or TG3K's public release.

A study names its data by one text, `data`, which can be the same on every machine.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import print_note, short_reason


def where() -> str:
    """Return "kaggle", "colab" or "local"; Kaggle first, whose image is made from Colab's."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if os.environ.get("COLAB_RELEASE_TAG") else "local"


def folder_of(path: str) -> Path:
    """Return one of the platform's own folders; tests put all of them below a root of theirs."""
    return Path(os.environ.get("THYROID_PLATFORM_ROOT") or "/", path)


def find_data(data: str | Path) -> Path | None:
    """Return the folder or zip of a study's data, fetched if `data` says so; None for "".

    `data` is a path, relative to the project or absolute; or `kaggle:owner/slug/version`, a data
    set of Kaggle: the one attached to the notebook, whatever its version, else fetched; or `auto`,
    TG3K's release: attached on Kaggle, in data/ or results/data of the project, on Colab's Drive (a
    folder or zip named tg3k…), else fetched. RuntimeError: it cannot be fetched; says what to do.
    """
    data = str(data)
    if data == "auto":
        return _find_release()
    if data.startswith("kaggle:"):
        return _find_dataset(data)
    return project_path(data) if data else None


def data_name(data: str) -> str:
    """Return a name for folders of what is made of these data: "" gives phantom."""
    name = data.removeprefix("kaggle:")
    if data and not asks_network(data):
        name = Path(data).resolve().name
    name = re.sub(r"\.(zip|tar|tgz|tar\.\w+)$", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "phantom"


def asks_network(data: str) -> bool:
    """Say whether these data may be fetched: then they are the same in whatever folder they lie."""
    return data == "auto" or data.startswith("kaggle:")


def _find_release() -> Path:
    from thyroid_lib.data import tg3k  # loads pandas, which the workflow does without

    top = folder_of("kaggle/input")  # data sets are mounted in either of two ways
    attached = sorted({*top.glob("*"), *top.glob("datasets/*/*")} - {top / "datasets"})
    for folder in (*attached, project_path("data"), project_path("results/data")):
        with suppress(ValueError):
            if folder.is_dir():
                return tg3k.locate(folder)
    drive = folder_of("content/drive/MyDrive")
    for path in sorted(drive.glob("[tT][gG]3[kK]*")):
        target = project_path("results/data") / path.name
        if path.suffix.lower() == ".zip" and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(shutil.copyfile(path, target.with_suffix(".partial")), target)
        if path.is_dir() or target.exists():  # unpacked there, each file would be fetched
            return path if path.is_dir() else target
    print_note("no TG3K here: it is fetched from its public folder, about 395 MB")
    return tg3k.download(project_path("results/data"))


def _find_dataset(data: str) -> Path:
    if not (named := re.fullmatch(r"kaggle:([\w-]+)/([\w-]+)/(\d+)", data)):
        needed = "kaggle:owner/slug/version with the version as a number, kaggle:somebody/tg3k/1"
        raise ValueError(f"data: got {data}, need {needed}: else data could change unnoticed")
    owner, slug, version = named.groups()
    top = folder_of("kaggle/input")
    for folder in (top / "datasets" / owner / slug, top / slug):
        if folder.is_dir():
            print_note(f"{data}: the attached {slug} is used, in the version that was attached")
            return folder
    try:
        import kagglehub

        return Path(kagglehub.dataset_download(f"{owner}/{slug}/versions/{version}"))
    except Exception as error:  # kagglehub passes on whatever its transport raises
        failed = f"{data} cannot be fetched ({short_reason(error)})"
        ways = f"attach the data set {owner}/{slug} (Add Input), or set `data` to a folder of it"
        raise RuntimeError(f"{failed}: pip install kagglehub if missing, {ways}") from error
