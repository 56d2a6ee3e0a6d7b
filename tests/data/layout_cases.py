"""Layouts, masks and images as people have them, each drawn in a few lines.

With the tables of `table_cases` they are one table for test_layouts.py and for docs/own-data.md.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

HEIGHT, WIDTH = 40, 56
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def image(i: int) -> np.ndarray:
    """Draw a frame, uint8 (H,W), different for each number."""
    noise = np.random.default_rng(i).normal(0, 9, (HEIGHT, WIDTH))
    return (90 + 50 * np.cos(COLUMNS / 6 + i) + noise).clip(0, 255).astype(np.uint8)


def gland(i: int) -> np.ndarray:
    """Draw a gland, bool (H,W): an ellipse that moves to the right with each number."""
    return ((ROWS - 20) / 11) ** 2 + ((COLUMNS - 22 - i) / 13) ** 2 < 1


def nodule(i: int) -> np.ndarray:
    """Draw a nodule at the right end of the gland, bool (H,W)."""
    return gland(i) & (COLUMNS > 28)


def labels(i: int) -> np.ndarray:
    """Draw the label map of a gland, 1, with its nodule, 2."""
    return gland(i).astype(np.uint8) + nodule(i)


def cyst(i: int) -> np.ndarray:
    """Draw a second structure beside the gland, bool (H,W)."""
    return np.hypot(ROWS - 8, COLUMNS - 46 + i) < 5


def levels(one, two=None, dtype=np.uint8):
    """Return a drawing of masks: 0 around, `one` on the gland, `two` on its nodule."""

    def draw(i):
        mask = np.zeros((HEIGHT, WIDTH), dtype)
        mask[gland(i)] = one
        if two is not None:
            mask[nodule(i)] = two
        return mask

    return draw


def colours(*rgb, around=(0, 0, 0)):
    """Return a drawing of masks in colours, of 3 or 4 channels: the gland, and its nodule."""

    def draw(i):
        mask = np.zeros((HEIGHT, WIDTH, len(rgb[0])), np.uint8)
        mask[:] = around
        for colour, where in zip(rgb, (gland(i), nodule(i)), strict=False):
            mask[where] = colour
        return mask

    return draw


def palette(*rgb, index=(1, 2)):
    """Return a drawing of masks as indices into a palette."""

    def draw(i):
        picture = Image.fromarray(levels(*index[: len(rgb) - 1])(i), "P")
        picture.putpalette([value for colour in rgb for value in colour])
        return picture

    return draw


def smooth(mask: np.ndarray) -> np.ndarray:
    """Return probabilities, float32 (H,W), which are above 0.5 on a mask."""
    inside, outside = (ndimage.distance_transform_edt(each) for each in (mask, ~mask))
    return (1 / (1 + np.exp((outside - inside) / 2))).astype(np.float32)


def border(i: int) -> np.ndarray:
    """Draw a gland that leaves the picture at its left, bool (H,W)."""
    return gland(i) | ((abs(ROWS - 20) < 4) & (COLUMNS < 25))


def one_touches(i: int) -> np.ndarray:
    return border(i) if i == 3 else gland(i)


def blurred(i: int) -> np.ndarray:
    """Draw a mask whose edge pixels have levels between 0 and 255, uint8 (H,W)."""
    radius = ((ROWS - 20) / 11) ** 2 + ((COLUMNS - 22 - i) / 13) ** 2
    return np.rint(255 * np.clip(0.499 + 2 * (1 - radius), 0, 1)).astype(np.uint8)


def encode(content, name: str) -> bytes:
    """Return a file's bytes; its name says the format."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    buffer = io.BytesIO()
    if name.endswith(".npy"):
        np.save(buffer, content)
    else:
        picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
        form = Image.registered_extensions()[Path(name).suffix.lower()]
        how = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
        picture.save(buffer, form, **how.get(form, {}))
    return buffer.getvalue()


def pairs(images="images/a{}.png", masks="masks/a{}.png", draw=None, frames=image):
    """Return {path: content} of images and masks, numbered from 0."""
    files = {images.format(i): frames(i) for i in range(5)}
    return files | {masks.format(i): (draw or levels(255))(i) for i in range(5)}


@dataclass(frozen=True)
class Case:
    """A data set: its files, what the study sets, and what must come of it."""

    files: dict
    ids: str | tuple[str, ...] = "a{}"  # of each number
    masks: Callable = gland  # of each number, bool (H,W), or a label map
    groups: dict | None = None  # {number: group}; None for every image alone
    official: dict = field(default_factory=dict)  # {number: side}
    choices: dict = field(default_factory=dict)
    said: str = ""  # words of what is said
    refused: bool = False  # `said` is the refusal then
    mend: dict = field(default_factory=dict)  # what the refusal proposes, with which it is read
    near: float = 0  # gray levels that images may differ by, where JPEG blurs them


def both(i: int) -> np.ndarray:
    return gland(i) | cyst(i) if i == 1 else gland(i)


def busi(image_name, mask_name, second):
    """Return BUSI's files: number 1 has a second mask."""
    return pairs(image_name, mask_name) | {second: cyst(1).astype(np.uint8) * 255}


def sides(pattern: str) -> dict:
    """Return files of a split, number 4 to be tested; a pattern of side, folder and number."""
    files = {}
    for i in range(5):
        side = "test" if i == 4 else "train"
        files[pattern.format(side, "images", i)] = image(i)
        files[pattern.format(side, "masks", i)] = levels(255)(i)
    return files


def deep(white: float, dtype=np.uint16):
    """Return a drawing of frames of more than 8 bits."""

    def draw(i):
        levels = image(i).astype(float) * (white / 255)
        return levels.astype(dtype) if dtype == np.float32 else np.rint(levels).astype(dtype)

    return draw


OFFICIAL = {i: "test" if i == 4 else "train" for i in range(5)}
PATIENTS = {0: "p1", 1: "p1", 2: "p2", 3: "p2", 4: "p2"}
RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def table(line="a{},{}", header="case_id,group", groups=PATIENTS) -> str:
    return "\n".join([header, *(line.format(i, group) for i, group in groups.items())]) + "\n"


def classes(draw, said: str, one: str, **how) -> Case:
    """Return masks of two classes, refused until the study names the gland's."""
    return Case(pairs(draw=draw), said=said, refused=True, mend={"mask_values": one}, **how)


LAYOUTS = {
    "`Images/*.JPG`, `Masks/*.PNG`": Case(pairs("Images/a{}.JPG", "Masks/a{}.PNG"), near=16),
    "`imgs/`, `labels/`": Case(pairs("imgs/a{}.png", "labels/a{}.png")),
    "`original/`, `GT/`": Case(pairs("original/a{}.png", "GT/a{}.png")),
    "`image/`, `label/`": Case(pairs("image/a{}.png", "label/a{}.png")),
    "two folders deep": Case(pairs("set/v 2/frames/a{}.png", "set/v 2/annotations/a{}.png")),
    "`train/images/`, `test/images/`, …": Case(
        sides("{}/{}/a{}.png"), official=OFFICIAL, said="4 train, 1 test, by folders"
    ),
    "`images/train/`, `masks/test/`, …": Case(sides("set/{1}/{0}/a{2}.png"), official=OFFICIAL),
    "TN3K: `trainval-image/0001.jpg`, `test-mask/0001.jpg`, names twice": Case(
        {
            f"{'test' if i > 2 else 'trainval'}-{kind}/000{i % 3}.jpg": draw(i)
            for kind, draw in (("image", image), ("mask", levels(255))) for i in range(5)
        },
        ids=("trainval-0000", "trainval-0001", "trainval-0002", "test-0000", "test-0001"),
        official={i: "test" if i > 2 else "train" for i in range(5)},
        near=16,
    ),
    "two data sets side by side, as TG3K and TN3K come": Case(
        {
            f"both/{where}-{kind}/a{i}.png": draw(i)
            for where in ("one/scan", "two/test", "two/train")
            for kind, draw in (("image", image), ("mask", levels(255))) for i in range(2)
        },
        said="several data sets lie here, in both/one, both/two: give one of them", refused=True,
    ),
    "`a.png`, `a_mask.png` in one folder": Case(pairs("a{}.png", "a{}_mask.png")),
    "`imgs/a.jpg`, `masks/a_mask.gif` (Carvana)": Case(
        pairs("imgs/a{}.jpg", "masks/a{}_mask.gif"), near=16
    ),
    "`a_seg.png`": Case(pairs("images/a{}.png", "masks/a{}_seg.png")),
    "`a_GT.png`": Case(pairs("a{}.png", "a{}_GT.png")),
    "`mask_a.png`": Case(pairs("a{}.png", "mask_a{}.png")),
    "`a-label.png`": Case(pairs("frames/a{}.png", "frames/a{}-label.png")),
    "`a_image.png`, `a_mask.png`": Case(pairs("a{}_image.png", "a{}_mask.png"), ids="a{}_image"),
    "`image_1.png`, `mask_1.png`": Case(pairs("image_{}.png", "mask_{}.png"), ids="image_{}"),
    "BUSI: `benign (1).png`, `benign (1)_mask.png`, `benign (1)_mask_1.png`": Case(
        busi("benign/b ({}).png", "benign/b ({})_mask.png", "benign/b (1)_mask_1.png"),
        ids="b ({})", masks=both, said="1 images have several masks, which are joined: 'b (1).png'",
    ),
    "second masks renamed by hand: `a_1.png`": Case(
        busi("images/b{}.png", "masks/b{}.png", "masks/b1_1.png"), ids="b{}", masks=both
    ),
    "BUS-BRA: `bus_1-l.png`, `mask_1-l.png`, `bus_data.csv`": Case(
        pairs("Images/bus_{}-l.png", "Masks/mask_{}-l.png")
        | {"bus_data.csv": table("bus_{}-l,{},benign", "ID,Case,Pathology")},
        ids="bus_{}-l", groups=PATIENTS, said="2 groups from bus_data.csv (id, case)",
    ),
    "`imagesTr/a_0000.png`, `labelsTr/a.png`": Case(
        pairs("imagesTr/a{}_0000.png", "labelsTr/a{}.png", draw=levels(1)),
        ids="a{}_0000", official=dict.fromkeys(range(5), "train"),
    ),
    "a folder for each case: `a/image.png`, `a/mask.png`": Case(
        pairs("a{}/image.png", "a{}/mask.png")
    ),
    "another folder beside them": Case(
        pairs() | {f"overlays/a{i}.png": image(9) for i in range(5)},
        said="skipped 5 image files in overlays/",
    ),
    "names that only a pattern pairs": Case(
        pairs("images/scan{}.png", "masks/r{0}of9{0}.png"), ids="scan{}",
        said="no image has a mask of its name: images/ begins with 'scan0.png'",
        refused=True, mend={"pairing": r"^[a-z]+(\d)"},
    ),
    "folders of any names": Case(
        pairs("first/a{}.png", "second/a{}.png"), said="no masks found among 10 image files",
        refused=True, mend={"images": "first", "masks": "second"},
    ),
    "two masks of one image that are no series: `a_mask.png`, `a_seg.png`": Case(
        pairs("a{}.png", "a{}_mask.png") | {"a0_seg.png": levels(255)(0)},
        said="'a0.png' has masks of two kinds, *_mask and *_seg", refused=True,
        mend={"masks": "*_mask.png"},
    ),
    "numbered masks of numbered images: `a_mask_1.png` for `a_1.png`": Case(
        pairs("images/a_{}.png", "masks/a_mask_{}.png")
        | {"images/a.png": image(9), "masks/a_mask.png": levels(255)(9)},
        said="'a.png' has several masks, and is a series: name each mask as its image",
        refused=True,
    ),
    "masks in two folders": Case(
        pairs(masks="gt/a{}.png") | {f"masks/a{i}.png": levels(255)(i + 1) for i in range(5)},
        said="has masks of two folders, gt/* and masks/*", refused=True, mend={"masks": "gt"},
    ),
    "images in a format that is not read": Case(
        {f"images/a{i}.tga": b"" for i in range(5)} | {f"masks/a{i}.png": b"" for i in range(5)},
        said="no images found among 5 image files in masks/ (5), as 'a0.png'", refused=True,
    ),
}  # fmt: skip
MASKS = {
    "0 and 1": Case(pairs(draw=levels(1)), said="gland is 1 "),
    "0 and 255": Case(pairs(), said="gland is 255 "),
    "1 and 2": Case(pairs(draw=lambda i: levels(1)(i) + np.uint8(1)), said="background 1 "),
    "1 bit": Case(pairs(draw=gland)),
    "16 bits, 0 and 65535": Case(pairs(draw=levels(65535, dtype=np.uint16))),
    "0.0 and 1.0": Case(pairs(masks="masks/a{}.tif", draw=levels(1, dtype=np.float32))),
    "bool, `.npy`": Case(pairs(masks="masks/a{}.npy", draw=gland)),
    "palette, dark red as VOC has it": Case(
        pairs(draw=palette(BLACK, (128, 0, 0))), said="gland is 800000"
    ),
    "palette whose colours are all black": Case(pairs(draw=palette(BLACK, BLACK))),
    "red on white": Case(pairs(draw=colours(RED, around=WHITE)), said="gland is ff0000"),
    "black on white": Case(pairs(draw=colours(BLACK, around=WHITE)), said="gland is 0 "),
    "black ink on nothing": Case(
        pairs(draw=colours((0, 0, 0, 255), around=(0, 0, 0, 0))), said="background transparent"
    ),
    "JPEG": Case(pairs(masks="masks/a{}.jpg"), said="above 127 is gland"),
    "blurred by resizing": Case(
        pairs(draw=blurred), said="blurred at their edges"
    ),
    "black on white, the gland at the border of one": Case(
        pairs(draw=lambda i: np.uint8(255) * ~one_touches(i)), masks=one_touches,
        said="gland is 0 ",
    ),
    "ink that is half transparent": Case(
        pairs(draw=colours((0, 90, 200, 70), around=(0, 0, 0, 0))), said="gland is 005ac8",
    ),
    "black on white, glands at the border": Case(
        pairs(draw=lambda i: np.uint8(255) * ~border(i)),
        masks=border, said="masks may be inverted, they hold 0 (", refused=True,
        mend={"mask_values": "0"},
    ),
    "black on white in two of five, glands at the border": Case(
        pairs(draw=lambda i: np.uint8(255) * (~border(i) if i % 3 else border(i))),
        masks=border, said="masks may be inverted", refused=True,
    ),
    "black on white in JPEG": Case(
        pairs(masks="masks/a{}.jpg", draw=lambda i: ~levels(255)(i)), refused=True,
        said='which is gland? Set mask_values: ">127" or "<128"', mend={"mask_values": "<128"},
    ),
    "soft edges, a gray class in one mask": Case(
        pairs(draw=lambda i: blurred(i) + np.uint8(110 * (i == 2)) * cyst(i)), refused=True,
        said='mask_values: ">55"', mend={"mask_values": ">127"},
    ),
    "thin outlines that are not filled": Case(
        pairs(draw=lambda i: levels(255)(i) * ndimage.binary_dilation(~gland(i))), refused=True,
        said="no case can be used, of 5: 5 outline as mask",
    ),
    "a photograph": Case(pairs(draw=image), said="set a limit", refused=True),
    "classes 1 and 2, the second is meant": classes(levels(1, 2), "2 (5.6 %)", "2", masks=nodule),
    "gland 1 and nodule 2, a class each": Case(
        pairs(draw=levels(1, 2)), masks=labels, said="gland is 1 (",
        choices={"classes": {"gland": "1", "nodule": "2"}},
    ),
    "red gland, green nodule, a class each": Case(
        pairs(draw=colours(RED, GREEN)), masks=labels, said="nodule is 00ff00 (",
        choices={"classes": {"gland": "ff0000", "nodule": "00ff00"}},
    ),
    "a class whose level no mask has": Case(
        pairs(draw=levels(1, 2)), said="classes: nodule: got 3, the masks hold 0 (", refused=True,
        choices={"classes": {"gland": "1", "nodule": "3"}},
        mend={"classes": {"gland": "1", "nodule": "2"}}, masks=labels,
    ),
    "green and red": classes(
        colours(GREEN, RED), 'mask_values: "ff0000, 00ff00"', "00ff00 ff0000"
    ),
    "two colours of ink on nothing": classes(
        colours((0, 0, 0, 255), (255, 0, 0, 255), around=(0, 0, 0, 0)), "transparent (", "alpha"
    ),
    "JPEG in red": Case(
        pairs(masks="masks/a{}.jpg", draw=colours(RED)), said="neither black nor white",
        refused=True, mend={"mask_values": ">127"},
    ),
    "probabilities, 0.0 to 1.0": Case(
        pairs(masks="masks/a{}.tif", draw=lambda i: smooth(gland(i))), said='mask_values: ">0.5"',
        refused=True, mend={"mask_values": ">0.5"},
    ),
    "a colour whose zeros YAML cuts, `008000`": classes(
        colours((0, 128, 0), RED), "008000 (", "8000", masks=lambda i: gland(i) & ~nodule(i)
    ),
    "a level that no mask has": Case(
        pairs(), choices={"mask_values": "3"}, said="mask_values: got 3, the masks hold 0 (",
        refused=True,
    ),
}  # fmt: skip
IMAGES = {
    "16 bits that use 12": Case(pairs(frames=deep(4095)), said="white is 4095", near=1),
    "16 bits": Case(pairs(frames=deep(65535)), said="white is 65535"),
    "0.0 to 1.0": Case(
        pairs("images/a{}.tif", frames=deep(1, np.float32)), said="white is 1"
    ),
    "32 bits": Case(pairs("images/a{}.tif", frames=deep(131_071, np.int32)), near=1),
    "WebP": Case(pairs("images/a{}.webp")),
    "JPEG 2000": Case(pairs("images/a{}.jp2")),
    "8 bits in `.npy`": Case(pairs("images/a{}.npy")),
    "levels below 0": Case(
        pairs("images/a{}.tif", frames=lambda i: deep(1, np.float32)(i) - 1),
        said="'a0.tif' has levels below 0", refused=True,
    ),
}  # fmt: skip
CASES = {"Layouts": LAYOUTS, "Masks": MASKS, "Images": IMAGES}


def write(files: dict, top: Path) -> Path:
    """Write a case's files below a folder."""
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(encode(content, name))
    return top
