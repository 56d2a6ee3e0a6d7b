"""No class of a mask is lost in silence: masks of any levels, colours, depths and sizes, drawn."""

import re

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store

KINDS = {  # kind: ending, and what draws so many values from a generator
    "8 bits": ("png", lambda rng, n: [*rng.choice(256, n, replace=False)]),
    "16 bits": ("png", lambda rng, n: [*rng.choice(60_000, n, replace=False)]),
    "32 bits": ("tif", lambda rng, n: [*rng.choice(10**6, n, replace=False)]),
    "float": ("tif", lambda rng, n: [*(rng.choice(60, n, replace=False) / np.float32(10))]),
    "colour": ("png", lambda rng, n: [tuple(c) for c in rng.integers(0, 2, (n, 3)) * 255]),
    "gray ink": ("png", lambda rng, n: [(v, v, v, 255) for v in rng.choice(256, n, replace=False)]),
    "ink": ("png", lambda rng, n: [(*c, 255) for c in rng.integers(0, 256, (n, 3))]),
    "palette": ("png", lambda rng, n: [tuple(c) for c in rng.integers(0, 256, (n, 3))]),
    "jpeg": ("jpg", lambda rng, n: [*rng.choice(8, n, replace=False) * 36]),
}
TYPES = {"16 bits": np.uint16, "32 bits": np.int32, "float": np.float32}


def name_of(value) -> str:
    """Return a value as the study's key names it."""
    if not isinstance(value, tuple):
        return str(value).removesuffix(".0")
    if len(value) == 4 and not value[3]:
        return "transparent"
    red, green, blue = value[:3]
    return str(red) if red == green == blue else f"{red:02x}{green:02x}{blue:02x}"


def names_in(text: str, names: list[str]) -> set[str]:
    """Return those of the names that a message gives with their share."""
    return {name for name in names if re.search(rf"(?<![\w.]){re.escape(name)} \(", text)}


def draw_classes(rng, count: int) -> np.ndarray:
    """Draw rectangles of classes from 1 on a background of 0, int (H,W); every class is seen."""
    height, width = rng.integers(60, 90, 2)
    classes = np.zeros((height, width), int)
    for number in range(1, count):
        top, left = rng.integers(4, height - 16), 4 + 8 * (number - 1)
        classes[top : top + rng.integers(9, 13), left : left + 8] = number
    return classes


def save(path, kind: str, classes: np.ndarray, values: list) -> None:
    if kind == "palette":
        picture = Image.fromarray(classes.astype(np.uint8), "P")
        picture.putpalette([int(channel) for value in values for channel in value])
    else:
        table = np.array(values).astype(TYPES.get(kind, np.uint8))
        picture = Image.fromarray(table[classes])
    picture.save(path, **{"quality": 95} if kind == "jpeg" else {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_every_class_is_in_the_store_or_told(tmp_path, kind, seed):
    rng = np.random.default_rng([seed, *kind.encode()])
    ending, draw = KINDS[kind]
    values = [*dict.fromkeys(draw(rng, rng.integers(1, 7)))]
    if "ink" in kind and seed % 2:
        values = [(0, 0, 0, 0), *values]
    drawn = [draw_classes(rng, len(values)) for _ in range(3)]
    for number, classes in enumerate(drawn):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, classes.shape, dtype=np.uint8)).save(
            tmp_path / f"images/a{number}.png"
        )
        save(tmp_path / f"masks/a{number}.{ending}", kind, classes, values)
    names = [name_of(value) for value in values]
    choices = {}
    try:
        seen = look(tmp_path)
    except ValueError as error:
        said = str(error)
        assert len(values) > 1 or kind == "jpeg"
        if kind == "jpeg":
            assert any(20 < value < 235 for value in values)
            return
        assert names_in(said, names) == {*names}, said
        wanted = [*rng.choice(names, rng.integers(1, len(names)), replace=False)]
        choices = {"mask_values": ", ".join(wanted)}
        seen = look(tmp_path, **choices)
    said = seen.seen["masks"]
    if kind == "jpeg":
        assert not any(40 < value < 215 for value in values), said
        return
    gland, around = (names_in(part, names) for part in said.split(", background "))
    assert sorted([*gland, *around]) == sorted(names), said
    assert not choices or gland == {*wanted}
    inside = [n for n, name in enumerate(names) if name in gland]
    expected = {f"a{i}": np.isin(classes, inside) for i, classes in enumerate(drawn)}
    usable = [name for name, mask in expected.items() if mask.any() and not mask[0].all()]
    if not usable:
        with pytest.raises(ValueError, match="no case can be used, of 3"):
            build_store(seen.cases, tmp_path / "store", size=32, mend=[])
        return
    built = build_store(seen.cases, tmp_path / "store", size=32, mend=[])
    assert built.index["case_id"].tolist() == usable
    for row, case_id in enumerate(usable):
        np.testing.assert_array_equal(built.reference(row), expected[case_id])
