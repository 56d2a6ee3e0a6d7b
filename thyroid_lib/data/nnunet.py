"""nnU-Net's raw data: images of one channel and their labels, as a case table.

    Dataset001_Thyroid/dataset.json
    Dataset001_Thyroid/imagesTr/a01_0000.png   labelsTr/a01.png   (imagesTs, labelsTs)

`dataset.json` names the labels; it does not name patients.

Source: Isensee, Jaeger, Kohl, Petersen & Maier-Hein, Nature Methods 2021; nnU-Net's
documentation/dataset_format.md.
"""

import json
from pathlib import Path

import pandas as pd

from thyroid_lib.data.layouts import find_pairs

CHANNEL = "_0000"


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table of a data set of nnU-Net, or of one a level below; None for other data.

    Images for testing count where they have labels. `attrs["levels"]` names the masks' levels.
    ValueError: a damaged dataset.json, several channels, or files that are no pictures.
    """
    found = [*Path(path).glob("dataset.json"), *sorted(Path(path).glob("*/dataset.json"))]
    found = [file for file in found if (file.parent / "imagesTr").is_dir()]
    if not found:
        return None
    if len(found) > 1:
        held = " and ".join(file.parent.name for file in found)
        raise ValueError(f"{held} are data sets each: give one's path, or list them as sources")
    root, levels = found[0].parent, {}
    try:
        about = json.loads(found[0].read_text("utf-8"))
        ending = str(about.get("file_ending", ".nii.gz"))
        for name, level in about["labels"].items():
            levels |= dict.fromkeys(map(int, level if isinstance(level, list) else [level]), name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"dataset.json is damaged ({type(error).__name__} {error})"
        raise ValueError(f'{problem}: it needs "labels" and "file_ending"') from error
    if ".nii" in ending or ending in (".nrrd", ".mha"):
        raise ValueError(f"the images are {ending}, volumes: save their slices as PNG files")
    for file in sorted((root / "imagesTr").glob(f"*{ending}")):
        if not file.stem.endswith(CHANNEL):
            needed = f"need one channel, named case{CHANNEL}{ending}"
            raise ValueError(f"imagesTr holds {file.name}: {needed}")
    table, _, said = find_pairs(root, dataset="nnunet")
    if not (root / "labelsTs").is_dir():  # images to predict
        table = table[table["official"] != "test"].assign(official="").reset_index(drop=True)
    table["case_id"] = table["case_id"].str.removesuffix(CHANNEL)
    named = ", ".join(f"{level} {name}" for level, name in levels.items())
    table.attrs = {"layout": f"nnU-Net, labels {named}; {'; '.join(said)}", "levels": levels}
    return table
