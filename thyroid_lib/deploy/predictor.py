"""Predictor: from one ultrasound frame to mask, size, confidence and doubts.

    predictor = Predictor.open("results/demo/deploy")  # a release folder, an .onnx or a model.pt
    found = predictor.predict(read_picture("frame.png"), spacing_mm=(0.08, 0.08))

Notebooks, command line, web page and DICOM node all use it. Masks are made as the study scored
them. A release needs ONNX Runtime, and no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from thyroid_lib.data import frames, label_maps, readers
from thyroid_lib.data.classes import class_names
from thyroid_lib.evaluate.confidence import calibrated, expected_dice
from thyroid_lib.evaluate.diameters import Pair, diameters
from thyroid_lib.evaluate.familiarity import FAR, TOO_FAR, distance
from thyroid_lib.evaluate.networks import model_name, open_network

UNSURE = 0.5  # confidence below this is always reported, whatever the model's usual one is
ROW = (
    "area_px", "area_mm2", "longest_px", "across_px", "longest_mm", "across_mm", "confidence",
    "distance", "doubts", "refused",
)  # fmt: skip


class Doubt(NamedTuple):
    """Evidence against a mask; a grave one is a reason to refuse the frame."""

    code: str
    text: str
    grave: bool = False


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result for one frame, at its native size; None for what is not known.

    Of several classes it is that of the foreground, and `classes` has one for each of them.
    """

    prob: np.ndarray  # float32 (H,W) in [0,1], before the threshold
    mask: np.ndarray  # bool (H,W)
    area_px: int
    diameters_px: Pair  # see `diameters`
    area_mm2: float | None
    diameters_mm: Pair | None
    confidence: float | None  # the expected Dice, in [0,1]
    distance: float | None  # from the training frames, see `familiarity.distance`
    doubts: tuple[Doubt, ...]
    name: str = field(default="gland", repr=False)  # repr makes the UID of a DICOM report
    parts: int = field(default=0, repr=False)  # of the mask that touch nowhere
    of_class: tuple["Prediction", ...] = field(default=(), repr=False)

    @property
    def classes(self) -> tuple["Prediction", ...]:
        """The result of each class, in their order; of one class this one."""
        return self.of_class or (self,)

    @property
    def labels(self) -> np.ndarray:
        """The label map, uint8 (H,W): 0 background, 1 … the classes in their order."""
        numbered = enumerate(self.classes, 1)
        return np.sum([label * each.mask.astype(np.uint8) for label, each in numbered], 0, np.uint8)

    @property
    def refused(self) -> bool:
        """Whether a doubt is grave: do not use the result without a look at the frame."""
        return any(doubt.grave for doubt in self.doubts)

    def row(self) -> dict:
        """Return the columns ROW of a table."""
        sizes = *self.diameters_px, *(self.diameters_mm or (None, None))
        numbers = self.area_px, self.area_mm2, *sizes, self.confidence, self.distance
        numbers = [number and round(number, 4) for number in numbers]
        doubts = " ".join(doubt.code for doubt in self.doubts) or None
        return dict(zip(ROW, (*numbers, doubts, "yes" if self.refused else None), strict=True))

    def rows(self) -> list[dict]:
        """Return a row for each class, with the columns `Predictor.columns`."""
        more = [{"class": each.name, "parts": each.parts} for each in self.of_class] or [{}]
        return [each.row() | own for each, own in zip(self.classes, more, strict=True)]

    def without_maps(self) -> "Prediction":
        """Return the numbers alone, as a cine has hundreds of frames."""
        bare = tuple(each.without_maps() for each in self.of_class)
        return replace(self, prob=0, mask=0, of_class=bare)


class Predictor:
    """A trained network with pre- and post-processing; network and `about`: see `open_network`."""

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], about: dict):
        self.network, self.about = network, about
        self.name, self.classes = model_name(about), class_names(about)
        self.structure = "thyroid" if "gland" in self.classes else "nodule"
        # of the rows of a table
        self.columns = ("class", *ROW, "parts") if len(self.classes) > 1 else ROW

    @classmethod
    def open(
        cls, path: str | Path, *, model: str = "", precision: str = "fp32", threads: int = 1
    ) -> "Predictor":
        """Open a release folder, one of its .onnx files, or the model.pt of a run (needs torch).

        Of a release, `model` "" is the selected one; `threads` are ONNX Runtime's, 0 for all.
        FileNotFoundError, ValueError: no such model or precision, or a damaged file.
        """
        return cls(*open_network(path, model=model, precision=precision, threads=threads))

    def predict(
        self, image: np.ndarray, *, spacing_mm: Pair | None = None, threshold: float | None = None
    ) -> Prediction:
        """Segment one frame, uint8 (H,W) gray or (H,W,3) RGB; other depths by `frames.to_gray`.

        `spacing_mm` is of rows and columns; `threshold` None is the one that the model was
        evaluated with. ValueError: an impossible image or spacing.
        """
        threshold = self.about["threshold"] if threshold is None else threshold
        if spacing_mm is not None and not all(0 < each < 100 for each in spacing_mm):
            raise ValueError(f"spacing_mm: got {spacing_mm}, need mm per pixel, above 0, below 100")
        gray = frames.to_gray(image)
        fitted = frames.fit_image(gray, self.about["size"], self.about["resize"])  # (S,S)
        prob, labels, sure = self.segment(fitted, gray.shape, threshold)

        def measure(prob, mask, confidence, name) -> Prediction:
            area, in_mm = int(mask.sum()), (None, None)
            if spacing_mm is not None:
                in_mm = float(area * spacing_mm[0] * spacing_mm[1]), diameters(mask, spacing_mm)
            parts = ndimage.label(mask, np.ones((3, 3)))[1]
            known = *in_mm, confidence, far, doubts
            return Prediction(prob, mask, area, diameters(mask), *known, name, parts)

        mask, far = labels > 0, self.distance(fitted)
        doubts = self._doubts(image, gray, mask, sure[0], far)
        found = measure(prob.sum(axis=0), mask, sure[0], self.classes[0])
        if len(prob) == 1:
            return found
        masks = label_maps.class_masks(labels, len(prob))
        each = zip(prob, masks, sure[1:], self.classes, strict=True)
        return replace(found, name="foreground", of_class=tuple(measure(*of) for of in each))

    def segment(
        self, fitted: np.ndarray, shape: tuple[int, int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray, list[float | None]]:
        """Segment a fitted frame, uint8 (S,S), at its native shape.

        Returns prob, float32 (K,H,W); label map, uint8 (H,W); the confidence, which of several
        classes is the mean of those that were found, and then that of each class.
        """
        # a batch of one frame: other frames in the batch would change the last bits
        logits = self.network(fitted[None])  # (1,S,S), of several classes (1,K+1,S,S)
        logits = logits[:, None] if logits.ndim == 3 else logits
        square = label_maps.class_probs(logits)[0]  # (K,S,S)
        sure = [None] * (len(square) + 1)
        if temperature := self.about.get("temperature"):
            tempered = label_maps.class_probs(logits / np.float32(temperature))[0]
            labels, line = label_maps.to_labels(square, threshold), self.about.get("confidence")
            masks = label_maps.class_masks(labels, len(square))
            each = [expected_dice(*of) for of in zip(tempered, masks, strict=True)]
            found = [x for x, mask in zip(each, masks, strict=True) if mask.any()]
            whole = np.mean(found) if found else expected_dice(tempered.sum(axis=0), labels > 0)
            sure = [float(calibrated(x, line)) for x in (whole, *each)]
        how = {"resize": self.about["resize"], "threshold": threshold}
        return *label_maps.restore_labels(square, *shape, **how), sure

    def distance(self, fitted: np.ndarray) -> float | None:
        """Return `familiarity.distance` of a frame, uint8 (S,S); None if the model has no data."""
        known = self.about.get("quality")
        return distance(known, fitted) if known else None

    def _doubts(self, image, gray, mask, confidence, distance) -> tuple[Doubt, ...]:
        spread = image.max(axis=2).astype(int) - image.min(axis=2) if image.ndim == 3 else gray * 0
        colour, blank = float((spread > 48).mean()), gray.std() < 3 or gray.max() < 24
        far, sure = distance or 0.0, 1.0 if confidence is None else confidence
        low = self.about.get("confidence_low") or 0.0
        checks = (
            ("blank", blank, "There is no picture in this frame.", True),
            ("dark", not blank and np.percentile(gray, 95) < 40,
             "The frame is very dark: raise the gain.", False),
            ("colour", colour > 0.3, "This is a colour picture, not a B-mode frame.", True),
            ("colour", 0.01 < colour <= 0.3,
             "Parts of the frame are in colour: Doppler or annotations hide tissue.", False),
            ("bright", (gray >= 200).mean() > 0.35,
             "Much of it is white: a page or a photograph, not a B-mode frame.", True),
            ("far", far > FAR,
             f"Unlike the training frames: {far:.1f} times as far from them as 99 of 100 frames "
             f"are{', too far to trust' * (far > TOO_FAR)}.", far > TOO_FAR),
            ("empty", not mask.any(), f"No {self.structure} was found.", False),
            ("unsure", sure < UNSURE,
             f"The expected Dice is {sure:.2f}: much of this is likely wrong.", False),
            ("unsure", UNSURE <= sure < low,
             "The model is less sure than on 95 of 100 validation frames "
             f"(confidence {sure:.2f}, there {low:.2f} or more).", False),
        )  # fmt: skip
        return tuple(Doubt(code, text, grave) for code, holds, text, grave in checks if holds)


def read_picture(path: str | Path, white: float | None = None) -> np.ndarray:
    """Read an image file as `frames.read_gray` does; RGB (H,W,3) if it is in colour.

    white: `readers.white_level` of a source's images; None: of this one.
    """
    white = readers.white_level([readers.measure_image(path)[1]])[0] if white is None else white
    gray = frames.read_gray(path, highest=white)
    with Image.open(path, formats=frames.FORMATS) as image:
        colour = None if image.mode in ("1", "L", "LA") else np.array(image.convert("RGB"))
    # a rotated, transparent or 16-bit picture has other gray levels: its colours are ignored
    known = colour is not None and np.array_equal(frames.to_gray(colour), gray)
    return colour if known else gray
