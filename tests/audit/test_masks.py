"""Mask audit: each defect drawn by hand is found, and a clean mask has none."""

import numpy as np
import pandas as pd
import pytest
from conftest import save_pairs

from thyroid_lib.audit import masks as audit
from thyroid_lib.audit.copies import describe
from thyroid_lib.data import phantom
from thyroid_lib.data.store import build_store, load_cases

CLEAN = np.zeros((100, 120), np.uint8)
CLEAN[40:70, 30:90] = 255  # a gland of 1800 px
COUNTS = ("text", "specks", "holes", "midtones", "gray_areas")


def drawn(*boxes):
    """The clean mask with boxes: top, left, height, width, gray level."""
    levels = CLEAN.copy()
    for top, left, height, width, level in boxes:
        levels[top : top + height, left : left + width] = level
    return levels


def test_what_is_drawn_is_counted():
    for boxes, expected in (
        ([], {}),
        ([(2, 1, 5, 3, 255), (2, 6, 5, 3, 255)], {"text": 2}),  # in the corner
        ([(80, 100, 3, 3, 255)], {"specks": 1}),
        ([(80, 100, 3, 3, 255), (10, 60, 2, 2, 255)], {"specks": 2}),
        ([(80, 100, 8, 10, 255)], {}),  # 80 px: a second lobe
        ([(40, 30, 30, 60, 0), (50, 50, 3, 3, 255)], {}),  # the largest is the gland, always
        ([(50, 50, 2, 4, 0)], {"holes": 1}),
        ([(40, 50, 12, 4, 0)], {}),  # a bay, open above
        ([(39, 30, 1, 60, 100), (70, 30, 1, 60, 100)], {"midtones": 120}),  # along an outline
        ([(85, 20, 6, 6, 110)], {"midtones": 36, "gray_areas": 36}),
        ([(50, 45, 10, 10, 160)], {"midtones": 100, "gray_areas": 100}),
        ([(85, 20, 6, 6, 12)], {}),  # as good as black
    ):
        found = audit.mask_defects(drawn(*boxes))
        assert {name: found[name] for name in COUNTS if found[name]} == expected, boxes


def test_pixels_of_defects_and_the_share_without_text():
    found = audit.mask_defects(drawn((2, 1, 5, 3, 255), (50, 50, 2, 4, 0), (80, 100, 3, 3, 255)))
    assert [found[f"{what}_pixels"] for what in ("text", "hole", "speck")] == [15, 8, 9]
    assert found["foreground"] == pytest.approx((1800 - 8 + 9) / 12000)


@pytest.fixture(scope="module")
def sweep():
    made = phantom.make_sweep(sweep=2, frames=9, text=False)
    return made["images"], made["masks"].astype(np.uint8) * 255


def audited(path, images, masks, **settings):
    """Audit a folder of one group, with names f00, f01 …"""
    names = [f"f{frame:02d}" for frame in range(len(images))]
    save_pairs(path, images, masks, names)
    rows = "".join(f"{name},a\n" for name in names)
    (path / "groups.csv").write_text(f"case_id,group\n{rows}")
    cases = load_cases("folder", path)
    return audit.audit_masks(cases, build_store(cases, path / "store", size=64, **settings))


def found_in(table, defect):
    return table["case_id"][table[defect] > 0].tolist()


def test_a_clean_sweep_has_no_defect(sweep, tmp_path):
    table = audited(tmp_path, *sweep)
    assert audit.summary(table)["cases"].tolist() == [0] * len(audit.DEFECTS)
    assert table["correlation"].isna().tolist() == [True] + [False] * 8
    assert audit.masks_sentence(table).endswith("No case has another defect.")


def test_a_frame_out_of_place_and_a_sequence_that_breaks(sweep, tmp_path):
    for frames, names in ((slice(4, 5), (["f04"], [])), (slice(5, 9), ([], ["f05"]))):
        images = sweep[0].copy()
        images[frames] = np.roll(images[frames, ::-1], 60, axis=2)
        table = audited(tmp_path / f"{frames.start}", images, sweep[1])
        assert (found_in(table, "out_of_sequence"), found_in(table, "jump")) == names


@pytest.mark.parametrize("resize", ["square", "letterbox"])
def test_a_nearly_black_frame_is_found(sweep, tmp_path, resize):
    images = sweep[0].copy()
    for frame, mean in ((8, 9), (0, 14)):
        images[frame] = images[frame] * (mean / images[frame].mean())
    table = audited(tmp_path, images, sweep[1], resize=resize)
    assert found_in(table, "nearly_black") == ["f08"]
    assert table["brightness"].iloc[0] == pytest.approx(14, abs=1.5)


def test_an_area_far_from_its_neighbours_is_found(sweep, tmp_path):
    masks = sweep[1].copy()
    rows, _ = np.nonzero(masks[3])
    masks[3][rows[len(rows) // 3] :] = 0  # a third is left
    masks[0] = 0
    masks[0][60:70, 60:70] = 255  # but a sweep may begin with a sliver
    assert found_in(audited(tmp_path, sweep[0], masks), "area") == ["f03"]


def test_quarantined_cases_are_not_audited_and_foreign_tables_are_refused(sweep, tmp_path):
    masks = sweep[1].copy()
    masks[1] = 0
    table = audited(tmp_path, sweep[0], masks)
    assert table["case_id"].tolist() == ["f00"] + [f"f{frame:02d}" for frame in range(2, 9)]
    cases = load_cases("folder", tmp_path)
    store = build_store(cases, tmp_path / "store", size=64)
    with pytest.raises(ValueError, match="7 cases of the store are not in the case table"):
        audit.audit_masks(cases.iloc[:2], store)


def test_the_summary_counts_each_rule(sweep, tmp_path):
    masks = sweep[1].copy()
    masks[2:4, 0:5, 0:3] = masks[3, 0:5, 5:8] = 255
    table = audit.summary(audited(tmp_path, sweep[0], masks)).set_index("defect")
    assert table.loc["text", ["cases", "components", "pixels"]].tolist() == [2, "3", "45"]
    assert table.loc["text", "mend"] == "`text` takes it out"
    assert list(table.index) == [defect.replace("_", " ") for defect in audit.DEFECTS]


def test_the_known_defects_of_the_real_frames_are_found(shared_data, tmp_path):
    cases = load_cases("tg3k", shared_data / "tg3k-sample")
    table = audit.audit_masks(cases, build_store(cases, tmp_path / "store", size=128))
    print(audit.summary(table).to_string())
    assert (table["text"] > 0).all()  # run 14, the only one without, is not in the sample
    assert {"1461", "2984"} <= set(found_in(table, "nearly_black"))
    assert "3464" in found_in(table, "out_of_sequence")
    assert {"0246", "2991", "3523"} <= set(found_in(table, "jump"))
    odd = table[[d for d in audit.DEFECTS if d not in audit.HARMLESS]] > 0
    assert odd.any(axis=1).mean() < 0.1  # a list that can be looked through


def test_groups_that_alternate_in_the_store_are_sequences_of_their_own(sweep):
    other = phantom.make_sweep(sweep=4, frames=9, text=False)["images"]
    images = [image for pair in zip(sweep[0], other, strict=True) for image in pair]
    table = audit._sequence(describe(images).fine, np.array(["a", "b"] * 9))
    assert not table[["out_of_sequence", "jump"]].any(axis=None)
    assert pd.isna(table["correlation"].iloc[:2]).all()
