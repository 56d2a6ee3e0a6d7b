"""nnU-Net's raw data: images of one channel and their labels, as a case table.

    Dataset001_Thyroid/dataset.json
    Dataset001_Thyroid/imagesTr/a01_0000.png   labelsTr/a01.png   (imagesTs, labelsTs)

`dataset.json` names the labels. It does not name patients.

Source: Isensee, Jaeger, Kohl, Petersen & Maier-Hein, Nature Methods 2021; nnU-Net's
documentation/dataset_format.md.
"""

import json
import re
from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import COLUMNS

SIDES = {"Tr": "train", "Ts": "test"}


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table of a data set of nnU-Net, or of one a level below; None for other data.

    Images for testing count where they have labels. `attrs["levels"]` names the masks' levels.

    Raises:
        ValueError: a damaged dataset.json, several channels, or files that are no pictures.
    """
    found = [*Path(path).glob("dataset.json"), *sorted(Path(path).glob("*/dataset.json"))]
    found = [file for file in found if (file.parent / "imagesTr").is_dir()]
    if not found:
        return None
    root = found[0].parent
    try:
        about = json.loads(found[0].read_text("utf-8"))
        labels = _levels(about["labels"])
        ending = str(about.get("file_ending", ".nii.gz"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{found[0].name} is damaged ({type(error).__name__} {error})"
        raise ValueError(f'{problem}: it needs "labels" and "file_ending"') from error
    if ".nii" in ending or ending in (".nrrd", ".mha"):
        raise ValueError(f"the images are {ending}, volumes: save their slices as PNG files")
    sides = {end: side for end, side in SIDES.items() if (root / f"labels{end}").is_dir()}
    rows = []
    for end, side in sides.items():
        images = {}
        for file in sorted((root / f"images{end}").glob(f"*{ending}")):
            name = re.fullmatch(r"(.+)_(\d{4})", file.name.removesuffix(ending))
            if not name or name[2] != "0000":
                needed = "need one channel, named case_0000"
                raise ValueError(f"{file.parent.name} holds {file.name}: {needed}{ending}")
            images[name[1]] = str(file)
        masks = (root / f"labels{end}").glob(f"*{ending}")
        masks = {file.name.removesuffix(ending): str(file) for file in masks}
        official = side if len(sides) > 1 else ""
        for case in images.keys() | masks.keys():
            pair = images.get(case, ""), masks.get(case, "")
            rows.append((case, *pair, case, "nnunet", official))
    table = pd.DataFrame(rows, columns=[*COLUMNS, "official"], dtype=object)
    table = table.sort_values(["case_id", "image_path"], ignore_index=True)
    named = ", ".join(f"{level} {name}" for level, name in labels.items())
    table.attrs["layout"] = f"nnU-Net's {root.name}: {len(table)} cases, labels {named}"
    table.attrs |= {"groups": "", "levels": labels}
    return table


def _levels(labels: dict) -> dict[int, str]:
    """Return the names of levels, of either version: {"gland": 1}, or {"1": "gland"}."""
    levels = {}
    for key, value in labels.items():
        name, level = (value, key) if str(key).isdecimal() else (key, value)
        for each in level if isinstance(level, list) else [level]:  # a region of several labels
            levels.setdefault(int(each), str(name))
    return levels
