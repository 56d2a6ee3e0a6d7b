import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ellipse_pair
from PIL import Image

from thyroid_lib.data import frames
from thyroid_lib.deploy import predictor as module
from thyroid_lib.deploy.predictor import Predictor, diameters, to_gray
from thyroid_lib.evaluate.confidence import expected_dice
from thyroid_lib.evaluate.familiarity import features

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def predictor(release):
    return Predictor.open(release)


def picture(height: int = 90, width: int = 130, seed: int = 5) -> np.ndarray:
    return ellipse_pair(np.random.default_rng(seed), height, width)[0]


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
    assert found.distance < 3
    assert not found.refused


def test_without_spacing_nothing_is_in_mm(predictor):
    found = predictor.predict(picture())
    assert found.area_mm2 is None
    assert found.diameters_mm is None
    assert found.diameters_px[0] > found.diameters_px[1] > 10


def test_what_else_is_segmented_moves_no_bit(predictor):
    alone = predictor.predict(picture()).prob
    predictor.predict(picture(seed=6))
    assert np.array_equal(predictor.predict(picture()).prob, alone)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((60, 80), np.uint8), "blank"),
        (np.full((60, 80), 255, np.uint8), "bright"),
        (np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8), "colour"),
        (np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8), "far"),
    ],
)
def test_what_is_no_frame_is_refused(predictor, image, code):
    found = predictor.predict(image)
    assert code in {doubt.code for doubt in found.doubts if doubt.grave}
    assert found.refused


def test_a_doubtful_frame_is_segmented_with_a_warning(predictor):
    image = picture()
    marked = np.stack([image] * 3, axis=2)
    marked[:9, :20] = (0, 0, 255)
    found = predictor.predict(marked)
    assert [doubt.code for doubt in found.doubts if not doubt.grave][:1] == ["colour"]
    assert "dark" in {doubt.code for doubt in predictor.predict(image // 5).doubts}
    assert "empty" in {doubt.code for doubt in predictor.predict(image // 5).doubts}


def test_a_poor_model_is_never_without_doubt(predictor):
    line = {"slope": 0.0, "offset": 0.3}
    poor = Predictor(
        predictor.network, predictor.about | {"confidence": line, "confidence_low": 0.2}
    )
    assert "unsure" in {doubt.code for doubt in poor.predict(picture()).doubts}
    fair = Predictor(poor.network, poor.about | {"confidence": {"slope": 0.0, "offset": 0.7}})
    assert "unsure" not in {doubt.code for doubt in fair.predict(picture()).doubts}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"threshold": 1.0}, "threshold: got 1.0"),
        ({"spacing_mm": (0.1, 0)}, "spacing_mm: got"),
        ({"spacing_mm": (float("nan"), 1)}, "spacing_mm: got"),
    ],
)
def test_impossible_arguments(predictor, how, said):
    with pytest.raises(ValueError, match=said):
        predictor.predict(picture(), **how)


@pytest.mark.parametrize(
    "levels",
    [
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4)),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, "u1"),
    ],
)
def test_what_is_no_picture_is_a_sentence(levels):
    with pytest.raises(ValueError, match="need gray levels"):
        to_gray(levels)


def test_gray_levels_are_those_that_a_file_would_have(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    assert np.array_equal(to_gray(colour), frames.read_gray(tmp_path / "colour.png"))
    deep = rng.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(to_gray(deep), frames.read_gray(tmp_path / "deep.png"))


def test_a_picture_in_colour_keeps_it_and_its_gray_levels(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    clear = Image.fromarray(colour)
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (20, 30)).astype(np.uint8)))
    kinds = {
        "a.png": Image.fromarray(colour), "b.jpg": Image.fromarray(colour), "c.png": clear,
        "d.gif": Image.fromarray(colour).quantize(), "e.png": Image.fromarray(colour[..., 0]),
        "f.png": Image.fromarray(colour[..., 0].astype(np.uint16) * 257),
    }  # fmt: skip
    for name, image in kinds.items():
        image.save(tmp_path / name)
        read = module.read_picture(tmp_path / name)
        assert read.ndim == (3 if name in ("a.png", "b.jpg", "d.gif") else 2), name
        assert np.array_equal(to_gray(read), frames.read_gray(tmp_path / name))


def test_twelve_bits_and_white_at_zero():
    assert to_gray(np.array([[0, 4095]], np.uint16), bits=12).tolist() == [[0, 255]]
    assert to_gray(np.array([[0, 4095]], np.uint16), bits=12, inverted=True).tolist() == [[255, 0]]
    assert to_gray(np.array([[0, 255]], np.uint8), inverted=True).tolist() == [[255, 0]]


def test_diameters_of_shapes_drawn_by_hand():
    mask = np.zeros((40, 60), bool)
    assert diameters(mask) == (0, 0)
    mask[20, 10] = True
    assert diameters(mask) == (0, 0)
    mask[20, 10:31] = True
    assert diameters(mask, (1, 0.5)) == (10, 0)
    mask[10, 20] = mask[11:20, 20] = True
    assert diameters(mask) == (20, 10)
    mask[30:34, 50:54] = True  # a smaller part, which is not measured
    assert diameters(mask) == (20, 10)


def test_expected_dice_of_probabilities_drawn_by_hand():
    prob = np.array([[0.9, 0.8, 0.3]], np.float32)
    assert expected_dice(prob, prob > 0.5) == pytest.approx(2 * 1.7 / (2 + 2.0))
    assert expected_dice(prob, prob > 0.95) == pytest.approx(0.1)


def test_distance_grows_with_the_change(predictor):
    image = picture(64, 64)
    distances = [predictor.distance(np.minimum(image.astype(int) + up, 255).astype(np.uint8))
                 for up in (0, 40, 80)]  # fmt: skip
    assert distances == sorted(distances)
    assert features(image).shape == (8,)


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_impossible_threads(release, threads):
    with pytest.raises(ValueError, match="threads: got"):
        Predictor.open(release, threads=threads)


def test_a_release_that_is_none_is_a_sentence(release, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        Predictor.open(tmp_path / "none.onnx")
    with pytest.raises(FileNotFoundError, match=r"release\.json is missing"):
        Predictor.open(tmp_path)
    with pytest.raises(ValueError, match="this release has unet, segnet"):
        Predictor.open(release, model="vnet")
    with pytest.raises(ValueError, match="this release has fp32"):
        Predictor.open(release, precision="int8")
    copy = shutil.copytree(release, tmp_path / "copy")
    with open(copy / "unet.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="has changed since"):
        Predictor.open(copy)
    (copy / "other.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no model of this project"):
        Predictor.open(copy / "other.onnx")
    whole = json.loads((release / "release.json").read_text("utf-8"))
    odd = [whole | part for part in ({"models": 3}, {"models": {"unet": 3}}, {"files": 3})]
    for content in ("{", "[]", json.dumps({"models": {}}), *map(json.dumps, odd)):
        (copy / "release.json").write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            Predictor.open(copy)


def test_neither_torch_nor_pandas_is_needed(release, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'onnx', 'matplotlib'): sys.modules[name] = None\n"
        "from thyroid_lib.deploy import predictor\n"
        "sys.exit(predictor.main())"
    )
    command = [sys.executable, "-c", code, "--model", release, "--images", tmp_path]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png.mask.png").exists()


def test_a_folder_is_segmented_from_the_command_line(release, tmp_path):
    images, out = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for width in (37, 52):
        Image.fromarray(picture(41, width)).save(images / f"frame {width}.png")
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "notes.txt").write_text("not looked at")
    command = [sys.executable, "-m", module.__name__, "--model", release]
    command += ["--images", images, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "passed over broken.jpg" in done.stderr
    assert "2 of 3 images" in done.stdout
    lines = (out / "areas.csv").read_text("utf-8").splitlines()
    assert lines[0] == (
        "file,height,width,area_px,area_mm2,longest_px,across_px,longest_mm,across_mm,confidence,"
        "distance,doubts,refused,problem"
    )
    assert [line.split(",")[0] for line in lines[1:]] == [
        "broken.jpg",
        "frame 37.png",
        "frame 52.png",
    ]
    for line, width in zip(lines[2:], (37, 52), strict=True):
        mask = np.array(Image.open(out / f"frame {width}.png.mask.png"))
        assert mask.shape == (41, width)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).sum() == int(line.split(",")[3]) > 0


def test_masks_are_not_taken_for_images_the_next_time(predictor, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for out in (tmp_path, tmp_path / "b" / ".."):
        with pytest.raises(ValueError, match="holds the images: give another folder"):
            module.segment_folder(predictor, tmp_path, out)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_name_that_is_no_text_is_in_the_table(predictor, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(picture()).save(images / "a.png")
    (images / "a.png").rename(images / os.fsdecode(b"\xfc.png"))
    module.segment_folder(predictor, images, tmp_path / "out")
    assert b"\n\xfc.png," in (tmp_path / "out" / "areas.csv").read_bytes()


def test_a_folder_without_images_or_model_is_one_sentence(release, tmp_path):
    for model, said in ((release, "no image in"), (tmp_path / "x.pt", "no model at")):
        command = [sys.executable, "-m", module.__name__, "--model", model]
        command += ["--images", tmp_path, "--out", tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
