"""A run from settings to tables: bits, resuming, stopping, selection, settings that do not fit."""

import hashlib
import json
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from thyroid_lib.data.splits import split_cases
from thyroid_lib.evaluate.metrics import dice, pooled_dice
from thyroid_lib.evaluate.predict import load_model, predict_prob, score_rows
from thyroid_lib.files import stopping
from thyroid_lib.files.stopping import Stopped
from thyroid_lib.models import build_model, checkpoint, initialise
from thyroid_lib.train import recipe
from thyroid_lib.train.run import score_run, train_model
from thyroid_lib.train.validate import validate

SMALL = {
    "model": "unet", "width": 4, "folds": 4, "epochs": 3, "batch_size": 5, "lr": 1e-3,
    "threads": 1, "device": "cpu", "precision": "fp32",
}  # fmt: skip
TABLES = {"history.csv", "scores.csv", "thresholds.csv", "calibration.csv"}


def weights_of(run):
    return torch.load(run.out / "model.pt", weights_only=True)["weights"]


def same_weights(one, other):
    a, b = weights_of(one), weights_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history_of(run) -> bytes:
    return (run.out / "history.csv").read_bytes()


def seen(run, model, store, side):
    return validate(model, store, np.flatnonzero(run.sides == side), "cpu").summary(side)


def happen_at(step: int, what, patch):
    """Let something happen just before this step of the training (3 an epoch)."""
    to_input, count = recipe.to_input, 0

    def counted(*args):
        nonlocal count
        count += 1
        if count == step:
            what()
        return to_input(*args)

    patch.setattr(recipe, "to_input", counted)


def test_it_learns_and_leaves_its_tables(tiny_store, tmp_path):
    run = train_model(tiny_store, out=tmp_path / "run", **SMALL | {"epochs": 25, "lr": 1e-2})
    assert run.history.train_loss.iloc[-1] < 0.5 * run.history.train_loss.iloc[0]
    scores = score_run(run, tiny_store)
    assert sorted(scores.case_id) == sorted(tiny_store.index.case_id[run.sides == "test"])
    assert scores.dice.mean() > 0.7
    assert {file.name for file in run.out.iterdir()} == {"model.pt", "run.json"} | TABLES
    about = json.loads((run.out / "run.json").read_text())
    assert about["trained_epochs"] == 25
    foreground = tiny_store.masks[run.sides == "train"].mean()
    assert about["train_foreground"] == pytest.approx(foreground, abs=1e-6)
    assert about["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert about["machine"].keys() >= {"capability", "bf16"}
    assert {"seed", "augment", "threshold", "protocol"} | SMALL.keys() <= about.keys()
    assert about["files"].keys() == TABLES
    for name, digest in about["files"].items():
        assert hashlib.sha256((run.out / name).read_bytes()).hexdigest() == digest


def test_a_new_setting_of_the_recipe_reaches_run_json_and_key(tiny_store, tmp_path, monkeypatch):
    """With no other edit than of the loop itself."""
    plain, fit, given = train_model(tiny_store, out=tmp_path / "a", **SMALL), recipe.fit, []

    def fit_with_decay(*args, decay, **how):
        given.append(decay)
        return fit(*args, **how)

    monkeypatch.setattr(recipe, "fit", fit_with_decay)
    monkeypatch.setattr(recipe, "RECIPE", recipe.RECIPE | {"decay": 0.0})
    run = train_model(tiny_store, out=tmp_path / "b", **SMALL, decay=0.5)
    assert (given, run.meta["decay"]) == ([0.5], 0.5)
    assert run.meta["key"] != plain.meta["key"]


def test_equal_runs_have_equal_bits_and_other_settings_make_others(tiny_store, tmp_path):
    changes = {"a": {}, "b": {}, "seed": {"seed": 1}, "augment": {"augment": "standard"},
               "bf16": {"precision": "bf16"}}  # fmt: skip
    runs = {
        name: train_model(tiny_store, out=tmp_path / name, **SMALL | changed)
        for name, changed in changes.items()
    }
    assert same_weights(runs["a"], runs["b"])
    assert history_of(runs["a"]) == history_of(runs["b"])
    assert not any(same_weights(runs["a"], runs[name]) for name in ("seed", "augment", "bf16"))
    assert len({run.meta["key"] for run in runs.values()}) == 4
    again = train_model(tiny_store, out=tmp_path / "augment", **SMALL)
    assert again.meta["trained_epochs"] == 3  # found weights of another recipe


@pytest.mark.study
@pytest.mark.parametrize(
    ("how", "selection", "step", "kept"),  # of 3 epochs x 3 steps; whole epochs that are kept
    [
        ("kill", "last", 8, 2), ("SIGINT", "last", 1, 0), ("SIGTERM", "val", 5, 1),
        ("time", "val", 6, 1), ("SIGTERM", "last", 9, 2),
    ],
)  # fmt: skip
def test_stopped_in_an_epoch_it_goes_on_and_ends_in_the_same_bits(
    tiny_store, tmp_path, monkeypatch, how, selection, step, kept
):
    asked = SMALL | {"selection": selection, "augment": "standard"}
    whole = train_model(tiny_store, out=tmp_path / "whole", **asked)
    before = signal.getsignal(signal.SIGTERM)

    def kill():
        raise SystemExit

    with monkeypatch.context() as patch:
        late = time.time() + 1000
        patch.setenv("THYROID_DEADLINE", str(late))
        stops = {"kill": kill, "time": lambda: patch.setattr(time, "time", lambda: late + 1)}
        stop = stops.get(how) or (lambda: signal.raise_signal(getattr(signal, how)))
        happen_at(step, stop, patch)
        with pytest.raises(SystemExit if how == "kill" else Stopped) as raised:
            train_model(tiny_store, out=tmp_path / "run", **asked)
        if how != "kill":
            assert f"run: stopped in epoch {kept + 1} of 3, as " in str(raised.value)
            assert ("time budget" in str(raised.value)) == (how == "time")
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "run" / "model.pt").exists()
    assert (tmp_path / "run" / "checkpoint.pt").exists() == (kept > 0)
    torch.rand(7)  # the global random state must not matter
    resumed = train_model(tiny_store, out=tmp_path / "run", **asked)
    assert resumed.meta["trained_epochs"] == 3 - kept
    assert same_weights(whole, resumed)
    assert history_of(resumed) == history_of(whole)
    assert {path.name for path in resumed.out.iterdir()} == {"model.pt", "history.csv"}


@pytest.mark.parametrize(("grace", "obeyed"), [(60, Stopped), (0, KeyboardInterrupt)])
def test_a_second_signal_is_obeyed_at_once(tiny_store, tmp_path, monkeypatch, grace, obeyed):
    def twice():
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(stopping, "GRACE", grace)
        signal.raise_signal(signal.SIGINT)

    happen_at(2, twice, monkeypatch)
    with pytest.raises(obeyed):
        train_model(tiny_store, out=tmp_path / "run", **SMALL)


@pytest.mark.study
@pytest.mark.parametrize(("epoch", "how"), [(1, "signal"), (3, "signal"), (3, "kill")])
def test_stopped_as_soon_as_a_state_is_kept(tiny_store, tmp_path, monkeypatch, epoch, how):
    keep = checkpoint.keep

    def stop(out, state):
        keep(out, state)
        if state["epoch"] == epoch and how == "kill":
            raise SystemExit
        if state["epoch"] == epoch:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "keep", stop)
        with pytest.raises((Stopped, SystemExit)) as raised:
            train_model(tiny_store, out=tmp_path / "run", **SMALL)
    if how == "signal":
        assert ("stopped in epoch 2" if epoch == 1 else "not scored") in str(raised.value)
    done = train_model(tiny_store, out=tmp_path / "run", **SMALL)
    assert done.meta["trained_epochs"] == 3 - epoch
    assert same_weights(done, train_model(tiny_store, out=tmp_path / "whole", **SMALL))


def test_a_budget_stops_it_and_what_is_finished_needs_no_time(tiny_store, tmp_path):
    with pytest.raises(Stopped, match="time budget is used up"):
        train_model(tiny_store, out=tmp_path / "run", **SMALL, budget_minutes=1e-6)
    for budget, trained in ((1000, 3), (1e-6, 0)):
        done = train_model(tiny_store, out=tmp_path / "run", **SMALL, budget_minutes=budget)
        assert done.meta["trained_epochs"] == trained


def test_a_loss_that_is_no_number_stops_with_advice(tiny_store, tmp_path, monkeypatch):
    loss = recipe.binary_cross_entropy_with_logits
    seen = []

    def infinite_in_epoch_2(logits, mask):
        seen.append(1)
        return loss(logits, mask) * (torch.inf if len(seen) == 4 else 1)

    monkeypatch.setattr(recipe, "binary_cross_entropy_with_logits", infinite_in_epoch_2)
    with pytest.raises(FloatingPointError, match=r"run: the loss became (nan|inf)") as error:
        train_model(tiny_store, out=tmp_path / "run", **SMALL)
    for part in ("in epoch 2, at lr 0.001 in fp32", "lower lr", "checkpoint is kept"):
        assert part in str(error.value)
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1


def test_too_little_memory_says_what_to_lower(tiny_store, tmp_path, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    happen_at(4, full, monkeypatch)
    with pytest.raises(RuntimeError, match="lower batch_size, or else width") as error:
        train_model(tiny_store, out=tmp_path / "run", **SMALL)
    for part in ("model unet", "width 4", "batch_size 5", "size 32", "precision fp32"):
        assert part in str(error.value)
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1


def test_a_finished_run_is_trained_again_only_for_what_moves_weights(
    tiny_store, tmp_path, monkeypatch
):
    def train(**changed):
        return train_model(tiny_store, out=tmp_path / "run", **SMALL | changed)

    first, again, other = train(), train(), train(threshold=0.3)
    trained = [run.meta["trained_epochs"] for run in (first, again, other)]
    assert (trained, other.meta["threshold"]) == ([3, 0, 0], 0.3)
    assert again.meta["train_seconds"] == first.meta["train_seconds"]
    pd.testing.assert_frame_equal(first.history, again.history)
    assert train(lr=1e-4).meta["trained_epochs"] == 3
    monkeypatch.setattr(recipe, "TRAINING_VERSION", recipe.TRAINING_VERSION + 1)
    assert train(lr=1e-4).meta["trained_epochs"] == 3


@pytest.mark.study
@pytest.mark.parametrize("model", ["unet", "segnet", "resunet"])
def test_scored_again_it_gives_the_same_bytes(tiny_store, tmp_path, model):
    """Whether the weights were trained just now or found: the same layout, the same kernels."""
    tables, probs = [], []
    for _ in range(2):
        run = train_model(tiny_store, out=tmp_path / "run", **SMALL | {"model": model})
        score_run(run, tiny_store)
        probs.append(predict_prob(run.model, tiny_store.images))
        tables.append([path.read_bytes() for path in sorted(run.out.glob("*.csv"))])
    stored, _ = load_model(run.out / "model.pt")
    assert np.array_equal(*probs)
    assert np.array_equal(predict_prob(stored, tiny_store.images), probs[0])
    assert tables[0] == tables[1]


def test_selection_keeps_the_best_epoch_on_validation(tiny_store, tmp_path):
    how = SMALL | {"epochs": 6, "selection": "val", "val_share": 0.3}
    run = train_model(tiny_store, out=tmp_path / "run", **how)
    assert run.meta["selected_epoch"] == run.history.val_dice.idxmax() + 1
    again = seen(run, load_model(run.out / "model.pt")[0], tiny_store, "val")
    assert again["val_dice"] == pytest.approx(run.history.val_dice.max(), abs=1e-6)
    last = train_model(tiny_store, out=tmp_path / "last", **how | {"selection": "last"})
    assert last.meta["selected_epoch"] == 6
    assert not [column for column in last.history if "test" in column]


def test_the_reported_protocol_chooses_on_test_and_keeps_what_validation_chose(
    tiny_store, tmp_path
):
    how = SMALL | {"epochs": 6, "protocol": "reported", "selection": "test", "val_share": 0.3}
    run = train_model(tiny_store, out=tmp_path / "run", **how)
    assert run.meta["selected_epoch"] == run.history.test_dice_pooled.idxmax() + 1
    for model, side, measure in (
        (run.model, "test", "test_dice_pooled"), (run.val_model, "val", "val_dice")
    ):  # fmt: skip
        best = run.history[measure].max()
        assert seen(run, model, tiny_store, side)[measure] == pytest.approx(best, abs=1e-6)
    scores = score_run(run, tiny_store)
    pooled = pooled_dice(scores.square_both.to_numpy(), scores.square_total.to_numpy())
    assert pooled == pytest.approx(run.history.test_dice_pooled.max(), abs=1e-6)
    of_val = pd.read_csv(run.out / "scores_val.csv")
    assert list(of_val.case_id) == list(scores.case_id)
    how |= {"protocol": "random", "selection": "val"}
    plain = train_model(tiny_store, out=tmp_path / "plain", **how)
    assert np.allclose(score_run(plain, tiny_store).dice, of_val.dice, atol=1e-6)


@pytest.mark.parametrize("selection", ["last", "val"])
def test_test_data_chooses_nothing(tiny_store, tmp_path, selection):
    """Test masks turned inside out move no weight, epoch, threshold or calibration."""
    sides = split_cases(tiny_store.index, protocol="grouped", folds=4, val_share=0.3)
    how = SMALL | {"selection": selection, "val_share": 0.3}
    clean = train_model(tiny_store, out=tmp_path / "clean", **how)
    masks, bits = np.array(tiny_store.masks), np.array(tiny_store.bits)
    for row in np.flatnonzero(sides == "test"):
        masks[row] = 1 - masks[row]
        start = tiny_store.index.offset[row]
        bits[start : start + 44 * 56 // 8] ^= 255
    poisoned = replace(tiny_store, masks=masks, bits=bits, fingerprint="poisoned")
    other = train_model(poisoned, out=tmp_path / "poisoned", **how)
    assert same_weights(clean, other)
    assert not score_run(clean, tiny_store).brier.equals(score_run(other, poisoned).brier)
    about = [json.loads((run.out / "run.json").read_text()) for run in (clean, other)]
    for chosen in ("selected_epoch", "threshold", "temperature"):
        assert about[0][chosen] == about[1][chosen]
    pd.testing.assert_frame_equal(clean.history, other.history)


def test_validation_loss_and_dice_are_the_mean_over_cases(tiny_store):
    class Half(torch.nn.Module):
        def forward(self, image):
            return torch.zeros_like(image)

    record = validate(Half(), tiny_store, np.arange(4), "cpu").summary("val")
    assert record["val_loss"] == pytest.approx(np.log(2), abs=1e-6)
    nothing = np.zeros_like(tiny_store.masks[0], dtype=bool)  # 0.5 is not above 0.5
    each = [dice(nothing, tiny_store.masks[row].astype(bool)) for row in range(4)]
    assert record["val_dice"] == np.mean(each)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"selection": "best"}, "selection: got .*, need 'last', 'val' or 'test'"),
        (
            {"selection": "val", "val_share": 0.01, "protocol": "random"},
            "needs validation cases: raise val_share",
        ),
        ({"selection": "test"}, "selection: got .*, but protocol grouped needs last or val"),
        ({"model": "vnet"}, "unet, segnet, resunet"),
        ({"width": -1}, "width: got -1"),
        ({"precision": "half"}, "precision: got .*, need 'auto', 'fp32'"),
        ({"device": "tpu"}, "device: got .*, need 'auto', 'cpu'"),
        ({"epoch": 3}, "epoch: unknown .did you mean epochs"),
        ({"size": 40}, "multiples of 16, got 40x40"),
    ],
)
def test_settings_that_do_not_fit_stop_before_any_work(tiny_store, tmp_path, wrong, message):
    how = SMALL | wrong
    store = replace(tiny_store, settings=tiny_store.settings | {"size": how.pop("size", 32)})
    with pytest.raises(ValueError, match=message):
        train_model(store, out=tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def train_plainly(net, store, rows, *, seed, epochs, batch_size, lr):
    """The recipe as anyone would write it: float32, contiguous, sigmoid and cross-entropy."""
    initialise(net, seed)
    images = torch.tensor(store.images[rows] / 255, dtype=torch.float32)[:, None]
    masks = torch.tensor(store.masks[rows], dtype=torch.float32)[:, None]
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    for epoch in range(1, epochs + 1):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for batch in recipe.cut_batches(torch.randperm(len(rows), generator=draw), batch_size):
            prob = torch.sigmoid(net(images[batch]))
            loss = torch.nn.functional.binary_cross_entropy(prob, masks[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


# SegNet's seeds lie farther apart
@pytest.mark.parametrize(("model", "within"), [("unet", 0.02), ("segnet", 0.06), ("resunet", 0.02)])
@pytest.mark.study
def test_fast_training_ends_at_the_dice_of_a_plain_loop(tiny_store, tmp_path, model, within):
    settings = {"epochs": 40, "batch_size": 5, "lr": 5e-3}
    fast, plain = [], []
    torch.set_num_threads(1)
    for seed in (0, 1):
        asked = SMALL | settings | {"model": model, "seed": seed, "precision": "bf16"}
        run = train_model(tiny_store, out=tmp_path / f"{seed}", **asked)
        fast.append(score_run(run, tiny_store).dice.mean())
        net, rows = build_model(model, width=SMALL["width"]), np.flatnonzero(run.sides == "train")
        train_plainly(net, tiny_store, rows, seed=seed, **settings)
        tested = np.flatnonzero(run.sides == "test")
        plain.append(score_rows(net, tiny_store, tested).cases.dice.mean())
    assert np.mean(plain) > 0.85
    assert np.mean(fast) == pytest.approx(np.mean(plain), abs=within)
