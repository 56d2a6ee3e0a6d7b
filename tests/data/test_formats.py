"""Formats of their own, from their files to the store: pixels, groups, or what to do instead."""

from pathlib import Path

import numpy as np
import pytest
from format_cases import CINES, IMAGES, MASKS, NAMES, OWN, READ, REFUSED
from fuzzing import attempt
from test_arrays import npz
from test_bad_files import damaged

from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store


def drawn(draw, folder) -> Path:
    folder.mkdir()
    path = draw(folder)
    return path if isinstance(path, Path) else folder


@pytest.mark.parametrize("kind", READ)
def test_what_is_drawn_is_in_the_store(tmp_path, kind):
    draw, names, groups = READ[kind]
    seen = look(drawn(draw, tmp_path / "data"))
    store = build_store(seen.cases, tmp_path / "store", size=32, mend=[], workers=1)
    assert store.quarantine.to_dict("records") == []
    order = np.argsort(names)
    assert store.index["case_id"].tolist() == [names[i] for i in order]
    for row, i in enumerate(order):
        square = fit_image(IMAGES[i], 32, "square").astype(int)
        assert np.abs(store.images[row] - square).max() <= 1, names[i]
        np.testing.assert_array_equal(store.reference(row), MASKS[i], err_msg=names[i])
    found = dict(zip(store.index["case_id"], store.index["group"], strict=True))
    shown = [found[name] for name in names]
    assert [shown.index(group) for group in shown] == [groups.index(group) for group in groups]
    assert len(set(groups)) == store.index["group"].nunique()
    assert ("own" in seen.seen["groups"]) == (groups in (NAMES, OWN, CINES) and "DICOM" not in kind)
    if "DICOM" in kind:
        assert "Doe" not in seen.cases.to_csv()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_known_is_refused_with_a_way_out(tmp_path, kind):
    draw, words, choices = REFUSED[kind]
    path = drawn(draw, tmp_path / "data")
    with pytest.raises(ValueError, match=words):
        build_store(look(path).cases, tmp_path / "store", size=32, workers=1)
    if choices:
        build_store(look(path, **choices).cases, tmp_path / "store", size=32, mend=[], workers=1)


@pytest.mark.parametrize(
    "kind", ["HDF5 of the Stanford cine clips", "npz with patients", "tar.gz, masks", "zip"]
)
def test_a_damaged_file_is_refused_set_aside_or_read(tmp_path, kind, counts):
    [draw] = [READ[each][0] for each in READ if each.startswith(kind)]
    file = drawn(draw, tmp_path / "data")
    for how, content in damaged(12, file.read_bytes(), 8):
        changed = tmp_path / how.replace(" ", "_") / file.name
        changed.parent.mkdir(exist_ok=True)
        changed.write_bytes(content)
        _, said = attempt(counts, look, changed)
        assert said is None or len(said.splitlines()) == 1


def test_a_changed_part_of_a_file_changes_the_store(tmp_path):
    prints = set()
    for masks in (MASKS, MASKS[::-1]):
        path = npz(tmp_path / "a.npz", x=IMAGES, y=masks)
        store = build_store(look(path).cases, tmp_path / "store", size=32, workers=1)
        prints.add(store.fingerprint)
    table = look(path, dataset="mine").cases
    assert set(table["dataset"]) == {"mine"}
    table["mask_path"] = table["mask_path"].to_numpy()[::-1]
    prints.add(build_store(table, tmp_path / "other", size=32, workers=1).fingerprint)
    assert len(prints) == 3
