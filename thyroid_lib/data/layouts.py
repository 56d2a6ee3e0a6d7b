"""Layouts: which files below a folder are images, which are their masks, and the data's own split.

The words below are all that is known of people's folders. A file is an image or a mask by the
nearest folder with such a word, else by a word at the front or end of its name. Image and mask
belong together if their folders and names are equal without these words:

    trainval-image/0007.jpg         trainval-mask/0007.jpg
    imgs/a_img.png                  labels/a_label.png
    benign/benign (1).png           benign/benign (1)_mask.png, benign (1)_mask_1.png
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from thyroid_lib.data.cases import make_table, name_key
from thyroid_lib.data.name_tables import TABLES, compile_pattern
from thyroid_lib.data.readers import PICTURES

IMAGE = "image images imgs img original originals frame frames picture pictures scan scans raw"
MASK = (
    "mask masks label labels gt truth groundtruth annotation annotations annot segmentation "
    "segmentations segs seg target targets roi rois contour contours outline outlines manual"
)
SIDES = {
    "train": "train training trainval tr",
    "val": "val valid validation dev",
    "test": "test ts",
}
ROLE_OF = dict.fromkeys(IMAGE.split(), "image") | dict.fromkeys(MASK.split(), "mask")
SIDE_OF = {word: side for side, words in SIDES.items() for word in words.split()}
WORDS = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])|\d+")  # trainImages_2: train, Images, 2
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")
DEPTH = 6  # folders below the given one


def _affixes(words: str, numbered: str) -> list[re.Pattern]:
    """Return patterns of a name with one of the words at its end, and at its front."""
    either = words.replace(" ", "|")
    return [
        re.compile(rf"(.+?)(?:[-_. (]+(?:{either})\)?)+{numbered}", re.I),
        re.compile(rf"(?:{either})(?:[-_. ]+|(?=\d))(.+)", re.I),
    ]


# several masks of one image are numbered: a_mask.png, a_mask_1.png; nnU-Net's images end in _0000
AFFIXES = {"mask": _affixes(MASK, r"(?:[-_. (]*\d+\)?)?"), "image": _affixes(f"{IMAGE} 0000", "")}


class Picture(NamedTuple):
    """One image file: where it lies, and what its folders are called without the words above."""

    path: Path
    folder: str  # below the given one, "." for that itself
    stem: str
    role: str  # "image", "mask", "other", or "" where that is not known
    context: tuple[str, ...]


def list_files(root: Path) -> tuple[list[Path], list[Path]]:
    """List the image files and the other files below a folder, without hidden ones and litter."""
    images, others, visited = [], [], set()
    for folder, below, names in os.walk(root, followlinks=True):
        real, deep = os.path.realpath(folder), len(Path(folder).relative_to(root).parts) >= DEPTH
        if real in visited or "store.json" in names:  # by a link; a store of frames read already
            names, deep = [], True
        visited.add(real)
        below[:] = [] if deep else sorted(filter(_is_named, below))
        tables = [name for name in below if name.lower().endswith(TABLES)]  # refused when read
        for name in sorted(filter(_is_named, [*names, *tables])):
            is_image = name.lower().endswith((*PICTURES, ".npy"))
            (images if is_image else others).append(Path(folder, name))
    return images, others


def _is_named(name: str) -> bool:
    """Say whether a file or folder is a user's own, and not an operating system's."""
    key = name.casefold()
    return not (key.startswith(".") or key in LITTER or key.endswith(":zone.identifier"))


def find_pairs(
    root: Path, *, images: str = "", masks: str = "", pairing: str = "", dataset: str = "folder"
) -> tuple[pd.DataFrame, list[Path], list[str]]:
    """Find the images below a folder and their masks; no file is opened.

    A missing partner is an empty path, a name that occurs twice is two rows.

    `images` and `masks` are a folder below `root` or a pattern such as "*_mask*.png", `pairing` is
    a regular expression whose brackets match what an image and its mask both have in their names;
    "" to find them.

    Returns a case table without groups, with the column `official`; the files that are no images;
    and sentences on what was found. ValueError: no images, no masks, no pair, masks of two kinds.
    """
    files, others = list_files(root)
    if not files:
        held = ", ".join(ascii(path.name) for path in others[:5]) or "nothing"
        raise ValueError(f"no image file ({' '.join(PICTURES)}) in {root}: it holds {held}")
    pictures = _pictures(root, files, {"image": images, "mask": masks})
    found = {role: [p for p in pictures if p.role == role] for role in ("image", "mask")}
    odd = [path for path in others if path.suffix.lower() not in (*TABLES, ".json", ".md")]
    shown = ", ".join(ascii(path.name) for path in odd[:3])
    odd = [f"skipped {len(odd)} files by the ending: {shown}"] * bool(odd)
    if missing := [f"{role}s" for role in found if not found[role]]:
        held = "; ".join([f"{len(files)} image files {_folders(pictures)} of {root}", *odd])
        needed = f'set {missing[0]} to a folder or a pattern, "*_{missing[0][:-1]}.png"'
        raise ValueError(f"no {missing[0]} found among {held}: {needed}")
    if not images + masks:
        _check_single(found["image"])
    masks_of, left, how = _pair(found["image"], found["mask"], pairing)
    said = [f"images {_folders(found['image'])}, masks {_folders(found['mask'])}", *how, *odd]
    if skipped := [p for p in pictures if p.role not in found]:
        held = f"{len(skipped)} image files {_folders(skipped)}"
        said.append(f"skipped {held}: neither image nor mask")
    return _table(masks_of, left, dataset), others, said


def _check_single(images: list[Picture]) -> None:
    """Refuse data sets side by side (tg3k/thyroid-image, tn3k/test-image), not train and test."""
    held = defaultdict(set)
    for folder in {picture.folder for picture in images}:
        parts = PurePosixPath(folder.casefold()).parts
        named = [i for i, name in enumerate(parts) if {*WORDS.findall(name)} & {*ROLE_OF}]
        if named:
            held["/".join(parts[: named[0]])].add(parts[named[0]])
    if len(held) > 1 and not set.intersection(*held.values()):
        where = ", ".join(sorted(held))
        raise ValueError(f"several data sets lie here, in {where}: give one of them")


def _pictures(root: Path, files: list[Path], wanted: dict[str, str]) -> list[Picture]:
    """Say of each image file whether it is an image or a mask: as wanted, by folder, by name."""
    top = os.path.commonpath([file.parent for file in files])
    pictures, forced = [], []
    for path in files:
        below, role, context = path.relative_to(root).as_posix(), "", []
        chosen = next((r for r in ("mask", "image") if _matches(below, wanted[r])), "")
        inside = f"{wanted[chosen].strip('/')}/" if chosen else ""
        parts = path.parent.relative_to(top).parts
        if inside and below.startswith(inside):  # what a wanted folder is called says nothing
            parts = PurePosixPath(below.removeprefix(inside)).parts[:-1]
        for name in parts:
            words = WORDS.findall(name)
            roles = {ROLE_OF[word.casefold()] for word in words if word.casefold() in ROLE_OF}
            role = max(roles, default=role)  # a mask rather than an image
            rest = [word for word in words if word.casefold() not in ROLE_OF]
            context += rest if roles else [name]
        if chosen or wanted.get(role):  # else the study names others
            role = chosen or "other"
        stem, folder = unicodedata.normalize("NFC", path.stem), str(PurePosixPath(below).parent)
        pictures.append(Picture(path, folder, stem, role, tuple(context)))
        forced.append(chosen)
    for role, pattern in wanted.items():
        if pattern and role not in forced:
            problem = f"{role}s: {pattern!r} matches no image file below {root}"
            raise ValueError(f"{problem}, found {_folders(pictures)}")
    pictures = _masks_by_name(pictures, forced, "other" if wanted["mask"] else "mask")
    if not any(p.role == "image" for p in pictures):
        role = ROLE_OF.get(os.path.basename(top).casefold(), "image")  # masks/ alone holds masks
        pictures = [p._replace(role=p.role or role) for p in pictures]
    return pictures


def _masks_by_name(pictures: list[Picture], forced: list[str], role: str) -> list[Picture]:
    """Give `role` to masks beside their images, a.png and a_mask.png, else to any so named."""
    names = defaultdict(set)
    for p in pictures:
        names[p.folder] |= {key for key, _ in paired_names(p.stem, "image")}
    # where masks have a folder of their own, names in folders of images say nothing
    open_roles = ("",) if any(p.role == "mask" for p in pictures) else ("", "image")
    is_mask = [
        p.role in open_roles
        and any(k in names[p.folder] for k, _ in paired_names(p.stem, "mask")[1:])
        for p in pictures
    ]
    mixed = {p.folder for p, named in zip(pictures, is_mask, strict=True) if named}
    if not mixed and not any(p.role == "mask" for p in pictures):
        is_mask = [len(paired_names(p.stem, "mask")) > 1 for p in pictures]
    return [
        p._replace(role=force or (role if named else p.role or "image" * (p.folder in mixed)))
        for p, named, force in zip(pictures, is_mask, forced, strict=True)
    ]


def _matches(below: str, pattern: str) -> bool:
    """Say whether a path matches a folder, or a pattern on the path or on the name alone."""
    below, pattern = below.casefold(), pattern.casefold().strip("/")
    inside = f"/{pattern}/" in f"/{below}" or fnmatchcase(below, f"{pattern}/*")
    name = PurePosixPath(below).name
    return bool(pattern) and (inside or fnmatchcase(below, pattern) or fnmatchcase(name, pattern))


def paired_names(stem: str, role: str) -> list[tuple[str, str]]:
    """Return the names by which a file may be paired, each with the affix that was cut off.

    The affix is without its number: masks of one kind have the same.
    """
    found = [(name_key(stem), "")]
    for pattern in AFFIXES[role]:
        if match := pattern.fullmatch(stem):
            start, end = match.span(1)
            affix = f"{stem[:start]}*{stem[end:]}".casefold()
            found.append((name_key(match[1].strip()), re.sub(r"[-_. (]*\d+\)?$", "", affix)))
    # case0/image.png and case0/mask.png have no other name than their folder's
    return found + [("", "")] * (ROLE_OF.get(found[0][0]) == role)


def _pair(images: list[Picture], masks: list[Picture], pairing: str) -> tuple[dict, list, list]:
    """Return {image: its masks}, the masks without an image, and sentences on how they paired."""
    for how, keys_of in _ways(images, masks, pairing):
        masks_of, left = _pair_by(images, masks, keys_of)
        if any(masks_of.values()):
            said = f"{sum(map(bool, masks_of.values()))} images have a mask, paired by {how}"
            break
    else:
        first = [f"{each[0].folder}/ begins with {each[0].path.name!r}" for each in (images, masks)]
        advice = 'name each mask as its image, or set what both have, pairing: "(\\d+)"'
        raise ValueError(f"no image has a mask of its name: {', '.join(first)}; {advice}")
    # a second mask that a person renamed: a.png and a_1.png for the image a.png, if no image is a_2
    image_of = {(m.folder, m.stem): image for image, held in masks_of.items() for m, _ in held}
    numbered = re.compile(r"(.+?)[-_ ]+\(?\d+\)?")
    series = {(i.folder, base[1]) for i in images if (base := numbered.fullmatch(i.stem))}
    for mask in list(left):
        base = numbered.fullmatch(mask.stem)
        image = base and image_of.get((mask.folder, base[1]))
        if image and (image.folder, base[1]) not in series:
            masks_of[image].append((mask, masks_of[image][0][1]))
            left.remove(mask)
    several = []
    for image, held in masks_of.items():
        folders, kinds = {f"{mask.folder}/*" for mask, _ in held}, {a or "*" for _, a in held}
        for what, found in (("folders", folders), ("kinds", kinds)):
            if len(found) > 1:
                held = f"{image.path.name!r} has masks of two {what}, {' and '.join(sorted(found))}"
                need = f'set those that are meant, masks: "{max(found, key=len)}"'
                raise ValueError(f"{held}: {need}")
        if len({mask.stem for mask, _ in held}) > 1:
            several.append(image.path.name)
            if (image.folder, image.stem) in series:  # whose masks are a_mask_1, a_mask_2?
                need = "name each mask as its image"
                raise ValueError(f"{image.path.name!r} has several masks, and is a series: {need}")
    affixes = sorted({affix for held in masks_of.values() for _, affix in held if affix})
    said = [said + f" ({', '.join(affixes)})" * bool(affixes)]
    if several:
        said.append(f"{len(several)} images have several masks, which are joined: {several[0]!r}")
    return masks_of, left, said


def _pair_by(images: list[Picture], masks: list[Picture], keys_of: Callable) -> tuple[dict, list]:
    """Pair by keys, the first that fits; returns {image: [(mask, affix)]} and the masks left."""
    whole, cut = defaultdict(list), defaultdict(list)
    for image in images:
        for found, (key, _) in zip((whole, cut, cut), keys_of(image, "image"), strict=False):
            found[key].append(image)
    masks_of, left = {image: [] for image in images}, []
    for mask in masks:
        for key, affix in keys_of(mask, "mask"):
            hits = whole.get(key) or cut.get(key, [])
            if len({(hit.folder, name_key(hit.stem)) for hit in hits}) == 1:
                for hit in hits:
                    masks_of[hit].append((mask, affix))
                break
        else:
            left.append(mask)
    return masks_of, left


def _ways(images: list[Picture], masks: list[Picture], pairing: str) -> Iterator:
    """Yield ways to pair: what it is called, and a function (picture, role) -> [(key, affix)]."""
    names, how = lambda p, role: paired_names(p.stem, role), "name"
    if pairing:
        pattern, how = compile_pattern("pairing", pairing), f"what {pairing} finds in their names"

        def names(p, role):
            match = pattern.search(p.stem)
            return [(name_key(match[1]), "")] if match and match[1] else []

    yield how, lambda p, role: [((_place(p), key), affix) for key, affix in names(p, role)]
    yield f"{how}, whatever the folder", names
    if not pairing and min(len(images), len(masks)) > 1:
        ends = {"image": _common_ends(images), "mask": _common_ends(masks)}

        def middle(p, role):
            front, end = ends[role]
            return [((_place(p), name_key(p.stem[len(front) : len(p.stem) - len(end)])), "")]

        yield "names without " + ", ".join(f"{a}…{b}" for a, b in ends.values()), middle


def _place(p: Picture) -> tuple[str, ...]:
    return tuple(map(name_key, p.context))


def _common_ends(pictures: list[Picture]) -> tuple[str, str]:
    """Return what all names begin and end with, but for digits."""
    stems = [p.stem for p in pictures]
    front = re.sub(r"\d+$", "", os.path.commonprefix(stems))  # noqa: RUF071
    end = os.path.commonprefix([stem[len(front) :][::-1] for stem in stems])[::-1]  # noqa: RUF071
    return front, re.sub(r"^\d+", "", end)


def _table(masks_of: dict, left: list[Picture], dataset: str) -> pd.DataFrame:
    """Make the case table; names that occur in several folders get the folder's in front."""
    pairs = []
    for image, held in masks_of.items():
        by_stem = defaultdict(list)
        for mask, _ in held:
            by_stem[mask.stem].append(str(mask.path))
        # a.png and a.jpg are two rows, a_1.png and a_2.png are joined
        for number in range(max(map(len, by_stem.values()), default=1)):
            each = [paths[min(number, len(paths) - 1)] for _, paths in sorted(by_stem.items())]
            pairs.append((image, str(image.path), "\n".join(each)))
    pairs += [(mask, "", str(mask.path)) for mask in left]
    contexts = {(name_key(p.stem), p.context) for p, *_ in pairs}
    long = len({stem for stem, _ in contexts}) < len(contexts)
    rows = []
    for p, image, mask in pairs:
        words = map(str.casefold, WORDS.findall(" ".join(p.context)))
        side = next((SIDE_OF[word] for word in words if word in SIDE_OF), "")
        names = p.context if p.context and name_key(p.stem) in ROLE_OF else (*p.context, p.stem)
        case_id = "-".join(names) if long else p.stem
        rows.append((case_id, image, mask, "", dataset, side))
    return make_table(rows, "official")


def _folders(pictures: list[Picture]) -> str:
    """Say in which folders pictures lie, with their numbers and the first name."""
    counts = Counter(p.folder for p in pictures)
    shown = [f"{ascii(folder)[1:-1]}/ ({count})" for folder, count in sorted(counts.items())]
    return f"in {', '.join(shown[:4])}{', …' * (len(shown) > 4)}, as {pictures[0].path.name!r}"
