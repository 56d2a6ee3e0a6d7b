"""Predictions made elsewhere: read by their levels, refused by name, scored as a trained run's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import Store, build_store, load_cases
from thyroid_lib.evaluate import imported
from thyroid_lib.evaluate.imported import add_runs
from thyroid_lib.evaluate.metrics import score_case
from thyroid_lib.evaluate.predict import segment_case

ROOT = Path(__file__).parents[2]
SETTINGS = {"folds": 2, "val_share": 0.2, "threshold": 0.5, "tolerance_px": 2.0, "external": []}
TABLES = ("history", "scores", "thresholds", "calibration")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    from conftest import write_folder

    top = tmp_path_factory.mktemp("store")
    data = write_folder(top / "data", groups=4, frames=2, height=40, width=60)
    return build_store(load_cases("folder", data), top / "store", size=32)


def probability(store: Store, row: int) -> np.ndarray:
    """A map that is sure on the right half, and 0.4 and 0.2 on the left."""
    ref = store.reference(row)
    prob = np.where(ref, 0.8, 0.2)
    prob[:, :30] = np.where(ref[:, :30], 0.4, 0.2)
    return prob


def predictions(store: Store, folder, save, fold: int = 0):
    """Write a prediction of each test case of a fold by `save(path without ending, array)`."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = split_cases(store.index, protocol="grouped", fold=fold, folds=2, val_share=0.2)
    for row in np.flatnonzero(sides == "test"):
        save(folder / store.index["case_id"][row], probability(store, row))
    return folder


def png(levels, ending=".png"):
    return lambda path, prob: Image.fromarray(levels(prob)).save(f"{path}{ending}", quality=95)


def array(levels):
    return lambda path, prob: np.save(f"{path}.npy", levels(prob))


def of_nnunet(path, prob):
    both = np.stack([1 - prob, prob])[:, None].astype(np.float16)  # (2,1,H,W)
    np.savez(f"{path}.npz", probabilities=both)
    png(lambda p: (p > 0.5).astype(np.uint8))(path, prob)  # which nnU-Net leaves beside


MASKS = {
    "0 and 1": png(lambda p: (p > 0.5).astype(np.uint8)),
    "0 and 255": png(lambda p: np.uint8(255) * (p > 0.5)),
    "one bit": png(lambda p: p > 0.5),
    "gray in three channels": png(lambda p: np.repeat(np.uint8(255) * (p > 0.5)[..., None], 3, 2)),
    "opaque": png(lambda p: np.stack([*3 * [np.uint8(255) * (p > 0.5)], np.uint8(255 + 0 * p)], 2)),
    "letters of the ending": png(lambda p: (p > 0.5).astype(np.uint8), ".PNG"),
    "TIFF": png(lambda p: np.uint16(900) * (p > 0.5), ".tif"),
    "JPEG": png(lambda p: np.uint8(255) * (p > 0.5), ".JPG"),
    "bool array": array(lambda p: p > 0.5),
    "int64 array": array(lambda p: 7 * (p > 0.5).astype(np.int64)),
}
MAPS = {
    "8 bits": (png(lambda p: np.rint(255 * p).astype(np.uint8)), 1 / 255),
    "16 bits": (png(lambda p: np.rint(65535 * p).astype(np.uint16)), 1e-4),
    "float32": (array(lambda p: p.astype(np.float32)), 1e-6),
    "nnU-Net's npz": (of_nnunet, 1e-3),
    "TIFF of floats": (png(lambda p: p.astype(np.float32), ".tiff"), 1e-6),
    "sums a little above 1": (array(lambda p: np.where(p == 0.8, 1.0004, p)), 0.21),
}


def added(store, predicted, runs, **how) -> dict[str, pd.DataFrame]:
    given = {"name": "nnunet", "settings": SETTINGS} | how
    return dict(add_runs(predicted, runs, store, **given))


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_any_two_levels_are_scored_as_what_they_show(kind, store, tmp_path):
    predicted = predictions(store, tmp_path / "made", MASKS[kind])
    [(run_id, scores)] = added(store, predicted, tmp_path / "runs", source="a colleague").items()
    assert run_id == "nnunet-grouped-fold0-seed0"
    for row in scores.itertuples():
        at = store.index["case_id"].tolist().index(row.case_id)
        pred, ref = probability(store, at) > 0.5, store.reference(at)
        assert row.dice == pytest.approx(score_case(pred=pred, ref=ref)["dice"])
        shown = segment_case(tmp_path / "runs" / run_id, store, row.case_id)
        np.testing.assert_array_equal(shown, pred)
    tables = {name: pd.read_csv(tmp_path / "runs" / run_id / f"{name}.csv") for name in TABLES}
    assert [len(table) for table in tables.values()] == [0, 4, 0, 0]
    assert tables["scores"]["brier"].isna().all()
    about = json.loads((tmp_path / "runs" / run_id / "run.json").read_text())
    assert about["imported"]
    assert (about["model"], about["source"]) == ("nnunet (imported)", "a colleague")
    unknown = about["epochs"], about["parameters"], about["predictions"]
    assert unknown == ("unknown", None, "masks")


@pytest.mark.parametrize("kind", MAPS)
def test_maps_keep_their_probabilities(kind, store, tmp_path):
    save, off = MAPS[kind]
    predicted = predictions(store, tmp_path / "made", save)
    [scores] = added(store, predicted, tmp_path / "runs").values()
    run = tmp_path / "runs" / "nnunet-grouped-fold0-seed0"
    assert json.loads((run / "run.json").read_text())["predictions"] == "probability maps"
    thresholds = pd.read_csv(run / "thresholds.csv")
    for row, sweep in zip(scores.itertuples(), thresholds.to_dict("records"), strict=True):
        at = store.index["case_id"].tolist().index(row.case_id)
        prob, ref = probability(store, at), store.reference(at)
        assert row.brier == pytest.approx(np.square(prob - ref).mean(), abs=2 * off)
        assert sweep["0.30"] == 1  # at which the left half is found, too
        assert sweep["0.50"] < 1
    assert pd.read_csv(run / "calibration.csv")["bin"].nunique() == 3


def test_folders_of_folds_become_a_run_each_and_come_again_in_place_of_the_first(store, tmp_path):
    mask = MASKS["0 and 1"]
    for fold, name in enumerate(("fold_0", "fold1-seed3")):
        predictions(store, tmp_path / "made" / name, mask, fold)
    want = ["nnunet-grouped-fold0-seed0", "nnunet-grouped-fold1-seed3"]
    for _ in range(2):
        assert list(added(store, tmp_path / "made", tmp_path / "runs")) == want
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == want
    run = tmp_path / "runs" / want[0]
    before = {path.name: path.read_bytes() for path in run.glob("*.*")}
    imported.score_imported(run, store, SETTINGS)  # as the workflow does
    assert {path.name: path.read_bytes() for path in run.glob("*.*")} == before


def test_files_may_be_named_by_a_table_of_names(store, tmp_path):
    cases = store.index["case_id"]
    number = {case_id: f"thyroid_{row:05d}" for row, case_id in enumerate(cases)}
    made = predictions(
        store, tmp_path, lambda path, p: MASKS["0 and 1"](path.with_name(number[path.name]), p)
    )
    names = {name: case_id for case_id, name in number.items()}
    assert len(*added(store, made, tmp_path / "runs", names=names).values()) == 4


def remove(folder):
    (folder / "a00.png").unlink(missing_ok=True)
    next(folder.glob("*.png")).unlink()


def save_in(name: str, content):
    return lambda folder: Image.fromarray(content).save(folder / name)


def all_levels(*levels):
    """Write levels into the left columns of every file."""

    def change(folder):
        for path in folder.glob("*.png"):
            drawn = np.array(Image.open(path))
            drawn[:, : len(levels)] = levels
            Image.fromarray(drawn).save(path)

    return change


def save_array(value, shape=(40, 60)):
    def change(folder):
        for path in list(folder.glob("*.png")):
            np.save(path.with_suffix(".npy"), np.full(shape, value) * np.linspace(0, 1, shape[-1]))

    return change


def for_each(save):
    return lambda folder: [save(path.with_suffix("")) for path in folder.glob("*.png")]


def redrawn(draw, **how):
    """Draw the first case's mask anew."""

    def change(folder):
        path = min(folder.glob("*.png"))
        draw(Image.open(path)).save(path, **how)

    return change


GRAY = np.zeros((40, 60), np.uint8)
REFUSED = {
    "a case is missing": (remove, "missing: "),
    "a foreign case": (save_in("zz.png", GRAY), "no test cases: zz "),
    "another size": (save_in("{first}.png", GRAY[:32, :32]), "is 32 x 32, but its frame is 40"),
    "classes": (all_levels(1, 2), "more levels, and none above 0.008 of white"),
    "three classes up to white": (all_levels(100, 255), "levels 0, 1, 100, 255 may be classes"),
    "a map among masks": (redrawn(lambda x: Image.linear_gradient("L").resize(x.size)),
                          "png' has 0 and 1 alone, '.*png' more levels: need masks"),
    "colours": (save_in("{first}.png", np.stack([GRAY, GRAY + 9, GRAY], 2)), "has colours"),
    "ink": (redrawn(lambda x: x.putalpha(x.point(lambda v: 200 * v)) or x), "transparent parts"),
    "a palette of one colour": (redrawn(lambda x: x.putpalette([7] * 768) or x), "a palette"),
    "JPEG of classes": (redrawn(lambda x: x.point(lambda v: 120 * v), format="JPEG"), "is a JPEG"),
    "two arrays": (for_each(lambda path: np.savez(path, frame=GRAY, map=GRAY)), "'frame', 'map'"),
    "two organs": (for_each(lambda path: np.save(path, np.indices((40, 60)))), "holds two maps"),
    "two files of a case": (save_in("{first}.PNG", GRAY), "several files of one case"),
    "a damaged file": (lambda f: (f / "{first}.png").write_bytes(b"no picture"), "is no PNG"),
    "logits": (save_array(-4.0), "negative or no numbers"),
    "per cent": (save_array(100.0), "reaches 100.0: need probabilities from 0 to 1"),
    "not a number": (save_array(np.nan), "negative or no numbers"),
    "volumes": (save_array(1.0, (3, 40, 60)), r"holds an array \(3, 40, 60\)"),
    "nothing": (lambda folder: [path.unlink() for path in folder.glob("*")], "no predictions"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_predictions_are_refused_by_name_and_leave_nothing(
    kind, store, tmp_path, monkeypatch
):
    folder = predictions(store, tmp_path / "fold0", MASKS["0 and 1"])
    first = min(path.stem for path in folder.glob("*.png"))
    change, sentence = REFUSED[kind]
    change(folder)
    for odd in folder.glob("{first}.*"):
        odd.rename(folder / f"{first}{odd.suffix}")
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=f"nnunet-grouped-fold0-seed0: .*{sentence}|{sentence}"):
        added(store, tmp_path, tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_a_trained_run_and_a_networks_name_are_never_taken(store, tmp_path):
    made = predictions(store, tmp_path / "made", MASKS["0 and 1"])
    trained = tmp_path / "runs" / "nnunet-grouped-fold0-seed0"
    trained.mkdir(parents=True)
    (trained / "model.pt").write_bytes(b"weights")
    with pytest.raises(ValueError, match="holds another run"):
        added(store, made, tmp_path / "runs")
    assert [path.name for path in trained.iterdir()] == ["model.pt"]
    for how, sentence in (
        ({"name": "unet"}, "name: got 'unet'"),
        ({"name": "nn-Net"}, "name: got 'nn-Net'"),
        ({"protocol": "reported"}, "protocol: reported"),
        ({"protocol": "other"}, "protocol: got 'other'"),
        ({"fold": 7}, "fold: got 7"),
    ):
        with pytest.raises(ValueError, match=sentence):
            added(store, made, tmp_path / "runs", **how)
    shutil.rmtree(trained)
    assert added(store, made, tmp_path / "runs")


def test_the_command_line_says_in_a_line_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path))
    parameters = ["--parameters", str(ROOT / "parameters" / "demo.yaml")]
    names = tmp_path / "names.csv"
    names.write_text("Name;Case\nthyroid_00003;a00\n")
    for words, says in (
        ([], "predictions: need a folder"),
        (["--predictions", "made"], "no store at"),
        (["--predictions", "made", "--names", "none.csv"], "none.csv"),
        (["--predictions", "made", "--names", str(names)], "has the columns name, case: need name"),
        (["--set", "sise=3"], "sise: unknown (did you mean size?)"),
    ):
        assert imported.main([*parameters, *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert says in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [names]
