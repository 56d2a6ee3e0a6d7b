"""Masks that a study's size would lose: small structures vanish when frames are made smaller."""

import numpy as np

from thyroid_lib.data.frames import fit_mask

KEPT = 0.5  # of a mask's share of the frame; less counts as lost
STEP = 32  # px between the sizes that are tried


def size_needed(mask: np.ndarray, size: int, resize: str) -> int:
    """Return the smallest side that keeps over half of a mask, bool (H,W); 0 if `size` does.

    Of a label map, uint8 (H,W), over half of each class.
    """
    longest = max(mask.shape)
    scale = (longest / min(mask.shape)) if resize == "letterbox" else 1  # padding takes its share
    shares = {code: (mask == code).mean() for code in np.unique(mask[mask > 0])}
    for side in (size, *range(-(-(size + 1) // STEP) * STEP, longest + STEP, STEP)):
        fitted = fit_mask(mask, side, resize)
        if all((fitted == code).mean() * scale > KEPT * share for code, share in shares.items()):
            return 0 if side == size else side
    return longest


def sizes_needed(store) -> list[int]:
    """Return `size_needed` of each case of a store."""
    resize = store.settings["resize"]
    kept = (store.masks > 0).mean(axis=(1, 2)) / store.index["foreground"].clip(lower=1e-9)
    lost = kept < (2 * KEPT if resize == "letterbox" else 1.1 * KEPT)
    lost |= len(store.classes) > 1  # their shares are not in the index
    masks = (store.reference(row) if low else None for row, low in enumerate(lost))
    return [0 if mask is None else size_needed(mask, store.size, resize) for mask in masks]


def lost_sentence(needed: list[int], size: int) -> str:
    """Say how many masks a size loses, and which size keeps them; `needed` 0 where none is lost."""
    if not any(needed):
        return f"at {size} px every mask keeps more than half of its area"
    count, most = sum(value > 0 for value in needed), max(needed)
    half = int(np.quantile([value for value in needed if value], 0.5, method="higher"))
    return (
        f"at {size} px {count} of {len(needed)} masks vanish or lose more than half of their area: "
        f"size: {half} keeps half of these, size: {most} keeps them all"
    )
