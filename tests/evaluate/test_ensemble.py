"""Ensembles: as a network, as a run of the tables, from the command line."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from test_case_rows import SIDES, SMALL

from thyroid_lib.data.store import open_store
from thyroid_lib.evaluate.ensemble import join_sides, main
from thyroid_lib.evaluate.predict import load_model, segment_case
from thyroid_lib.models import build_model, initialise
from thyroid_lib.models.ensemble import Ensemble, without_flip
from thyroid_lib.train.run import score_run, train_model

pytestmark = pytest.mark.study  # networks are trained


def test_logits_are_the_mean_over_members_and_mirror_images():
    nets = [build_model(name, width=2).eval() for name in ("unet", "resunet")]
    for seed, net in enumerate(nets):
        initialise(net, seed)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = (nets[0](images) + nets[1](images)) / 2
        flipped = (nets[0](images.flip(3)) + nets[1](images.flip(3))).flip(3) / 2
        assert torch.allclose(Ensemble(nets)(images), plain, atol=1e-6)
        both = Ensemble(nets, flip=True)
        assert torch.allclose(both(images), (plain + flipped) / 2, atol=1e-6)
        assert torch.allclose(both(images.flip(3)).flip(3), both(images), atol=1e-6)
        assert torch.allclose(without_flip(both)(images), plain, atol=1e-6)
    assert without_flip(Ensemble(nets[:1], flip=True)) is nets[0]
    assert without_flip(nets[0]) is nets[0]
    assert Ensemble(nets).divisor == 16  # of the U-Net, 8 of the other
    with pytest.raises(ValueError, match="Ensemble needs multiples of 16, got 24x24"):
        Ensemble(nets)(images[..., :24, :24])


@pytest.fixture(scope="module")
def study(tiny_store, tmp_path_factory):
    """A store and three runs: two of fold 0, of which one flips, and one of fold 1."""
    top = tmp_path_factory.mktemp("study")
    shutil.copytree(tiny_store.folder, top / "store")
    for name, fold, more in (
        ("unet", 0, {"val_share": 0.4}), ("resunet", 0, {"flip_test": True}), ("unet", 1, {}),
    ):  # fmt: skip
        out = top / "runs" / f"{name}-grouped-fold{fold}-seed0"
        how = SIDES | SMALL | {"precision": "fp32", "fold": fold} | more
        score_run(train_model(tiny_store, out=out, model=name, **how), tiny_store)
    return top


def make(study, *members, name="both-grouped-fold0-seed0") -> int:
    runs = study / "runs"
    return main([str(runs / name), "--members", *(str(runs / each) for each in members)])


def test_a_run_of_the_tables_from_the_weights_of_others(study, capsys):
    ids = ["resunet-grouped-fold0-seed0", "unet-grouped-fold0-seed0"]
    out = study / "runs" / "both-grouped-fold0-seed0"
    assert make(study, *ids[::-1]) == 0
    assert "2 runs, Dice" in capsys.readouterr().out
    about = json.loads((out / "run.json").read_text("utf-8"))
    assert (about["ensemble"], about["model"], about["variant"]) == (ids, "resunet+unet", "both")
    assert (about["seed"], about["flip_test"], about["val_share"]) == (0, True, "unknown")
    assert about["varied"] == ["flip_test", "val_share"]
    tables = {"history", "scores", "thresholds", "calibration", "variations"}
    assert about["files"].keys() == {f"{name}.csv" for name in tables}
    store, (model, _) = open_store(study / "store"), load_model(out / "model.pt")
    members = [load_model(study / "runs" / each / "model.pt")[0] for each in ids]
    members[1] = Ensemble([members[1]], flip=True)  # what one member asks for holds for all
    images = torch.tensor(np.asarray(store.images[:2]))[:, None] / 255
    with torch.inference_mode():
        expected = (members[0](images) + members[1](images)) / 2
        assert torch.allclose(model(images), expected, atol=1e-5)
    scores = pd.read_csv(out / "scores.csv", dtype={"case_id": str})
    assert scores["dice"].mean() > 0.5
    assert segment_case(out, store, scores.case_id[3]).sum() == scores.pred_px[3]
    first = {name: (out / f"{name}.csv").read_bytes() for name in tables}
    assert make(study, *ids) == 0  # again, in another order
    assert first == {name: (out / f"{name}.csv").read_bytes() for name in tables}


def test_only_frames_that_no_member_was_trained_on_set_the_temperature(study):
    store, names = open_store(study / "store"), ("resunet-grouped-fold0-seed0",) * 2
    metas = [load_model(study / "runs" / each / "model.pt")[1] for each in names]
    alone = join_sides(store.index, metas)
    held = [metas[0], metas[1] | {"val_share": 0.0}]
    both = join_sides(store.index, held)
    assert {*alone} == {"train", "val", "test"}
    assert np.array_equal(both, np.where(alone == "val", "train", alone))


@pytest.mark.parametrize(
    ("members", "name", "said"),
    [
        (["unet-grouped-fold0-seed0"] * 2, "", "need each run once"),
        (["unet-grouped-fold0-seed0", "unet-grouped-fold1-seed0"], "", "fold: unet-grouped-fold1"),
        (["unet-grouped-fold0-seed0", "nothing"], "", "no model at"),
        (["unet-grouped-fold0-seed0"], "unet-grouped-fold1-seed0", "folder of another run"),
    ],
)
def test_members_that_do_not_fit_are_refused(study, capsys, members, name, said):
    assert make(study, *members, name=name or "new-grouped-fold0-seed0") == 2
    assert said in capsys.readouterr().err
    assert not (study / "runs" / "new-grouped-fold0-seed0").exists()
