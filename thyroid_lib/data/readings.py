"""Sentences about a store: what the figures of 1-preprocess show, written from the store itself."""

import pandas as pd

from thyroid_lib.data.groups import groups_note
from thyroid_lib.data.store import Store


def stored_sentence(store: Store, images: int) -> str:
    """Say how many of so many images are in the store, and why others are not."""
    reasons = store.quarantine["reason"].value_counts()
    aside = "; set aside: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{len(store.index)} of {images} images are in the store{aside * bool(len(reasons))}."


def foreground_name(store: Store) -> str:
    """Return what the masks of a store show."""
    if len(store.classes) > 1:
        return "foreground of all classes"
    return {"gland": "thyroid"}.get(store.task, store.task)


def sizes_sentence(index: pd.DataFrame, name: str = "thyroid") -> str:
    """Say how large frames are, and how much of them the masks cover; a store's index."""
    height, width = (_span(index[side]) for side in ("height", "width"))
    covered = _span((100 * index["foreground"]).round(1))
    size = f"{height} px high and {width} px wide"
    return f"Frames are {size}. {name.capitalize()} covers {covered} % of a frame."


def groups_sentence(index: pd.DataFrame) -> str:
    """Say how many groups there are, and of how many frames."""
    counts = index["group"].value_counts()
    frames = "1 frame" if counts.max() == 1 else f"{_span(counts)} frames"
    if len(counts) == 1:
        return f"There is one group, of {frames}: no other one to test on."
    said = f"There are {len(counts)} groups, of {frames}{' each' * (counts.nunique() == 1)}."
    return f"{said} {groups_note(index)}".strip()


def mended_sentence(store: Store) -> str:
    """Say how many masks each rule changed, of the rules that were switched on."""
    each = [f"`{rule}` changed {store.mended[rule]}" for rule in store.settings["mend"]]
    if not each:
        return "No rule is switched on: masks are as they were published."
    return f"Of {len(store.index)} masks, {', '.join(each)}."


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
