"""Mask audit: unusual masks, and unusual frames that they were drawn on.

`audit_masks` reads masks from their files, as they were published. A defect is a reason to look:
sweeps begin and end with slivers of gland, and a second component is often the other lobe.
"""

import numpy as np
import pandas as pd
from scipy import ndimage

from thyroid_lib.audit.copies import pair_correlation
from thyroid_lib.audit.leakage import SAME_SWEEP, content_boxes, describe_store
from thyroid_lib.data import frames
from thyroid_lib.data.cases import read_levels
from thyroid_lib.data.store import Store

SPECK_PX = 80  # as burnt-in text: at native size no lobe that can be recognised is smaller
MIDTONES = 32, 223  # gray levels that are neither black nor white, saved as JPEG or not
EDGE_PX = 2  # JPEG and resizing blur an outline by as much, which is no defect
AREA_FACTOR = 2.0  # beyond that, smaller or larger than each of the frames around it
BLACK_LEVEL = 10  # of 255, mean of the frame; those of TG3K have 20 to 90, but for a few
DEFECTS = {  # column of the table: what counts as the defect
    "text": f"components under {frames.TEXT_PX} px in the top left corner",
    "specks": f"other components under {SPECK_PX} px beside a larger one",
    "holes": "background enclosed by foreground",
    "midtones": f"gray levels {MIDTONES[0]} to {MIDTONES[1]}, as along any outline in a JPEG",
    "gray_areas": f"such levels more than {EDGE_PX} px off any outline: unsure, or another class",
    "area": f"{AREA_FACTOR:g} times smaller or larger than each of up to four frames around it",
    "out_of_sequence": "unlike the frames before and after, which are like each other",
    "jump": "unlike the frame before, and no frame out of sequence explains it",
    "nearly_black": f"mean gray level under {BLACK_LEVEL}",
}
PIXELS = {"text": "text_pixels", "specks": "speck_pixels", "holes": "hole_pixels"}
HARMLESS = ("text", "midtones")  # where they are mended, nobody needs to look
MENDS = {  # what can be done about it, by a rule of the parameter `mend`
    "text": "`text` takes it out",
    "specks": f"`specks` drops those under {frames.SPECK_PX} px",
    "holes": f"`holes` fills those under {frames.HOLE_PX} px",
    "midtones": "foreground is > 127, always",
}


def audit_masks(cases: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Look for every defect in every case of a store; `cases` is the table it was built from.

    Returns rows as in the store's index: case_id, group; text, specks, holes: how many;
    text_pixels, speck_pixels, hole_pixels, midtones, gray_areas: px at native size; foreground: the
    mask's share of the frame, without text; area, out_of_sequence, jump, nearly_black: bool;
    brightness: mean gray level, 0 to 255; correlation: with the group's frame before, or NaN.
    Raises ValueError where `cases` lacks a case of the store, or a mask can no longer be read.
    """
    rows, index = cases.drop_duplicates("case_id").set_index("case_id"), store.index
    if missing := sorted(set(index["case_id"]) - set(rows.index)):
        lacking = f"{len(missing)} cases of the store are not in the case table"
        raise ValueError(f"{lacking}, such as {missing[0]!r}: give the table it was built from")
    found = [mask_defects(read_levels(rows.loc[case_id])) for case_id in index["case_id"]]
    table = index[["case_id", "group"]].join(pd.DataFrame(found))
    table["area"] = _area_outliers(table["foreground"], table["group"])
    table = table.join(_sequence(describe_store(store).fine, table["group"].to_numpy()))
    height, width = content_boxes(store)[:, 2:].T
    content = height * width / store.size**2  # a letterbox adds black
    brightness = [float(image.mean()) for image in store.images] / content
    return table.assign(brightness=brightness, nearly_black=brightness < BLACK_LEVEL)


def mask_defects(levels: np.ndarray) -> dict:
    """Count a mask's defects, columns as of `audit_masks`; gray levels as filed, uint8 (H,W)."""
    mask, text, text_pixels = frames.mend_text(levels > 127)
    found = {"text": text, "text_pixels": text_pixels}
    for name, marked in (("specks", speck_map(mask)), ("holes", hole_map(mask))):
        found[name] = ndimage.label(marked, structure=np.ones((3, 3)))[1]
        found[PIXELS[name]] = int(marked.sum())
    gray = {"midtones": midtone_map(levels).sum(), "gray_areas": gray_area_map(levels).sum()}
    return found | {name: int(n) for name, n in gray.items()} | {"foreground": float(mask.mean())}


def speck_map(mask: np.ndarray) -> np.ndarray:
    """Components (8-connected) under 80 px, but never the largest: bool (H,W), as `mask`."""
    numbers, areas, small = frames.components(mask, SPECK_PX)
    return (small & (areas < areas.max()))[numbers]


def hole_map(mask: np.ndarray) -> np.ndarray:
    """Background (4-connected) that does not reach the frame's edge: bool (H,W), as `mask`."""
    return ndimage.binary_fill_holes(mask) & ~mask


def midtone_map(levels: np.ndarray) -> np.ndarray:
    """Pixels of a mask file, uint8 (H,W), that are neither black nor white: bool (H,W)."""
    return (levels >= MIDTONES[0]) & (levels <= MIDTONES[1])


def gray_area_map(levels: np.ndarray) -> np.ndarray:
    """Pixels of a mask file that are neither black nor white, away from outlines: bool (H,W)."""
    mask, window = levels > 127, 2 * EDGE_PX + 1
    outline = ndimage.maximum_filter(mask, window) != ndimage.minimum_filter(mask, window)
    return midtone_map(levels) & ~outline


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Give one row per defect: cases, components and pixels ("" where it has none), rule, mend."""
    pixels = PIXELS | {"midtones": "midtones", "gray_areas": "gray_areas"}
    rows = []
    for defect, rule in DEFECTS.items():
        cases, mend = int((table[defect] > 0).sum()), MENDS.get(defect, "none: look")
        components = str(table[defect].sum()) if defect in PIXELS else ""
        px = str(table[pixels[defect]].sum()) if defect in pixels else ""
        rows.append((defect.replace("_", " "), cases, components, px, rule, mend))
    return pd.DataFrame(rows, columns=["defect", "cases", "components", "pixels", "rule", "mend"])


def masks_sentence(table: pd.DataFrame) -> str:
    """Say in words how many masks hold text, and how many cases have which other defect."""
    text, count = int((table["text"] > 0).sum()), len(table)
    said = f"{text} of {count} masks hold" if text else f"None of {count} masks holds"
    odd = table[[defect for defect in DEFECTS if defect not in HARMLESS]] > 0
    look = int(odd.any(axis=1).sum())
    each = ", ".join(f"{d.replace('_', ' ')} {n}" for d, n in odd.sum().items() if n)
    verb = "case deserves" if look == 1 else "cases deserve"
    other = f"{look} {verb} a look for another reason: {each}."
    return f"{said} burnt-in text. {other if look else 'No case has another defect.'}"


def _area_outliers(share: pd.Series, group: pd.Series) -> np.ndarray:
    """Frames far from all of the two before and two after; a sweep's ends are not judged."""
    around = pd.DataFrame({k: share.groupby(group).shift(k) for k in (-2, -1, 1, 2)})
    low, high = around.min(axis=1) / AREA_FACTOR, around.max(axis=1) * AREA_FACTOR
    return (~share.between(low, high) & around[[-1, 1]].notna().all(axis=1)).to_numpy()


def _sequence(fine: np.ndarray, group: np.ndarray) -> pd.DataFrame:
    """Columns correlation (with the frame before), out_of_sequence and jump."""
    # a group's frames stand together, in their order, whatever stands between them in the store
    order = np.argsort(group, kind="stable")
    fine, group = fine[order], group[order]
    before, two_before = (pair_correlation(fine, back) for back in (1, 2))
    first = np.r_[True, group[1:] != group[:-1]]  # of its group
    unlike = (before < SAME_SWEEP) & ~first
    unlike_after, two_after = np.r_[unlike[1:], False], np.r_[two_before[1:], 0]
    odd = unlike & unlike_after & (two_after >= SAME_SWEEP)  # taken out, the sequence closes
    jump = unlike & ~odd & ~np.r_[False, odd[:-1]]
    found = {"correlation": np.where(first, np.nan, before), "out_of_sequence": odd, "jump": jump}
    return pd.DataFrame(found, index=order).sort_index()
