"""`variations.csv`: what each column says, on networks whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from torch import nn

from thyroid_lib.data.frames import restore_mask
from thyroid_lib.data.splits import split_cases
from thyroid_lib.evaluate.batch_norm import renew_batch_norm
from thyroid_lib.evaluate.features import (
    bridge_features,
    feature_distances,
    find_bridge,
    shrunk_covariance,
)
from thyroid_lib.evaluate.metrics import dice, part_errors, score_case
from thyroid_lib.evaluate.perturb import PERTURBATIONS
from thyroid_lib.evaluate.postprocess import POSTPROCESSES
from thyroid_lib.evaluate.predict import score_rows, segment_case
from thyroid_lib.evaluate.variations import vary_rows
from thyroid_lib.models import build_model, initialise
from thyroid_lib.models.ensemble import Ensemble
from thyroid_lib.train.run import score_run, train_model

SIDES = {"protocol": "grouped", "folds": 4, "val_share": 0.2}
SMALL = {"width": 4, "epochs": 20, "batch_size": 5, "lr": 1e-2, "threads": 1, "device": "cpu"}
FULL = ["dice", "nsd", "hd95_px", "false_parts"]


class Bright(nn.Module):
    """Thyroid is what is bright, and right of the middle what is not quite so bright, too."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(4)

    def forward(self, image):
        self.pool(image)
        right = torch.linspace(0, 1, image.shape[3]) > 0.5
        return 40 * (image - 115 / 255 + 0.1 * right)


@pytest.fixture(scope="module")
def sides(tiny_store):
    return [np.flatnonzero(split_cases(tiny_store.index, **SIDES) == x) for x in ("train", "test")]


@pytest.fixture(scope="module")
def table(tiny_store, sides):
    return vary_rows(Bright(), tiny_store, sides[1], train=sides[0])


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    """One training, scored plainly and as the mean with the mirror image."""
    out, found = tmp_path_factory.mktemp("runs"), {}
    for flip in (False, True):
        how = SIDES | SMALL | {"precision": "fp32", "flip_test": flip}
        run = train_model(tiny_store, out=out / "run", model="unet", **how)
        score_run(run, tiny_store)
        found[flip] = run, *(pd.read_csv(out / f"run/{x}.csv") for x in ("scores", "variations"))
    return found


def test_a_row_per_case_in_the_order_of_the_scores_and_nothing_is_missing(table, tiny_store, sides):
    scores = score_rows(Bright(), tiny_store, sides[1]).cases
    assert table[["case_id", "group"]].equals(scores[["case_id", "group"]])
    names = [f"{name}_{x}" for name in POSTPROCESSES for x in (*FULL, "px")]
    names += [f"{name}_{x}" for name in PERTURBATIONS for x in ("dice", "px")]
    names += ["flip_agreement", *(f"{name}_{x}" for name in ("flip", "batch_norm") for x in FULL)]
    assert set(table) == {
        "case_id", "group", *names, "bridge_distance", "bridge_nearest", "next_dice",
        "next_ref_dice",
    }  # fmt: skip
    assert table.drop(columns=["next_dice", "next_ref_dice"]).notna().all(axis=None)


def segment(square: np.ndarray) -> np.ndarray:
    """The mask of `Bright`, bool (44,56), of a frame, uint8 (32,32)."""
    right = np.linspace(0, 1, 32) > 0.5
    prob = expit(40 * (square / 255 - 115 / 255 + 0.1 * right)).astype(np.float32)
    return restore_mask(prob, 44, 56, resize="square", threshold=0.5)[1]


def test_columns_are_the_scores_of_what_they_name(table, tiny_store, sides):
    for row, found in zip(sides[1], table.to_dict("records"), strict=True):
        square, ref = np.asarray(tiny_store.images[row]), tiny_store.reference(row)
        masks = {name: process(segment(square)) for name, process in POSTPROCESSES.items()}
        masks["batch_norm"] = segment(square)  # the network has none
        for name, mask in masks.items():
            scores = score_case(pred=mask, ref=ref) | part_errors(mask, ref)
            scores["hd95_px"] = round(scores["hd95_px"])
            for column in FULL:
                assert found[f"{name}_{column}"] == pytest.approx(scores[column]), (name, column)
        for name in ("gain_up", "gamma_dark", "blur", "speckle"):
            mask = segment(PERTURBATIONS[name](square, found["case_id"]))
            assert found[f"{name}_px"] == pytest.approx(mask.sum(), abs=1), name
            assert found[f"{name}_dice"] == pytest.approx(dice(mask, ref), abs=0.002), name
        left = expit(40 * (square / 255 - 115 / 255 + 0.05)).astype(np.float32)  # without a side
        mean = restore_mask(left, 44, 56, resize="square", threshold=0.5)[1]
        assert found["flip_dice"] == pytest.approx(dice(mean, ref), abs=0.002)
    assert (table["gain_up_px"] > table["filled_px"]).all()
    assert (table["flip_agreement"] < 1).all()  # it favours the right side


def test_neighbours_are_of_one_group_and_the_last_has_none(tiny_store):
    rows = np.array([0, 6, 1, 7, 2])  # groups a b a b a
    table = vary_rows(Bright(), tiny_store, rows, train=np.arange(12, 24))
    assert table["next_dice"].isna().tolist() == [False, False, False, True, True]
    masks = tiny_store.masks > 0
    expected = [dice(masks[a], masks[b]) for a, b in ((0, 1), (6, 7), (1, 2))]
    assert table["next_ref_dice"].tolist()[:3] == pytest.approx(expected)


@pytest.mark.study
def test_neither_order_nor_batches_nor_workers_change_a_row(runs, tiny_store, sides):
    train, rows = sides
    rows = np.sort(np.concatenate([rows, train[:5]]))
    model = runs[False][0].model
    how = {"train": train}
    one = vary_rows(model, tiny_store, rows, **how)
    pd.testing.assert_frame_equal(one, vary_rows(model, tiny_store, rows, **how, workers=2))
    few = vary_rows(model, tiny_store, rows, **how, batch_size=3)
    exact = [x for x in one if not x.startswith("batch_norm")]  # whose batches are its own
    pd.testing.assert_frame_equal(one[exact], few[exact], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("model", "channels"), [("unet", 64), ("segnet", 32), ("resunet", 32)])
def test_the_bridge_is_the_deepest_output_of_any_network(model, channels):
    network, rows = build_model(model, width=4).eval(), np.arange(5)
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64)).astype(np.uint8)
    with torch.inference_mode():
        bridge, call = find_bridge(network, torch.zeros(1, 1, 64, 64))
    assert call == (5 if model == "segnet" else 1)  # of its one max-pool
    assert model != "unet" or bridge is network.bottom
    found = bridge_features(network, images, rows)
    assert found.shape == (5, channels)
    assert np.allclose(found, bridge_features(network, images, rows, batch_size=2), atol=1e-5)
    assert not any(module._forward_hooks for module in network.modules())
    ensemble = Ensemble([network, build_model("unet", width=4)], flip=True)
    assert np.array_equal(found, bridge_features(ensemble, images, rows))


def test_features_are_means_over_the_bridge(tiny_store):
    """Of `Bright`: of the maxima of 4 x 4 px."""
    found = bridge_features(Bright(), tiny_store.images, np.arange(5))
    blocks = np.asarray(tiny_store.images[:5]).reshape(5, 8, 4, 8, 4).max((2, 4)) / 255
    assert found == pytest.approx(blocks.mean((1, 2))[:, None], rel=1e-5)


def test_distances_by_hand_and_covariance_as_ledoit_and_wolf_write_it():
    known = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # a covariance of 0.5 times identity
    far, nearest = feature_distances(known, np.array([[0.0, 0], [2, 0], [3, 3], [-1, 0.0]]))
    assert far == pytest.approx([0, 2, np.sqrt(18), 1])
    assert nearest[1:] == pytest.approx([0, 1 - np.sqrt(0.5), 0])
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(30, 12)) @ rng.normal(size=(12, 12)) + 5
    off = drawn - drawn.mean(axis=0)
    covariance, target = off.T @ off / 30, np.eye(12) * off.var(axis=0).mean()
    noise = np.mean([np.square(np.outer(x, x) - covariance).sum() for x in off]) / 30
    share = noise / np.square(covariance - target).sum()
    assert 0.01 < share < 0.9
    assert shrunk_covariance(drawn) == pytest.approx((1 - share) * covariance + share * target)


def test_batch_norm_takes_the_statistics_of_the_frames_that_it_is_given(tiny_store):
    network = build_model("unet", width=4)
    initialise(network, 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = np.arange(10)
    fresh = renew_batch_norm(network, tiny_store.images, rows)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.inference_mode():
        first = fresh.down1[0](torch.tensor(np.asarray(tiny_store.images[:10]))[:, None] / 255)
    assert torch.allclose(fresh.down1[1].running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert not fresh.down1[1].training
    other = renew_batch_norm(network, tiny_store.images, rows[::-1].copy())
    assert torch.allclose(other.bottom[1].running_var, fresh.bottom[1].running_var, rtol=1e-4)
    alone = renew_batch_norm(network, tiny_store.images, rows[:1])
    assert torch.equal(alone.down1[1].running_mean, before["down1.1.running_mean"])


def test_a_run_of_flips_is_scored_as_the_mean_and_its_flip_columns_are_the_frame_alone(
    runs, tiny_store
):
    (plain, alone, varied), (flipped, both, varied_too) = runs[False], runs[True]
    assert plain.meta["key"] == flipped.meta["key"]
    assert flipped.meta["trained_epochs"] == 0
    assert not alone["dice"].equals(both["dice"])
    for column in ("dice", "nsd"):
        assert varied[f"flip_{column}"].to_numpy() == pytest.approx(both[column], abs=0.01)
        assert varied_too[f"flip_{column}"].to_numpy() == pytest.approx(alone[column], abs=0.01)
    assert varied["flip_agreement"].equals(varied_too["flip_agreement"])
    assert varied["bridge_distance"].equals(varied_too["bridge_distance"])
    first = both.iloc[0]
    assert segment_case(flipped.out, tiny_store, first.case_id).sum() == first.pred_px
    assert isinstance(flipped.model, Ensemble)


def test_the_table_is_small_and_the_scores_have_diameters_and_confidence(runs):
    run, scores, varied = runs[True]
    assert (run.out / "variations.csv").stat().st_size / len(varied) < 450  # of few rows
    assert scores["confidence"].between(0, 1).all()
    assert (scores["ref_longest_px"] >= scores["ref_across_px"]).all()
    assert (scores["ref_px"] <= (scores["ref_longest_px"] + 1) ** 2).all()
