"""Phantom: synthetic B-mode sweeps of the thyroid with masks, the study's embedded default data.

The drawing follows a scanner: scatterers, weighted by the echogenicity of a drawn neck, are
convolved with a pulse that is narrowest at the focus, then detected, smoothed, log-compressed and
scan-converted. Along a sweep the anatomy moves and its speckle with it: neighbours are near-copies.
With `nodules` most sweeps have one to three, whose kinds the masks tell as levels, see `TISSUES`.

Sources: Bamber & Dickinson, Phys. Med. Biol. 25 (1980) 463, scatterers convolved with a pulse;
Wagner, Smith, Sandrik & Lopez, IEEE Trans. Sonics Ultrason. 30 (1983) 156, statistics of speckle.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft, ndimage

from thyroid_lib.data.classes import annotate, annotated_names, join_rules, split_values
from thyroid_lib.data.groups import assign_groups
from thyroid_lib.data.layouts import find_pairs
from thyroid_lib.files.writing import write_file, write_table

# Raise by one with every change that moves a pixel: folders of another version are drawn again.
# tests/train/test_versions.py fails where that was forgotten.
PHANTOM_VERSION = 1
DEPTHS, LINES = 208, 180  # samples along a scan line, scan lines
SLAB = 24  # frames after which the beam has met other scatterers
KINDS = ("hypoechoic", "isoechoic", "hyperechoic", "cystic", "calcified")
# What a class can be made of: levels of the masks of phantoms with nodules.
TISSUES = {"gland": [1], "nodule": [2, 3, 4, 5, 6]} | {k: [i] for i, k in enumerate(KINDS, 2)}
# fmt: off
GLYPHS = {  # 5 x 7 pixels, one number a row
    "e": (0, 0, 14, 17, 31, 16, 14), "s": (0, 0, 15, 16, 14, 1, 30),
    "D": (30, 17, 17, 17, 17, 17, 30), "c": (0, 0, 14, 17, 16, 17, 14),
}
RANGES = {  # what a sweep draws, uniformly: the scanner first, then the person
    "depth_mm": (31, 38), "cover": (0.86, 1.0), "shift_mm": (-2.5, 2.5), "drop_mm": (-1.5, 3.5),
    "tilt": (-0.12, 0.12), "focus_mm": (10, 22), "beam_mm": (0.17, 0.25), "pulse_mm": (0.11, 0.15),
    "gain_db": (2, 9), "range_db": (50, 64), "gamma": (1.05, 1.4), "noise_db": (-58, -46),
    "fall_db": (6, 16), "contact_db": (-30, 30),  # lost by 20 mm depth; where the probe lifts off
    "fat_mm": (2.2, 5.0), "strap_mm": (3.5, 5.0), "muscle_db": (-21, -14), "gland_db": (-7, 0),
    "lobe_width": (0.85, 1.15), "lobe_height": (0.85, 1.15), "lobe_turn": (0.0, 0.6),
    "isthmus_mm": (1.8, 3.6), "artery_mm": (2.8, 3.9), "vein_mm": (1, 4), "windpipe": (0.85, 1.2),
    "shell_mm": (1.0, 2.2), "arc": (0.1, 0.7), "arc_mm": (1.4, 2.8), "arc_fade_mm": (1.0, 2.6),
    "lump_x": (0.5, 4), "lump_z": (-3, 2.5), "lump_mm": (1.2, 2.6),
}
LESION_DB = {  # against the gland
    "hypoechoic": -11.0, "isoechoic": 1.0, "hyperechoic": 8.0, "cystic": -42.0, "calcified": -8.0,
}
COARSE, DOT = (0.9, 0.45), (0.28, 0.2)  # mm, half axes of calcifications
LESION = ("kind", "width_mm", "height_mm", "frames")
SEEN = 10  # and above: nodules in the labels of a frame, before they are their kinds' levels
# fmt: on


def make_sweep(
    *, seed: int = 0, sweep: int = 0, frames: int = 12, text: bool = True, nodules: bool = False
) -> dict:
    """Draw one sweep: images, uint8 (frames, H, W), and masks, bool; `text` is burnt into both.

    With `nodules` the masks are label maps, uint8, of the levels of `TISSUES`, and `lesions` is a
    list of the sweep's nodules: kind, width_mm, height_mm, and in how many frames one is seen.
    """
    p = _draw_sweep(seed, sweep)
    p.lesions = []
    if nodules:
        p.lump_db = 0.0  # which has no label
        p.lesions = _draw_lesions(p, np.random.default_rng([seed, sweep, 0, 1]), sweep, frames)
    slabs = [_draw_slab([seed, sweep, 1, index]) for index in range((frames - 1) // SLAB + 2)]
    pairs = [_draw_frame(p, [seed, sweep, 2, frame], slabs) for frame in range(frames)]
    images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    for column, letter in enumerate("esDesc"[-p.letters :] if text else ""):  # as TG3K has it
        glyph = (np.array(GLYPHS[letter])[:, None] >> np.arange(4, -1, -1)) & 1 > 0
        window = np.s_[:, 0:7, 6 * column : 6 * column + 5]
        images[window][:, glyph], masks[window][:, glyph] = 215, True
    if not nodules:
        return {"images": images, "masks": masks > 0}
    lesions = []
    for place, lesion in enumerate(p.lesions):
        inside = masks == SEEN + place
        sides = round(lesion.width_mm, 1), round(lesion.height_mm, 1)
        about = lesion.kind, *sides, int(inside.any(axis=(1, 2)).sum())
        lesions.append(dict(zip(LESION, about, strict=True)))
        masks[inside] = KINDS.index(lesion.kind) + 2
    return {"images": images, "masks": masks, "lesions": lesions}


def cases(
    folder: str | Path,
    *,
    sweeps: int = 8,
    frames: int = 12,
    seed: int = 0,
    text: bool = True,
    nodules: bool = False,
    task: str = "gland",
    classes: Mapping[str, str] | None = None,
    annotated: str = "",
) -> pd.DataFrame:
    """Draw the phantoms into a folder, unless they are there, and return their case table.

    Files: images/s00f000.png …, masks/, groups.csv, phantom.json (what was drawn), and lesions.csv
    of phantoms with nodules. A folder that holds other files is refused. `classes`, {name: names
    in `TISSUES`}, and `annotated` are as those of `load_cases`: nodules of no class are gland.
    """
    folder = Path(folder)
    rule, names = _mask_rule(nodules, task, classes or {}, annotated)
    drawn = {"sweeps": sweeps, "frames": frames, "seed": seed, "text": text}
    drawn |= {"nodules": True} if nodules else {}
    record, count = folder / "phantom.json", len(list(folder.glob("*/*.png")))
    wanted = json.dumps(drawn | {"phantom_version": PHANTOM_VERSION}, indent=1) + "\n"
    held = record.read_text("utf-8", "replace") if record.is_file() else ""
    if held != wanted or count != 2 * sweeps * frames:
        record.unlink(missing_ok=True)
        _draw_folder(folder, **drawn)
        write_file(record, wanted)  # last: only a complete folder has it
    table, _, _ = find_pairs(folder, images="images", masks="masks", dataset="phantom")
    groups, _ = assign_groups(table, folder, [folder / "groups.csv"])
    table = table.assign(group=groups, **({"mask_rule": rule} if rule else {}))
    return annotate(table, names, classes or {})


def _mask_rule(
    nodules: bool, task: str, classes: Mapping[str, str], annotated: str
) -> tuple[str, list[str]]:
    """Return the mask rule of phantoms, and the names of the classes that they annotate."""
    names = annotated_names(classes, annotated)
    if len(classes) < 2:
        if task != "gland" and not nodules:
            raise ValueError(f"task {task}: phantoms have no nodules, set phantom_nodules to true")
        levels = TISSUES["nodule"] if task == "nodule" else [1, *TISSUES["nodule"]]
        return f"levels:{','.join(map(str, levels))}" * nodules, names
    code_of: dict[int, int] = {}  # by level
    for name in names:
        for tissue in split_values(classes[name] or name):
            if tissue not in TISSUES:
                got = f"classes: {name} got {tissue!r}"
                raise ValueError(f"{got}, need any of {', '.join(TISSUES)}")
            if shared := {*TISSUES[tissue]} & {*code_of}:
                twice = KINDS[min(shared) - 2] if min(shared) > 1 else "gland"
                raise ValueError(f"classes: {twice} stands in two, need one class for each tissue")
            code_of |= dict.fromkeys(TISSUES[tissue], [*classes].index(name) + 1)
    if not nodules:
        if {*code_of} != {1}:
            raise ValueError("classes: phantoms have no nodules, set phantom_nodules to true")
        return f"{code_of[1]}=", names
    if 1 in code_of:
        code_of = dict.fromkeys(TISSUES["nodule"], code_of[1]) | code_of
    levels_of = {code: [str(x) for x in code_of if code_of[x] == code] for code in code_of.values()}
    rules = {code: f"levels:{','.join(levels_of[code])}" for code in sorted(levels_of)}
    return join_rules(rules), names


def _draw_folder(folder: Path, *, sweeps: int, **how) -> None:
    old = list(folder.glob("*/[!.]*"))
    if foreign := [p.name for p in old if not re.fullmatch(r"s\d+f\d+\.png", p.name)]:
        raise ValueError(f"{folder} holds {foreign[0]}, no phantom frame: give an empty folder")
    for path in (*old, folder / "lesions.csv"):
        path.unlink(missing_ok=True)
    rows, lesions = "case_id,group\n", []
    for sweep in range(sweeps):
        drawn = make_sweep(sweep=sweep, **how)
        lesions += [{"group": f"sweep{sweep:02d}"} | of for of in drawn.pop("lesions", [])]
        for part, arrays in drawn.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            for frame, array in enumerate(arrays):
                levels = array.astype(np.uint8) * (255 if array.dtype == bool else 1)
                Image.fromarray(levels).save(folder / part / f"s{sweep:02d}f{frame:03d}.png")
        rows += "".join(f"s{sweep:02d}f{i:03d},sweep{sweep:02d}\n" for i in range(how["frames"]))
    write_file(folder / "groups.csv", rows)
    if how.get("nodules"):
        table = pd.DataFrame(lesions, columns=["group", *LESION])
        write_table(folder / "lesions.csv", table, digits=1)


def _draw_sweep(seed: int, sweep: int) -> SimpleNamespace:
    """Draw what one sweep keeps: frame size, scanner setting and the person's anatomy."""
    rng = np.random.default_rng([seed, sweep, 0, 0])
    p = SimpleNamespace(**{name: rng.uniform(*ends) for name, ends in RANGES.items()})
    p.height = int(rng.integers(174, 239))
    p.width = int(np.clip(p.height * rng.uniform(1.05, 1.6), 212, 326))
    p.pixel_mm = p.depth_mm / p.height * rng.uniform(0.98, 1.05)
    p.width_mm = p.width * p.pixel_mm * p.cover
    p.radius_mm = rng.choice([5000.0, 5000.0, 5000.0, rng.uniform(60, 110)])  # mostly a flat probe
    p.drop_mm = max(p.drop_mm, 0.0) + abs(np.sin(p.tilt)) * p.width_mm / 2
    p.side, both = rng.choice([-1.0, 1.0]), rng.random() < 0.3  # both: lobes in view
    p.body = rng.uniform(0.8, 0.9) if both else rng.uniform(0.9, 1.15)
    p.midline_mm = rng.uniform(-3, 3) if both else rng.uniform(-15, -9)
    p.lump_db = rng.choice([0.0, 0.0, -35.0, -7.0, 5.0])  # none, none, cyst, dark or bright nodule
    p.letters = min(int(rng.integers(3, 7)), int(0.14 * p.width) // 6)
    p.phase = rng.uniform(0, 2 * np.pi, 8)
    p.rate = rng.uniform(0.02, 0.045, 4) * rng.choice([-1, 1], 4)  # per frame
    return p


def _draw_lesions(p, rng, sweep: int, frames: int) -> list[SimpleNamespace]:
    """Draw a sweep's nodules: kind, place and size; the kinds take turns from sweep to sweep."""
    middle = np.sin(p.phase[0] + p.rate[0] * frames / 2)  # of what the sweep sees of the gland
    lesions, count = [], int(rng.choice(3, p=[0.2, 0.45, 0.35]))
    for turn in range(count):
        lesion = SimpleNamespace(kind=KINDS[(2 * sweep + turn + int(rng.integers(2))) % len(KINDS)])
        lesion.width_mm = rng.uniform(4.5, 8.5) if count == 1 else rng.uniform(4.0, 5.5)
        lesion.height_mm = lesion.width_mm * rng.uniform(0.75, 1.2)
        lesion.side = 1 if abs(p.midline_mm) > 3 else (-1, 1)[turn]  # both lobes are in view
        lesion.x_mm, lesion.z_mm = rng.uniform(-1, 1), rng.uniform(-1.5, 1.5)
        lesion.z_mm += (count == 2 and abs(p.midline_mm) > 3) * (-2.6, 3.4)[turn]
        lesion.along, lesion.reach = middle + rng.uniform(-0.4, 0.4), rng.uniform(0.35, 0.8)
        lesion.turn, lesion.phase = rng.uniform(-0.4, 0.4), rng.uniform(0, 2 * np.pi, 2)
        lesion.echo_db, lesion.dots = rng.uniform(-1, 1), rng.uniform(-0.65, 0.65, (9, 2))
        lesions.append(lesion)
    return lesions


def _draw_slab(key: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectrum of the scatterers, and two textures of unit spread: streaks and clumps."""
    noise = np.random.default_rng(key).standard_normal((4, DEPTHS, LINES))
    streaks = ndimage.gaussian_filter(noise[2], (1.3, 11), mode="wrap")
    clumps = ndimage.gaussian_filter(noise[3], (5, 8), mode="wrap")
    spectrum = fft.fft2(noise[0] + 1j * noise[1]) / np.sqrt(2)
    return spectrum, streaks / streaks.std(), clumps / clumps.std()


def _draw_frame(p, key: list, slabs: list) -> tuple[np.ndarray, np.ndarray]:
    """One frame without text: image and labels, both uint8 (H, W); a nodule is SEEN + its place."""
    slab, turn = key[-1] // SLAB, np.pi / 2 * (key[-1] % SLAB) / SLAB  # keeps speckle's variance
    pair = zip(slabs[slab], slabs[slab + 1], strict=True)
    spectrum, *textures = (np.cos(turn) * now + np.sin(turn) * later for now, later in pair)
    along, slide, lift, drift = np.sin(p.phase[:4] + p.rate * key[-1])
    step, pitch = p.depth_mm / DEPTHS, p.width_mm / LINES
    dx, dz = 3.5 * slide, 0.8 * lift
    depth, x, z = _tissue_position(p, along, dx, dz)
    at = [z / step, x / pitch]
    textures = [ndimage.map_coordinates(t, at, order=1, mode="grid-wrap") for t in textures]
    tissue = _Tissue(step, *textures)
    gland, lesions = _paint_neck(p, along, x, z, depth, tissue)
    slip = fft.fftfreq(DEPTHS)[:, None] * dz / step + fft.fftfreq(LINES) * dx * p.side / pitch
    scatterers = fft.ifft2(spectrum * np.exp(-2j * np.pi * slip))
    noise = np.random.default_rng(key).standard_exponential(x.shape)
    power = _receive(p, depth, step, pitch, scatterers, tissue)
    power += noise * 10 ** ((p.noise_db + 8 * depth / p.depth_mm) / 10)
    level = 1 + (10 * np.log10(power) + p.gain_db - 20) / p.range_db
    gray = 255 * np.clip(level, 0, 1) ** p.gamma
    maps = [(gray, 0.0), *((inside, -1.0) for inside in (gland, *lesions))]
    gray, gland, *lesions = _scan_convert(p, drift, maps)
    numbers, _ = ndimage.label(gland > 0)
    large = np.bincount(numbers.ravel())[numbers] >= 300  # nobody outlines a far lobe's sliver
    labels = (large & (numbers > 0)).astype(np.uint8)
    for place, inside in enumerate(lesions):
        labels[(inside > 0) & (labels > 0)] = SEEN + place
    return np.rint(gray).astype(np.uint8), labels


def _tissue_position(p, along: float, dx: float, dz: float) -> tuple:
    """Depth below the probe (DEPTHS, 1), x from the midline and z into the bent body, in mm."""
    depth = (np.arange(DEPTHS) + 0.5)[:, None] * p.depth_mm / DEPTHS
    angle = ((np.arange(LINES) + 0.5) / LINES - 0.5) * p.width_mm / p.radius_mm
    z = (depth + p.radius_mm) * np.cos(angle) - p.radius_mm
    x = (depth + p.radius_mm) * np.sin(angle) * p.side - p.midline_mm
    a, b, c, d = p.phase[4:] + 0.6 * along
    x = x - dx + 0.7 * np.sin(z / 6.1 + a) + 0.6 * np.sin(x / 6.7 + z / 9.3 + b)
    z = z - dz + 0.8 * np.sin(x / 7.9 + c) + 0.5 * np.sin(x / 4.3 + z / 6.1 + d)
    return depth, x, z


class _Tissue:
    """Maps (DEPTHS, LINES) that structures are painted into, back to front, from `inside` (mm)."""

    def __init__(self, step_mm: float, streaks: np.ndarray, clumps: np.ndarray):
        self.step_mm, self.streaks, self.clumps = step_mm, streaks, clumps
        self.echo = 4.5 * clumps + 9 * np.maximum(streaks - 0.2, 0) - 7  # dB; connective tissue
        self.fibres = 7 * np.maximum(streaks - 0.9, 0) + 1.5 * clumps  # dB; muscle
        self.loss = np.full(streaks.shape, 0.15)  # dB per mm that the scanner does not make up for
        self.mirror = self.ghost = np.zeros(streaks.shape)  # amplitude of interfaces, of ghosts

    def paint(self, inside, echo, loss, line=0.0, edge_mm=0.4):
        """Fill a shape; its border shines (amplitude `line`) where it lies across the beam."""
        weight = np.clip(inside / edge_mm + 0.5, 0, 1)
        self.echo += weight * (echo - self.echo)
        self.loss += weight * (loss - self.loss)
        near = np.clip(1 - np.abs(inside) / 0.22, 0, 1)
        facing = np.minimum(np.abs(np.gradient(inside, self.step_mm, axis=0)), 1)
        self.mirror = np.maximum(self.mirror * (1 - weight), line * near * facing**2)


def _ellipse(x, z, centre_x, centre_z, half_x, half_z, turn=0.0):
    """Roughly the distance (mm) to an ellipse's edge, positive inside."""
    dx, dz = x - centre_x, z - centre_z
    u, v = dx * np.cos(turn) + dz * np.sin(turn), dz * np.cos(turn) - dx * np.sin(turn)
    return (1 - np.sqrt((u / half_x) ** 2 + (v / half_z) ** 2)) * min(half_x, half_z)


def _paint_neck(p, along: float, x, z, depth, tissue: _Tissue) -> tuple[np.ndarray, list]:
    """Paint a transverse section, `along` (-1 to 1) the gland.

    Returns the distance maps (mm) of the gland, and of each nodule.
    """
    body, far = p.body, np.abs(x)
    roof = p.fat_mm + p.strap_mm * body
    muscle = p.muscle_db + tissue.fibres
    wall = roof + p.shell_mm + p.isthmus_mm  # depth of the windpipe's front wall
    # behind: longus colli, vertebra with its shadow, oesophagus (a ring, much like a nodule)
    colli = _ellipse(far, z, 14 * body, wall + 17.5 * body, 8 * body, 3.6, -0.15)
    tissue.paint(colli, muscle - 3, 0.2, 1.6)
    spine = z - (wall + 20.5 * body - 0.012 * far**2 + 0.6 * tissue.clumps)
    tissue.paint(spine, -10, 2.5, 5.0, edge_mm=1.0)
    gullet = _ellipse(x, z, 10 * body, wall + 13.5 * body, 3.8, 2.6, 0.3)
    tissue.paint(gullet, p.muscle_db, 0.3, 1.4)
    tissue.paint(gullet - 1.5, p.gland_db + 2, 0.3)
    # in front: strap muscles in two sheets, sternocleidomastoid
    straps = np.minimum(z - p.fat_mm, roof + 3.5 * body + 0.02 * far**2 - z)
    tissue.paint(straps, muscle, 0.2, 1.6)
    sheet = np.minimum(straps, z - p.fat_mm - 0.55 * p.strap_mm * body - 0.01 * far**2)
    tissue.paint(sheet, muscle + 1, 0.2, 1.4)
    sterno = _ellipse(far, z, 24 * body, p.fat_mm + 4.2 * body, 14 * body, 3.8 * body, 0.12)
    tissue.paint(sterno, muscle + 1.5, 0.2, 2.6)
    # gland: lobes wedged between windpipe and carotid, the isthmus, a lump in one lobe
    wind = 8.5 * body * p.windpipe
    trachea = _ellipse(x, z, 0, wall + wind, wind, wind)
    size = np.sqrt(1 - (0.7 * along) ** 2) * body
    half = 9.5 * p.lobe_width * size, 7.5 * p.lobe_height * size
    lobe = _ellipse(far, z, 11.5 * body, wall + (5 + 1.5 * along) * body, *half, p.lobe_turn)
    shell = trachea + p.shell_mm
    bridge = np.minimum(shell + p.isthmus_mm * (1 - 1.3 * along**2), wall + 4 * body - z)
    gland = np.minimum(np.logaddexp(lobe, bridge), -shell)  # a rounded seam
    middle = 14 * body, wall + 4.5 * body
    lesions = [_shape_lesion(lesion, along, x, z, middle) for lesion in p.lesions]
    for place, inside in enumerate(lesions):  # the gland bulges, the windpipe does not
        gland = np.maximum(gland, np.minimum(inside + 0.8, -shell))
        lesions[place] = np.minimum(inside, -shell - 0.4)
    tissue.paint(gland, p.gland_db + 0.7 * tissue.clumps, 0.1, 1.6)
    if p.lump_db and abs(along) < 0.8:
        radius = p.lump_mm * np.sqrt(1 - (along / 0.8) ** 2)
        lump = 12 * body + p.lump_x, wall + 5 * body + p.lump_z, radius, 0.8 * radius
        lump = np.minimum(_ellipse(x, z, *lump), gland - 0.7)
        tissue.paint(lump, p.gland_db + p.lump_db, -0.6 if p.lump_db < -20 else 0.3, 0.6)
    for lesion, inside in zip(p.lesions, lesions, strict=True):
        _paint_lesion(lesion, inside, p.gland_db, tissue)
    # windpipe: cartilage, bright front wall, air that shadows and repeats the wall's arc in it
    tissue.paint(shell, p.muscle_db - 6, 1.5, 1.8)
    tissue.paint(trachea, -60, 5.0, 4.4, edge_mm=0.6)
    below = z - wall - wind + np.sqrt(np.maximum(wind**2 - x**2, 0.0))
    arcs = 0.5 + np.cos(np.pi * (below + 0.3 * tissue.clumps) / p.arc_mm) ** 4
    fade = np.exp(-np.maximum(below, 0) / p.arc_fade_mm) * np.maximum(1 - (x / wind) ** 2, 0)
    tissue.ghost = p.arc * np.where(below > 0, arcs * fade, 0.0)
    # jugular vein and carotid artery: blood makes what is behind it brighter
    reach = (21.5 + along) * body
    vein = _ellipse(far, z, reach + 6, wall + 3 * body, 5.0, p.vein_mm, 0.3)
    artery = _ellipse(far, z, reach, wall + 6.5 * body, p.artery_mm, p.artery_mm)
    for vessel, line in ((vein, 1.8), (artery, 4.4)):
        tissue.paint(vessel + 0.6, p.gland_db + 2, 0.1)
        tissue.paint(vessel, -29 + 2 * tissue.clumps, -1.5, line, edge_mm=1.2)
        gland = -np.logaddexp(-gland, vessel + 0.6)
    tissue.paint(p.fat_mm - z, -19 + 8 * np.maximum(tissue.streaks, 0), 0.2, 2.6)
    tissue.paint(np.broadcast_to(1.2 - depth, z.shape), -8, 0.1, 2.0)  # skin, along the probe
    return gland, lesions


def _shape_lesion(lesion, along: float, x, z, middle: tuple[float, float]) -> np.ndarray:
    """Return a nodule's distance map, in the lobe whose middle (x, z) is given in mm."""
    near = 1 - ((along - lesion.along) / lesion.reach) ** 2
    if near <= 0.1:
        return np.full(x.shape, -9.0)
    lesion.half = np.array([lesion.width_mm, lesion.height_mm]) / 2 * np.sqrt(near)
    lesion.at = lesion.side * (middle[0] + lesion.x_mm), middle[1] + lesion.z_mm
    angle, (a, b) = np.arctan2(z - lesion.at[1], x - lesion.at[0]), lesion.phase
    uneven = 0.25 * np.sin(3 * angle + a) + 0.15 * np.sin(5 * angle + b)
    uneven *= 0.3 if lesion.kind == "cystic" else 1.0
    lesion.spots = [
        _ellipse(x, z, *(lesion.at + lesion.half * dot), *(DOT if place else COARSE))
        for place, dot in enumerate(lesion.dots)
    ]
    return _ellipse(x, z, *lesion.at, *lesion.half, lesion.turn) + uneven


def _paint_lesion(lesion, inside, gland_db: float, tissue: _Tissue) -> None:
    echo = gland_db + lesion.echo_db + LESION_DB[lesion.kind] + 0.8 * tissue.clumps
    if lesion.kind == "cystic":  # what is behind it is brighter
        tissue.paint(inside, echo, -0.9, 1.6)
    elif lesion.kind == "isoechoic":  # seen by its dark halo
        tissue.paint(inside, gland_db - 10, 0.2)
        tissue.paint(inside - 0.6, echo, 0.2)
    else:
        tissue.paint(inside, echo, 0.25, 0.5)
    if lesion.kind == "calcified" and inside.max() > 0:
        coarse, *dots = (np.minimum(spot, inside - 0.2) for spot in lesion.spots)
        tissue.paint(coarse, gland_db + 12, 25.0, 3.0, edge_mm=0.2)  # throws a shadow
        for dot in dots:
            tissue.paint(dot, gland_db + 14, 0.2, edge_mm=0.15)


def _receive(p, depth, step, pitch, scatterers, tissue: _Tissue) -> np.ndarray:
    """Power of the echoes (DEPTHS, LINES): reflected, weakened, convolved, detected, smoothed."""
    interface = np.clip(0.6 + 0.35 * tissue.clumps + 0.4 * tissue.streaks, 0.08, 2)  # uneven
    interface = interface * (0.5 + 0.6 * scatterers)
    field = scatterers * 10 ** (tissue.echo / 20) + tissue.mirror * interface
    loss = np.cumsum(tissue.loss, axis=0) * step + p.fall_db * (depth / 20) ** 2
    across = np.linspace(-1, 1, LINES)
    loss += abs(p.contact_db) * np.clip(across * np.sign(p.contact_db) * 4 - 3, 0, 1) ** 2
    loss += 15 * np.clip(np.abs(across + 0.02 * tissue.clumps) * 20 - 19, 0, 1)  # frayed edges
    loss = ndimage.gaussian_filter1d(np.clip(loss, -12, 70), 3.0, axis=1)  # beams have a width
    field = field * 10 ** (-loss / 20) + tissue.ghost * interface
    beam = p.beam_mm / pitch * np.sqrt(1 + ((depth - p.focus_mm) / 16) ** 2)  # (DEPTHS, 1)
    blur = np.exp(-2 * (np.pi * beam * fft.fftfreq(LINES)) ** 2) * np.sqrt(beam)  # equal energy
    field = fft.ifft(fft.fft(field, axis=1) * blur, axis=1)
    field = ndimage.gaussian_filter1d(field, p.pulse_mm / step, axis=0) * np.sqrt(p.pulse_mm / step)
    return ndimage.gaussian_filter(4 * np.pi * np.abs(field) ** 2, (0.8, 1.15))


def _scan_convert(p, drift: float, maps: list) -> list:
    """Resample maps (DEPTHS, LINES), each with its value outside the field, to pixels (H, W)."""
    y, x = np.mgrid[: p.height, : p.width] * p.pixel_mm
    x, y = x - p.width * p.pixel_mm / 2 - p.shift_mm - 0.6 * drift, y - p.drop_mm
    tilt = p.tilt + 0.02 * drift
    x, y = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt) + p.radius_mm
    line = (np.arctan2(x, y) * p.radius_mm / p.width_mm + 0.5) * LINES - 0.5
    sample = (np.hypot(x, y) - p.radius_mm) / p.depth_mm * DEPTHS - 0.5
    return [ndimage.map_coordinates(m, [sample, line], order=1, cval=v) for m, v in maps]
