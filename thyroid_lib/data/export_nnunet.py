"""A study's cases and folds as nnU-Net's raw data, so that nnU-Net trains on exactly these groups.

    python -m thyroid_lib.data.export_nnunet --parameters parameters/demo.yaml --out nnUNet_raw

    Dataset501_Thyroid/
        imagesTr/thyroid_00000_0000.png  labelsTr/thyroid_00000.png    at their native size; 0, 1 …
        dataset.json        for nnU-Net's reader of 2D pictures, NaturalImage2DIO
        splits_final.json   fold k: "train" is the training set of this study's fold k, "val" its
                            test set; this study's validation cases stand on neither side
        names.csv           name (thyroid_00000), case_id, group; import-predictions takes it

Images get numbers as names, so that no name of a patient is passed on. Source: nnU-Net's
documentation/dataset_format.md and manual_data_splits.md.
"""

import argparse
import json
import os
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from thyroid_lib.data.cases import read_image
from thyroid_lib.data.classes import UNKNOWN
from thyroid_lib.data.nnunet import CHANNEL
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import Store, fingerprint_of, load_cases, open_store
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import write_file, write_table
from thyroid_lib.settings import ONE_SPLIT, add_study_arguments, read_named_study, step_settings


def export_nnunet(
    cases: pd.DataFrame,
    store: Store,
    out: Path,
    *,
    dataset: str = "Dataset501_Thyroid",
    protocol: str = "grouped",
    folds: int,
    **split,
) -> Path:
    """Write the cases of a store into the folder `out`/`dataset`, whole or not at all.

    `cases` is the case table that the store was built from, `split` other arguments of
    `splits.split_cases`. ValueError: a wrong name, a folder that is there already, or data that
    have changed since.
    """
    if not re.fullmatch(r"Dataset\d{3}_[A-Za-z0-9]+", dataset):
        raise ValueError(f"dataset: got {dataset!r}, need a name such as Dataset501_Thyroid")
    folder, partial = out / dataset, out / f".{dataset}.{os.getpid()}.partial"
    if folder.exists():
        raise ValueError(f"{folder} is there already: remove it, or give another name or folder")
    if fingerprint_of(cases, store.settings) != store.fingerprint:
        raise ValueError("images, masks or groups are not as in the store: run 1-preprocess again")
    index, splits = store.index, []
    names = np.array([f"thyroid_{row:05d}" for row in range(len(index))])
    split |= {"protocol": protocol, "folds": folds}
    for fold in range(1 if protocol in ONE_SPLIT else folds):
        sides = split_cases(index, fold=fold, **split)
        parts = ("train", names[sides == "train"]), ("val", names[sides == "test"])
        splits.append({side: part.tolist() for side, part in parts})
    rows = {row.case_id: row for row in cases.itertuples()}
    labels = {"thyroid": 1}
    if len(store.classes) > 1:  # nnU-Net learns nothing from what it ignores
        labels = {name: code for code, name in enumerate((*store.classes, "ignore"), 1)}
    with ExitStack() as made:
        made.callback(shutil.rmtree, partial, ignore_errors=True)
        for part in ("imagesTr", "labelsTr"):
            (partial / part).mkdir(parents=True)
        for row, (name, case_id) in enumerate(zip(names, index["case_id"], strict=True)):
            image, mask = read_image(rows[case_id]), store.reference(row)
            mask = np.where(mask == UNKNOWN, len(store.classes) + 1, mask)
            Image.fromarray(image).save(partial / "imagesTr" / f"{name}{CHANNEL}.png")
            Image.fromarray(mask.astype(np.uint8)).save(partial / "labelsTr" / f"{name}.png")
        about = {
            "channel_names": {"0": "ultrasound"},
            "labels": {"background": 0, **labels},
            "numTraining": len(index),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
        }
        write_file(partial / "dataset.json", json.dumps(about, indent=1) + "\n")
        write_file(partial / "splits_final.json", json.dumps(splits, indent=1) + "\n")
        named = index.assign(name=names)[["name", "case_id", "group"]]
        write_table(partial / "names.csv", named)
        os.replace(partial, folder)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Export a study that has its store; return 0, or 2 if it is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_study_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="nnU-Net's folder nnUNet_raw")
    parser.add_argument("--dataset", default="Dataset501_Thyroid")
    parser.add_argument("--protocol", default="grouped")
    given = parser.parse_args(arguments)
    try:
        config = read_named_study(given.parameters, given.set)
        study = project_path(f"results/{config['study']}")
        source = step_settings(config, "preprocess", folder=study / "phantom")
        of_store = ("size", "resize", "mend")
        source = {k.removeprefix("phantom_"): v for k, v in source.items() if k not in of_store}
        how = {key: config[key] for key in ("folds", "val_share", "external")}
        how |= {"dataset": given.dataset, "protocol": given.protocol}
        print(export_nnunet(load_cases(**source), open_store(study / "store"), given.out, **how))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
