"""What people's folders hold is read right, or refused with the key that mends it."""

import numpy as np
import pytest
from layout_cases import Case, image, levels, pairs, write
from table_cases import CASES

from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store

ALL = {f"{part}: {title}": case for part, cases in CASES.items() for title, case in cases.items()}


@pytest.mark.parametrize("title", ALL)
def test_a_data_set_is_read_right_or_refused_with_what_mends_it(tmp_path, title):
    case = ALL[title]
    top = write(case.files, tmp_path / "data")
    if case.refused:
        with pytest.raises(ValueError, match=r".") as error:
            read(top, tmp_path / "refused", **case.choices)
        assert case.said in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        if not case.mend:
            return
    seen, built = read(top, tmp_path / "store", **case.choices | case.mend)
    assert case.refused or case.said in str(seen)
    check_read(case, seen, built)


def read(top, folder, **choices):
    seen = look(top, **choices)
    how = {"size": 48, "mend": [], "classes": choices.get("classes", ())}
    return seen, build_store(seen.cases, folder, **how)


def check_read(case: Case, seen, built) -> None:
    ids = case.ids if isinstance(case.ids, tuple) else [case.ids.format(i) for i in range(5)]
    numbers = {case_id: i for i, case_id in enumerate(ids)}
    grouped = [i for i in numbers.values() if case.groups is None or case.groups[i]]
    assert sorted(built.index["case_id"]) == sorted(ids[i] for i in grouped)
    assert len(seen.cases) == len(ids)
    for row, about in enumerate(built.index.itertuples()):
        i = numbers[about.case_id]
        np.testing.assert_array_equal(built.reference(row), case.masks(i), about.case_id)
        square = fit_image(image(i), 48, "square").astype(int)
        assert abs(built.images[row] - square).max() <= case.near
        group = about.case_id if case.groups is None else case.groups[i]
        assert about.group == group
        assert about.official == case.official.get(i, "")


def test_a_series_that_lost_an_image_keeps_its_masks_apart(tmp_path):
    files = pairs("images/a_{}.png", "masks/a_{}.png")
    files |= {"images/a.png": image(9), "masks/a.png": levels(255)(9)}
    del files["images/a_3.png"]
    seen = look(write(files, tmp_path))
    assert seen.cases.set_index("case_id")["image_path"]["a_3"] == ""
    assert "joined" not in str(seen)
