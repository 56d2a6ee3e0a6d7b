"""Segment a folder of images from the command line: one mask per image, and a table of sizes.

    python -m thyroid_lib.deploy.predict_folder --model MODEL --images DIR --out DIR

MODEL is a release folder, one of its .onnx files, or the model.pt of a run (needs torch). Image
0449.jpg gives OUT/masks/0449.png, 0 and 255 at the image's own size; OUT/areas.csv has a row per
image. Of several classes the PNG is a label map (0 background, 1 … the classes in their order; its
palette has the figures' colours), and the table has a row per image and class. As in the study, two
images of one name (a.png and a.jpg, or A.png) are not used.
"""

import argparse
import csv
import io
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.data import frames, readers
from thyroid_lib.data.label_maps import class_rgb
from thyroid_lib.deploy.predictor import Prediction, Predictor, read_picture
from thyroid_lib.files.writing import write_file

OPTIONS = {  # of every command that opens a model
    "--model": {"required": True, "help": "release folder, .onnx or model.pt"},
    "--name": {"default": "", "help": "one of a release's models; default: the selected one"},
    "--precision": {"default": "fp32", "choices": ("fp32", "int8")},
    "--threads": {"default": 1, "type": int, "help": "CPU threads of the model"},
}


def open_model(arguments: argparse.Namespace) -> Predictor:
    how = {"model": arguments.name, "precision": arguments.precision, "threads": arguments.threads}
    return Predictor.open(arguments.model, **how)


def segment_folder(predictor: Predictor, images: str | Path, out: str | Path) -> list[dict]:
    """Segment every image of a folder; return the rows of `areas.csv`, of each image and class.

    ValueError: no images, or `out` has masks that this function has not written.
    """
    images, out = Path(images), Path(out)
    table, masks = out / "areas.csv", out / "masks"
    if masks.exists() and (masks.samefile(images) or not table.exists()):
        raise ValueError(f"{out} has a folder masks/ of other origin: give another folder")
    formats = Image.registered_extensions()
    files = sorted(f for f in images.iterdir() if formats.get(f.suffix.lower()) in frames.FORMATS)
    if not files:
        raise ValueError(f"no image in {images}: need {', '.join(frames.FORMATS)}")
    columns = ("file", "height", "width", *predictor.columns, "problem")
    write_file(table, table_csv([], columns))
    keys = [unicodedata.normalize("NFC", file.stem).casefold() for file in files]
    rows, counts = [], Counter(keys)
    white, _ = readers.white_level([readers.measure_image(file)[1] for file in files])
    for file, key in zip(files, keys, strict=True):
        try:
            if counts[key] > 1:
                raise ValueError(f"{counts[key]} images have this name, keep one")
            found = predictor.predict(read_picture(file, white))
            write_file(masks / f"{file.stem}.png", mask_png(found))
            size = dict(zip(("height", "width"), found.mask.shape, strict=True))
            rows += [{"file": file.name} | size | row for row in found.rows()]
        except ValueError as error:
            rows.append({"file": file.name, "problem": str(error)})
    write_file(table, table_csv(rows, columns))
    return rows


def table_csv(rows: list[dict], columns: tuple[str, ...], *, header: bool = True) -> str:
    """Write rows as CSV; a cell is empty where a row lacks the column."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def mask_png(found: Prediction) -> bytes:
    """Encode a mask as PNG, 0 and 255; of several classes the label map, with a palette."""
    file, several = io.BytesIO(), len(found.classes) > 1
    image = Image.fromarray(found.labels if several else found.mask.astype(np.uint8) * 255)
    if several:
        image.putpalette(np.array([(0, 0, 0), *class_rgb(len(found.classes))]).ravel().tolist())
    image.save(file, format="PNG")
    return file.getvalue()


def main() -> int:
    """Segment a folder; exit code 1 if any image failed, 2 if none could be segmented."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for option, how in OPTIONS.items():
        parser.add_argument(option, **how)
    parser.add_argument("--images", required=True, help="folder of PNG, JPEG, BMP or TIFF")
    parser.add_argument("--out", required=True, help="folder for masks/ and areas.csv")
    arguments = parser.parse_args()
    try:
        rows = segment_folder(open_model(arguments), arguments.images, arguments.out)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed, count = [row for row in rows if "problem" in row], len({row["file"] for row in rows})
    for row in failed:
        print(f"skipped {row['file']}: {row['problem']}", file=sys.stderr)
    print(f"{count - len(failed)} of {count} images segmented into {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
