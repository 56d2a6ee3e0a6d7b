"""The predictor, and the command that segments a folder, of a release that takes no training."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_pair, save_pairs
from PIL import Image

from thyroid_lib.data import frames
from thyroid_lib.data.cases import read_pair
from thyroid_lib.data.label_maps import class_rgb
from thyroid_lib.data.look import look
from thyroid_lib.deploy import predict_folder
from thyroid_lib.deploy.predictor import ROW, Predictor, read_picture
from thyroid_lib.evaluate.confidence import expected_dice
from thyroid_lib.evaluate.diameters import diameters


def picture(seed: int = 5, height: int = 90, width: int = 130) -> np.ndarray:
    return ellipse_pair(np.random.default_rng(seed), height, width)[0]


def random_levels(*shape: int, highest: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, highest, shape).astype(dtype)


def run(model, images, out) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "thyroid_lib.deploy.predict_folder", "--model", model]
    command += ["--images", images, "--out", out]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_prediction_is_the_studys_way_by_hand(predictor):
    image = picture()
    found = predictor.predict(image, spacing_mm=(0.1, 0.2))
    square = frames.fit_image(image, 64, "square").astype(np.float32) / 255
    logits = (square - np.float32(115 / 255)) * 40
    prob = frames.restore_prob(1 / (1 + np.exp(-logits)), 90, 130, "square")
    assert found.prob.shape == found.mask.shape == image.shape
    np.testing.assert_allclose(found.prob, prob, atol=1e-5)
    assert ((found.mask != (prob > 0.5)) <= (np.abs(prob - 0.5) < 1e-4)).all()
    assert found.area_px == found.mask.sum() > 500
    assert found.area_mm2 == pytest.approx(found.area_px * 0.02)
    assert not found.refused
    bare = predictor.predict(image)
    assert bare.area_mm2 is bare.diameters_mm is None
    assert bare.diameters_px[0] > bare.diameters_px[1] > 10
    predictor.predict(picture(seed=6))
    assert np.array_equal(predictor.predict(image).prob, found.prob)  # others move no bit


def test_each_class_has_a_mask_and_numbers_of_its_own(class_release):
    """Gland where a pixel is brighter than 115, nodule where it is brighter than 155."""
    predictor, image = Predictor.open(class_release), picture()
    found = predictor.predict(image, spacing_mm=(0.1, 0.2))
    assert [each.name for each in found.classes] == predictor.classes == ["gland", "nodule"]
    level = frames.fit_image(image, 64, "square").astype(np.float32)
    odds = [40 * (level - 115) / 255, 80 * (level - 135) / 255]  # logits, of background 0
    prob = np.exp(odds) / (1 + np.exp(odds[0]) + np.exp(odds[1]))
    masks, sizes, sure = [], [], []
    for number, each in enumerate(found.classes):
        native = frames.restore_prob(prob[number].astype(np.float32), *image.shape, "square")
        np.testing.assert_allclose(each.prob, native, atol=1e-5)
        masks.append(each.mask)
        sizes.append((each.area_px, each.diameters_px, round(each.area_mm2, 6)))
        of = prob.sum(axis=0) > 0.5
        sure.append(expected_dice(prob[number], of & (prob.argmax(axis=0) == number)))
    assert np.array_equal(found.labels, masks[0] + 2 * masks[1])
    assert not (masks[0] & masks[1]).any()
    assert np.array_equal(found.mask, masks[0] | masks[1])
    assert sizes == [(m.sum(), diameters(m), round(0.02 * m.sum(), 6)) for m in masks]
    assert [each.confidence for each in found.classes] == pytest.approx(sure, abs=1e-4)
    assert found.confidence == pytest.approx(np.mean(sure), abs=1e-4)
    dim = predictor.predict(np.minimum(image, 140))
    assert [each.area_px > 0 for each in dim.classes] == [True, False]
    assert dim.confidence == dim.classes[0].confidence  # of what was found
    assert [doubt.code for doubt in predictor.predict(image // 5).doubts].count("empty") == 1


def coloured() -> np.ndarray:
    image = np.stack([picture()] * 3, axis=2)
    image[:9, :20] = (0, 0, 255)
    return image


DOUBTS = {  # image, codes of grave and of other doubts that it must have
    "black": (np.zeros((60, 80), np.uint8), {"blank"}, set()),
    "white": (np.full((60, 80), 255, np.uint8), {"bright"}, set()),
    "colours": (random_levels(60, 80, 3), {"colour"}, set()),
    "noise": (random_levels(60, 80), {"far"}, set()),
    "coloured in part": (coloured(), set(), {"colour"}),
    "dark": (picture() // 5, set(), {"dark", "empty"}),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_doubts_of_what_is_no_frame_or_a_poor_one(predictor, case):
    image, grave, others = DOUBTS[case]
    found = predictor.predict(image)
    assert grave <= {doubt.code for doubt in found.doubts if doubt.grave}
    assert others <= {doubt.code for doubt in found.doubts if not doubt.grave}
    assert found.refused or not grave


def test_a_low_confidence_is_a_doubt(predictor):
    for expected, low, unsure in ((0.3, 0.2, 1), (0.7, 0.2, 0), (0.7, 0.8, 1)):
        about = {"confidence": {"slope": 0.0, "offset": expected}, "confidence_low": low}
        found = Predictor(predictor.network, predictor.about | about).predict(picture())
        assert [doubt.code for doubt in found.doubts].count("unsure") == unsure


def test_impossible_arguments_are_refused(predictor):
    for spacing in ((0.1, 0), (float("nan"), 1)):
        with pytest.raises(ValueError, match="spacing_mm: got"):
            predictor.predict(picture(), spacing_mm=spacing)
    with pytest.raises(ValueError, match="need gray levels"):
        predictor.predict(np.zeros((4, 4)))


def test_a_picture_in_colour_keeps_it_and_its_gray_levels(tmp_path):
    colour = random_levels(20, 30, 3)
    clear = Image.fromarray(colour)
    clear.putalpha(Image.fromarray(random_levels(20, 30)))
    kinds = {
        "a.png": Image.fromarray(colour), "c.png": clear, "e.png": Image.fromarray(colour[..., 0]),
        "f.png": Image.fromarray(colour[..., 0].astype(np.uint16) * 257),
    }  # fmt: skip
    for name, image in kinds.items():
        image.save(tmp_path / name)
        read = read_picture(tmp_path / name)
        assert read.ndim == (3 if name == "a.png" else 2), name
        assert np.array_equal(frames.to_gray(read), frames.read_gray(tmp_path / name))


def test_what_is_no_release_is_one_sentence(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "copy")
    (copy / "other.onnx").write_bytes(b"x")
    with open(copy / "unet.onnx", "ab") as file:
        file.write(b"x")
    for path, how, error, text in (
        (tmp_path / "none.onnx", {}, FileNotFoundError, "no model at"),
        (tmp_path, {}, FileNotFoundError, "no release in"),
        (release, {"model": "vnet"}, ValueError, "this release has unet, segnet"),
        (release, {"precision": "int8"}, ValueError, "this release has fp32"),
        (copy, {}, ValueError, "has changed since"),
        (copy / "other.onnx", {}, ValueError, "is no model of this project"),
    ):
        with pytest.raises(error, match=text):
            Predictor.open(path, **how)


def test_deep_images_of_a_folder_have_one_white_and_one_alone_its_own(predictor, tmp_path):
    """As `evaluate` reads them: 11 of 16 bits, of which the second frame uses but 9."""
    frame, seen = picture().astype(np.uint16) * 8, []
    frame[0, 0] = 2047
    save_pairs(tmp_path, (frame, frame // 4), [np.uint8(frame > 1000)] * 2, "ab")
    cases = look(tmp_path).cases
    predictor = Predictor(predictor.network, predictor.about)
    predictor.predict = lambda image: seen.append(image) or Predictor.predict(predictor, image)
    predict_folder.segment_folder(predictor, tmp_path / "images", tmp_path / "out")
    rows = cases.itertuples(), (frame, frame // 4), (2047, 511)
    for case, levels, alone in zip(*rows, strict=True):
        for image in (seen.pop(0), read_pair(case)[0]):
            np.testing.assert_array_equal(image, np.rint(levels / 2047 * 255))
        np.testing.assert_array_equal(read_picture(case.image_path), np.rint(levels / alone * 255))


@pytest.mark.study
def test_masks_of_a_folder_are_read_back_by_the_study(release, tmp_path):
    images, out = tmp_path / "mine" / "images", tmp_path / "mine"
    images.mkdir(parents=True)
    for width in (37, 52):
        Image.fromarray(picture(5, 41, width)).save(images / f"frame {width}.jpg", quality=95)
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "notes.txt").write_text("not looked at")
    for name in ("twice.png", "Twice.bmp"):
        Image.fromarray(picture(5, 41, 60)).save(images / name)
    done = run(release, images, out)
    assert done.returncode == 1, done.stderr
    assert "skipped broken.jpg" in done.stderr
    assert "skipped twice.png: 2 images have this name, keep one" in done.stderr
    assert "2 of 5 images" in done.stdout
    rows = pd.read_csv(out / "areas.csv").set_index("file")
    assert tuple(rows) == ("height", "width", *ROW, "problem")
    cases = look(out).cases.set_index("case_id")
    assert {path.name for path in (out / "masks").iterdir()} == {"frame 37.png", "frame 52.png"}
    for width in (37, 52):
        case = cases.loc[f"frame {width}"]
        mask = frames.read_gray(case.mask_path) > 127
        assert mask.shape == frames.read_gray(case.image_path).shape == (41, width)
        assert mask.sum() == rows.area_px[f"frame {width}.jpg"] > 0
    assert run(release, images, out).returncode == 1  # once more, over its own masks


def test_a_folder_of_several_classes_has_label_maps_and_a_row_per_class(class_release, tmp_path):
    save_pairs(tmp_path / "in", [picture(), picture() // 5], [picture()] * 2, "ab")
    predictor, out = Predictor.open(class_release), tmp_path / "out"
    predict_folder.segment_folder(predictor, tmp_path / "in" / "images", out)
    rows = pd.read_csv(out / "areas.csv")
    assert list(zip(rows["file"], rows["class"], strict=True)) == [
        (f"{name}.png", kind) for name in "ab" for kind in ("gland", "nodule")
    ]
    with Image.open(out / "masks" / "a.png") as image:
        assert np.array_equal(np.array(image), predictor.predict(picture()).labels)
        seen = {colour for _, colour in image.convert("RGB").getcolors()}
        assert seen == {(0, 0, 0), *class_rgb(2)}
    areas = np.bincount(np.array(Image.open(out / "masks" / "a.png")).ravel())[1:]
    assert rows["area_px"].tolist() == [*areas, 0, 0]
    assert rows["parts"].tolist()[2:] == [0, 0]


def test_masks_of_others_are_not_overwritten(predictor, tmp_path):
    save_pairs(tmp_path, [picture()], [picture()], "a")
    before = (tmp_path / "masks" / "a.png").read_bytes()
    (tmp_path / "other").mkdir()
    for part, out in (("images", tmp_path), ("masks", tmp_path), ("masks", tmp_path / "other/..")):
        with pytest.raises(ValueError, match="give another folder"):
            predict_folder.segment_folder(predictor, tmp_path / part, out)
    assert (tmp_path / "masks" / "a.png").read_bytes() == before
    assert not (tmp_path / "areas.csv").exists()
