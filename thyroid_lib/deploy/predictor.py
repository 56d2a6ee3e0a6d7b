"""One predictor for notebooks, app, node and exports: from a frame as it comes to mask and doubts.

    predictor = Predictor.open("results/demo/deploy")  # a release folder, an .onnx or a model.pt
    found = predictor.predict(read_picture("frame.png"), spacing_mm=(0.08, 0.08))

    python -m thyroid_lib.deploy.predictor --model results/demo/deploy --images DIR --out DIR

writes one mask (PNG, 0 or 255, at the image's own size) per image and `areas.csv`. Fit, restore
and threshold are those of `thyroid_lib.data.frames`, as the study scored them; a release needs
NumPy, Pillow, SciPy and ONNX Runtime, and no torch.
"""

import argparse
import csv
import errno
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage, special
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from thyroid_lib.data import frames
from thyroid_lib.evaluate.confidence import calibrated, expected_dice
from thyroid_lib.evaluate.familiarity import FAR, TOO_FAR, distance
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.writing import write_file

METADATA = "thyroid_lib"  # the key under which an .onnx describes itself, JSON
NEEDED = ("model", "size", "resize", "threshold")
PRECISIONS = ("fp32", "int8")
UNSURE = 0.5  # a confidence below is told, whatever the model's usual one is
MAX_THREADS = 1024  # a slip of the pen would take the machine down
ROW = (
    "area_px", "area_mm2", "longest_px", "across_px", "longest_mm", "across_mm", "confidence",
    "distance", "doubts", "refused",
)  # fmt: skip
COLUMNS = ("file", "height", "width", *ROW, "problem")


@dataclass(frozen=True)
class Doubt:
    """Something about a frame that speaks against its mask; a grave one is a reason to refuse."""

    code: str
    text: str
    grave: bool = False


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model found in one frame.

    prob: float32 (H,W) in [0,1], at the frame's native size, before any threshold.
    mask: bool (H,W).
    diameters_px: the longest straight line within the largest part, and its extent across it.
    confidence: the Dice to be expected, in [0,1]: see `confidence`; None if not calibrated.
    distance: from the training frames, see `Predictor.distance`; None where not known.
    *_mm, *_mm2: None where the spacing is not known.
    """

    prob: np.ndarray
    mask: np.ndarray
    area_px: int
    diameters_px: tuple[float, float]
    area_mm2: float | None
    diameters_mm: tuple[float, float] | None
    confidence: float | None
    distance: float | None
    doubts: tuple[Doubt, ...]

    @property
    def refused(self) -> bool:
        """Whether a doubt is grave: not to be used without a look at the frame."""
        return any(doubt.grave for doubt in self.doubts)

    def row(self) -> dict:
        """Return what tables say of it, by ROW; None where there is nothing to say."""
        sizes = *self.diameters_px, *(self.diameters_mm or (None, None))
        numbers = self.area_px, self.area_mm2, *sizes, self.confidence, self.distance
        numbers = [number and round(number, 4) for number in numbers]
        doubts = " ".join(doubt.code for doubt in self.doubts) or None
        return dict(zip(ROW, (*numbers, doubts, "yes" if self.refused else None), strict=True))


class Predictor:
    """A trained network with all that belongs around it.

    Args:
        network: uint8 (N,S,S) to logits, float32 (N,S,S).
        about: what an .onnx of `export` says of itself: model, size, resize, threshold, and, where
            known, temperature, confidence_low and quality.
    """

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], about: dict):
        self.network, self.about = network, about

    @classmethod
    def open(
        cls, path: str | Path, *, model: str = "", precision: str = "fp32", threads: int = 1
    ) -> "Predictor":
        """Open a release folder, one of its .onnx files, or the model.pt of a run (needs torch).

        Args:
            model: which of a release's models; "" for the one that was selected.
            precision: "fp32" or, where the release has it, "int8".
            threads: CPU threads of ONNX Runtime.

        Raises:
            FileNotFoundError, ValueError: nothing there, no such model, damaged, or of another
                kind; says what to give.
            ImportError: what runs it is not installed; says what to install.
        """
        path = Path(path)
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads: got {threads}, need 1 to {MAX_THREADS}")
        if path.is_dir():
            path = _release_file(path, model, precision)
        if not path.is_file():
            raise FileNotFoundError(
                f"no model at {path}: give a release folder, an .onnx or a model.pt"
            )
        return cls(*(_open_torch(path) if path.suffix == ".pt" else _open_onnx(path, threads)))

    def predict(
        self,
        image: np.ndarray,
        *,
        spacing_mm: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> Prediction:
        """Segment one frame.

        Args:
            image: uint8 (H,W) gray or (H,W,3) RGB; other depths by `to_gray`.
            spacing_mm: of rows and of columns, where it is known.
            threshold: instead of the one that the model was evaluated with.

        Raises:
            ValueError: no such frame, or an impossible spacing or threshold.
        """
        threshold = self.about["threshold"] if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ValueError(f"threshold: got {threshold}, need a number between 0 and 1")
        if spacing_mm is not None and not all(0 < each < 100 for each in spacing_mm):
            raise ValueError(f"spacing_mm: got {spacing_mm}, need mm per pixel, above 0, below 100")
        gray = to_gray(image)
        fitted = frames.fit_image(gray, self.about["size"], self.about["resize"])  # (S,S)
        prob, mask, confidence = self.segment(fitted, gray.shape, threshold)
        distance = self.distance(fitted)
        spacing = spacing_mm or (1.0, 1.0)
        return Prediction(
            prob=prob,
            mask=mask,
            area_px=int(mask.sum()),
            diameters_px=diameters(mask),
            area_mm2=float(mask.sum() * spacing[0] * spacing[1]) if spacing_mm else None,
            diameters_mm=diameters(mask, spacing) if spacing_mm else None,
            confidence=confidence,
            distance=distance,
            doubts=tuple(self._doubts(image, gray, mask, confidence, distance)),
        )

    def segment(
        self, fitted: np.ndarray, shape: tuple[int, int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray, float | None]:
        """Return prob, mask and confidence, see `Prediction`, of a frame as a store holds it.

        Args:
            fitted: uint8 (S,S).
            shape: height and width of the frame itself.
        """
        # each frame by itself, so that what else is in the queue moves no bit
        logits = self.network(fitted[None])[0]  # (S,S)
        square = special.expit(logits)
        prob = frames.restore_prob(square, *shape, self.about["resize"])  # (H,W)
        confidence = None
        if temperature := self.about.get("temperature"):
            tempered = special.expit(logits / np.float32(temperature))
            expected = expected_dice(tempered, frames.threshold_prob(square, threshold))
            confidence = float(calibrated(expected, self.about.get("confidence")))
        return prob, frames.threshold_prob(prob, threshold), confidence

    def distance(self, fitted: np.ndarray) -> float | None:
        """How far a frame, uint8 (S,S), is from the training frames, see `quality.distance`; None
        where the model does not say.
        """
        known = self.about.get("quality")
        return distance(known, fitted) if known else None

    def _doubts(self, image, gray, mask, confidence, distance):
        """Yield what speaks against a prediction."""
        colour = 0.0
        if image.ndim == 3:
            spread = image.max(axis=2).astype(int) - image.min(axis=2)
            colour = float((spread > 48).mean())
        if gray.std() < 3 or gray.max() < 24:
            yield Doubt("blank", "There is no picture in this frame.", grave=True)
        elif np.percentile(gray, 95) < 40:
            yield Doubt("dark", "The frame is very dark: raise the gain.")
        if colour > 0.3:
            yield Doubt("colour", "This is a colour picture, not a B-mode frame.", grave=True)
        elif colour > 0.01:
            yield Doubt(
                "colour", "Parts of the frame are in colour: Doppler or annotations hide tissue."
            )
        if (gray >= 200).mean() > 0.35:
            text = "Much of it is white: a page or a photograph, not a B-mode frame."
            yield Doubt("bright", text, grave=True)
        if distance is not None and distance > FAR:
            grave = distance > TOO_FAR
            yield Doubt(
                "far",
                f"Unlike the training frames: {distance:.1f} times as far from them as 99 of 100 "
                f"frames are{', too far to trust' if grave else ''}.",
                grave,
            )
        if not mask.any():
            yield Doubt("empty", "No thyroid was found.")
        low = self.about.get("confidence_low")
        if confidence is not None and confidence < UNSURE:
            yield Doubt(
                "unsure",
                f"A Dice of {confidence:.2f} is to be expected: much of this is likely wrong.",
            )
        elif None not in (confidence, low) and confidence < low:
            yield Doubt(
                "unsure",
                f"The model is less sure than on 95 of 100 validation frames (confidence "
                f"{confidence:.2f}, there {low:.2f} or more).",
            )


def read_picture(path: str | Path) -> np.ndarray:
    """Read an image file as `frames.read_gray` does; RGB where it is in colour.

    Returns:
        uint8 (H,W), or (H,W,3) with the same gray levels.

    Raises:
        ValueError: see `frames.read_gray`.
    """
    gray = frames.read_gray(path)
    with Image.open(path, formats=frames.FORMATS) as image:
        colour = None if image.mode in ("1", "L", "LA") else np.array(image.convert("RGB"))
    # a turned, transparent or deep picture has other gray levels: then its colours do not count
    known = colour is not None and np.array_equal(to_gray(colour), gray)
    return colour if known else gray


def to_gray(levels: np.ndarray, *, bits: int = 0, inverted: bool = False) -> np.ndarray:
    """Turn a decoded picture into gray levels, as `frames.read_gray` does those of a file.

    Args:
        levels: gray (H,W), uint8 or uint16, or RGB, uint8 (H,W,3).
        bits: of the highest gray level; 0 for all that the type has.
        inverted: whether 0 is white.

    Returns:
        uint8 (H,W).

    Raises:
        ValueError: another shape or type, or more pixels than `frames.MAX_PIXELS`.
    """
    levels = np.asarray(levels)
    gray = levels.ndim == 2 and levels.dtype in (np.uint8, np.uint16)
    if not levels.size or not (
        gray or (levels.ndim == 3 and levels.shape[2] == 3 and levels.dtype == np.uint8)
    ):
        raise ValueError(
            f"got {levels.dtype} {levels.shape}, need gray levels (H,W), uint8 or uint16, or RGB "
            "(H,W,3), uint8"
        )
    if levels.shape[0] * levels.shape[1] > frames.MAX_PIXELS:
        raise ValueError(f"has more than {frames.MAX_PIXELS // 1_000_000} megapixels")
    highest = 2 ** (bits or 8 * levels.itemsize) - 1
    if inverted:
        levels = highest - np.minimum(levels, highest)
    if levels.dtype == np.uint16:
        return np.rint(np.minimum(levels, highest) / (highest / 255)).astype(np.uint8)
    return np.array(Image.fromarray(levels).convert("L"))


def diameters(mask: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float]:
    """Return the longest diameter of the largest part of a mask, and its extent across that one.

    From pixel centre to pixel centre, in the unit of the spacing; (0, 0) for an empty mask.

    Args:
        mask: bool (H,W).
        spacing: of rows and of columns.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return 0.0, 0.0
    largest = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    rows = np.flatnonzero(largest.any(axis=1))
    part = largest[rows]  # of which only the ends of rows can be corners
    ends = part.argmax(axis=1), part.shape[1] - 1 - part[:, ::-1].argmax(axis=1)
    points = np.stack([np.tile(rows, 2), np.concatenate(ends)], axis=1) * np.array(spacing)  # (P,2)
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # all on one line
        points = points[[0, -1]]
    place = pdist(points).argmax()
    first, second = (axis[place] for axis in np.triu_indices(len(points), 1))
    along = points[second] - points[first]
    length = float(np.hypot(*along))
    if not length:
        return 0.0, 0.0
    across = points @ np.array([-along[1], along[0]]) / length
    return length, float(np.ptp(across))


def _release_file(folder: Path, model: str, precision: str) -> Path:
    """Return the .onnx that is asked for, after a look at its checksum."""
    try:
        release = json.loads((folder / "release.json").read_text("utf-8"))
        sums, selected = dict(release["files"]), str(release["selected"])
        files = {name: dict(of) for name, of in release["models"].items()}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no release in {folder}: release.json is missing; make one with 6-deploy"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"release.json in {folder} is damaged ({error}): make it again") from error
    model = model or selected
    if model not in files:
        raise ValueError(f"model: got {model!r}, this release has {', '.join(files)}")
    if precision not in files[model]:
        raise ValueError(
            f"precision: got {precision!r}, of {model} this release has {', '.join(files[model])}"
        )
    path = folder / files[model][precision]
    if path.is_file() and file_digest(path) != sums.get(path.name):
        raise ValueError(f"{path.name} has changed since the release was made: copy it again")
    return path


def _open_onnx(path: Path, threads: int) -> tuple:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX Runtime is not installed: pip install onnxruntime") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
        for needed in NEEDED:
            about[needed]
    except Exception as error:  # ONNX Runtime raises a dozen kinds on what it cannot read
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path.name} is no model of this project ({what}): give one that 6-deploy has made"
        ) from error
    name = session.get_inputs()[0].name

    def network(squares: np.ndarray) -> np.ndarray:
        image = squares[:, None].astype(np.float32) / 255  # (N,1,S,S)
        return session.run(None, {name: image})[0][:, 0]

    return network, about


def _open_torch(path: Path) -> tuple:
    from thyroid_lib.evaluate.predict import load_model, predict_logits

    model, about = load_model(path)
    run = path.parent / "run.json"
    if run.is_file():
        about = about | {"temperature": json.loads(run.read_text("utf-8")).get("temperature")}

    def network(squares: np.ndarray) -> np.ndarray:
        batches = predict_logits(model, squares)
        return np.concatenate([logits[:, 0].numpy() for _, logits in batches])

    return network, about


def segment_folder(predictor: Predictor, images: str | Path, out: str | Path) -> list[dict]:
    """Segment every image of a folder; an unreadable one is reported and passed over.

    Returns:
        One row per image, by COLUMNS: problem is None where it went well; the same as `areas.csv`.
    """
    if not Path(images).is_dir():
        raise ValueError(f"no folder at {images}: give the folder that holds the images")
    if Path(out).resolve() == Path(images).resolve():  # else the masks were images the next time
        raise ValueError(f"{out} holds the images: give another folder for the masks")
    formats = Image.registered_extensions()
    files = sorted(
        f for f in Path(images).iterdir() if formats.get(f.suffix.lower()) in frames.FORMATS
    )
    if not files:
        raise ValueError(f"no image in {images}: need {', '.join(frames.FORMATS)}")
    rows = []
    for file in files:
        row = dict.fromkeys(COLUMNS) | {"file": file.name}
        rows.append(row)
        try:
            found = predictor.predict(read_picture(file))
            write_file(Path(out) / f"{file.name}.mask.png", mask_png(found.mask))
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                raise
            row["problem"] = str(error)
            continue
        row["height"], row["width"] = found.mask.shape
        row |= found.row()
    # a name that is no text stays as it is on the disk
    write_file(Path(out) / "areas.csv", table_csv(rows).encode(errors="surrogateescape"))
    return rows


def table_csv(rows: list[dict]) -> str:
    """Write rows of equal keys as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def mask_png(mask: np.ndarray) -> bytes:
    """Write a mask as PNG: 0 and 255."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()


def open_asked(asked: argparse.Namespace) -> Predictor:
    """Open the model that a command was asked for, by OPTIONS."""
    how = {"model": asked.name, "precision": asked.precision, "threads": asked.threads}
    return Predictor.open(asked.model, **how)


OPTIONS = {
    "--model": {"required": True, "help": "release folder, .onnx or model.pt"},
    "--name": {"default": "", "help": "which of a release's models; the selected one"},
    "--precision": {"default": "fp32", "choices": PRECISIONS},
    "--threads": {"default": 1, "type": int, "help": "CPU threads of the model"},
}


def main() -> int:
    """Segment a folder from the command line; exit 1 if any image failed, 2 if none could run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for option, how in OPTIONS.items():
        parser.add_argument(option, **how)
    parser.add_argument("--images", required=True, help="folder of PNG, JPEG, BMP or TIFF")
    parser.add_argument("--out", required=True, help="folder for the masks and areas.csv")
    asked = parser.parse_args()
    try:
        rows = segment_folder(open_asked(asked), asked.images, asked.out)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = [row for row in rows if row["problem"]]
    for row in failed:
        print(f"passed over {row['file']}: {row['problem']}", file=sys.stderr)
    print(f"{len(rows) - len(failed)} of {len(rows)} images segmented into {asked.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
