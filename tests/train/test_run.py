"""A run from settings to tables: bits, resuming, stopping, selection, settings that do not fit."""

import hashlib
import json
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL
from test_recipe import train_plainly

from thyroid_lib.data.splits import split_cases
from thyroid_lib.evaluate.metrics import dice, pooled_dice
from thyroid_lib.evaluate.predict import predict_prob, score_rows
from thyroid_lib.files import stopping
from thyroid_lib.files.stopping import Stopped
from thyroid_lib.models import build_model, checkpoint
from thyroid_lib.plots.common import curves
from thyroid_lib.settings import AUGMENTATIONS
from thyroid_lib.train import recipe
from thyroid_lib.train import run as run_module
from thyroid_lib.train.readings import curve_sentence
from thyroid_lib.train.run import score_run, train_model, validate

STOPS = [  # of 3 epochs x 3 steps; whole epochs that are kept
    ("kill", "last", "step 8", 2), ("SIGINT", "last", "step 1", 0), ("time", "val", "step 6", 1),
    ("SIGTERM", "val", "step 5", 1), ("SIGINT", "last", "epoch 1", 1),
    ("SIGINT", "val", "epoch 3", 3), ("kill", "last", "epoch 3", 3),
]  # fmt: skip
TABLES = {"history.csv", "scores.csv", "thresholds.csv", "calibration.csv", "variations.csv"}
INFINITE = "run: the loss became .* in epoch 2, at lr 0.001 in fp32: lower lr"
NO_MEMORY = "unet, width 4, batch_size 5, precision fp32: lower batch_size, or else width"


def same_weights(one, other):
    a, b = (torch.load(run.out / "model.pt", weights_only=True)["weights"] for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


def happen_once_kept(epoch: int, what, patch):
    """Let something happen as soon as the state after this epoch is on the disk."""
    keep = checkpoint.keep

    def kept(out, state):
        keep(out, state)
        if state["epoch"] == epoch:
            what()

    patch.setattr(checkpoint, "keep", kept)


@pytest.fixture
def train(tiny_store, tmp_path, monkeypatch):
    """Train the tiny store in a folder of this test; every epoch's state is kept."""
    monkeypatch.setattr(run_module, "KEEP_SECONDS", 0)

    def start(name="run", store=tiny_store, **changed):
        return train_model(store, out=tmp_path / name, **SMALL | changed)

    return start


@pytest.fixture(scope="module")
def whole(tiny_store, tmp_path_factory):
    """Runs that nothing stopped, by the epoch that they select."""
    top, more = tmp_path_factory.mktemp("whole"), {"augment": "standard"}
    return {
        kept: train_model(tiny_store, out=top / kept, **SMALL | more, selection=kept)
        for kept in ("last", "val")
    }


def test_it_learns_and_leaves_its_tables(tiny_store, train):
    run = train(epochs=25, lr=1e-2)
    assert run.history.train_loss.iloc[-1] < 0.5 * run.history.train_loss.iloc[0]
    scores = score_run(run, tiny_store)
    assert sorted(scores.case_id) == sorted(tiny_store.index.case_id[run.sides == "test"])
    assert scores.dice.mean() > 0.7
    assert {file.name for file in run.out.iterdir()} == {"model.pt", "run.json"} | TABLES
    about = json.loads((run.out / "run.json").read_text())
    assert about["trained_epochs"] == 25
    foreground = tiny_store.masks[run.sides == "train"].mean()
    assert about["train_foreground"] == pytest.approx(foreground, abs=1e-6)
    assert {"seed", "augment", "threshold", "protocol"} | SMALL.keys() <= about.keys()
    assert about["files"].keys() == TABLES
    for name, digest in about["files"].items():
        assert hashlib.sha256((run.out / name).read_bytes()).hexdigest() == digest


@pytest.mark.study
def test_equal_runs_have_equal_bits_and_other_settings_make_others(train, whole, monkeypatch):
    runs = [train("a"), train("seed", seed=1), train("bf16", precision="bf16"), whole["last"]]
    equal = train("b")
    assert same_weights(runs[0], equal)
    pd.testing.assert_frame_equal(runs[0].history, equal.history, check_exact=True)
    assert not any(same_weights(runs[0], run) for run in runs[1:])
    assert len({run.meta["key"] for run in runs}) == 4
    again, other = train("a"), train("a", threshold=0.3)  # trained anew for what moves weights
    pd.testing.assert_frame_equal(runs[0].history, again.history)
    assert other.meta["threshold"] == 0.3
    trained = [run.meta["trained_epochs"] for run in (again, other, train("a", lr=1e-4))]
    monkeypatch.setattr(recipe, "TRAINING_VERSION", recipe.TRAINING_VERSION + 1)
    assert [*trained, train("a", lr=1e-4).meta["trained_epochs"]] == [0, 0, 3, 3]


@pytest.mark.study
@pytest.mark.parametrize("model", ["unet", "segnet", "resunet"])
def test_scored_again_it_gives_the_same_bytes(tiny_store, train, model):
    """Whether the weights were trained just now or found: the same layout, the same kernels."""
    tables, probs = [], []
    for _ in range(2):
        run = train(model=model)
        score_run(run, tiny_store)
        probs.append(predict_prob(run.model, tiny_store.images))
        tables.append([path.read_bytes() for path in sorted(run.out.glob("*.csv"))])
    assert np.array_equal(*probs)
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("how", "selection", "where", "kept"), STOPS)
def test_stopped_it_goes_on_and_ends_in_the_same_bits(
    train, whole, monkeypatch, how, selection, where, kept
):
    more, before = {"selection": selection, "augment": "standard"}, signal.getsignal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        late = time.time() + 1000
        patch.setenv("THYROID_DEADLINE", str(late))
        stops = {"kill": sys.exit, "time": lambda: patch.setattr(time, "time", lambda: late + 1)}
        stop = stops.get(how) or (lambda: signal.raise_signal(getattr(signal, how)))
        begin, number = where.split()
        (happen_at if begin == "step" else happen_once_kept)(int(number), stop, patch)
        with pytest.raises((Stopped, SystemExit)) as raised:
            train(**more)
    if how != "kill":
        said = "trained, but not scored" if kept == 3 else f"stopped in epoch {kept + 1} of 3"
        assert f"run: {said}, as " in str(raised.value)
        assert ("time budget" in str(raised.value)) == (how == "time")
    assert signal.getsignal(signal.SIGTERM) == before
    torch.rand(7)  # the global random state must not matter
    resumed = train(**more)
    assert resumed.meta["trained_epochs"] == 3 - kept
    assert same_weights(whole[selection], resumed)
    first = whole[selection].out / "history.csv"
    assert first.read_bytes() == (resumed.out / "history.csv").read_bytes()
    assert {path.name for path in resumed.out.iterdir()} == {"model.pt", "history.csv"}


@pytest.mark.parametrize(
    ("epoch_seconds", "keep_seconds", "kept"),
    [(2, 2, [1, 21]), (2, 0.01, [1, 2, 3]), (2, 0.3, [1, 4, 7, 10]), (200, 30, [1, 2, 3])],
)
def test_a_state_is_kept_each_minute_or_where_it_costs_a_twentieth(
    train, monkeypatch, epoch_seconds, keep_seconds, kept
):
    now, epochs = [1000.0], []
    monkeypatch.setattr(run_module, "KEEP_SECONDS", 60)
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])

    def keep(out, state):
        epochs.append(state["epoch"])
        now[0] += keep_seconds

    def pass_time(*args):
        now[0] += epoch_seconds
        return True

    monkeypatch.setattr(checkpoint, "keep", keep)
    monkeypatch.setattr(run_module.math, "isfinite", pass_time)  # called once an epoch
    train(epochs=kept[-1])
    assert epochs == kept


@pytest.mark.parametrize(("grace", "obeyed"), [(60, Stopped), (0, KeyboardInterrupt)])
def test_a_second_signal_is_obeyed_at_once(train, monkeypatch, grace, obeyed):
    def twice():
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(stopping, "GRACE", grace)
        signal.raise_signal(signal.SIGINT)

    happen_at(2, twice, monkeypatch)
    with pytest.raises(obeyed):
        train()


def test_a_budget_of_its_own_or_of_all_stops_it_and_what_is_finished_needs_no_time(
    train, monkeypatch
):
    monkeypatch.setenv("THYROID_DEADLINE", "")
    for of_all, own in ((1e-6, 0), (0, 1e-6)):
        stopping.set_deadline(of_all)
        with pytest.raises(Stopped, match="time budget is used up"):
            train(budget_minutes=own)
    for budget, trained in ((1000, 3), (1e-6, 0)):
        assert train(budget_minutes=budget).meta["trained_epochs"] == trained


@pytest.mark.parametrize(("fault", "said"), [("loss", INFINITE), ("memory", NO_MEMORY)])
def test_a_training_that_fails_says_what_to_change_and_a_smaller_batch_trains_as_if_alone(
    train, tmp_path, monkeypatch, fault, said
):
    loss = recipe.cross_entropy

    def fail():
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        infinite = lambda *args: loss(*args) * torch.inf  # noqa: E731
        patch.setattr(recipe, "cross_entropy", infinite)

    with monkeypatch.context() as patch:
        happen_at(5, fail, patch)
        with pytest.raises((FloatingPointError, RuntimeError), match=said):
            train()
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {"checkpoint.pt", "checkpoint-previous.pt"}  # whole states, and nothing else
    smaller, alone = train(batch_size=4), train("alone", batch_size=4)
    assert smaller.meta["trained_epochs"] == 3
    assert smaller.history.equals(alone.history)
    names = [{path.name for path in run.out.iterdir()} for run in (smaller, alone)]
    assert names[0] == names[1] == {"model.pt", "history.csv"}


@pytest.mark.study
def test_the_best_epoch_on_validation_is_kept_and_under_reported_that_on_test(tiny_store, train):
    how = {"epochs": 6, "val_share": 0.3}
    plain = train("plain", **how, protocol="random", selection="val")
    assert plain.meta["selected_epoch"] == plain.history.val_dice.idxmax() + 1
    assert not [column for column in plain.history if "test" in column]
    run = train(**how, protocol="reported", selection="test")
    assert run.meta["selected_epoch"] == run.history.test_dice_pooled.idxmax() + 1
    chosen = (run.model, "test", "test_dice_pooled"), (run.val_model, "val", "val_dice")
    for model, side, measure in chosen:
        best, rows = run.history[measure].max(), np.flatnonzero(run.sides == side)
        found = validate(model, tiny_store, rows, "cpu").summary(side)
        assert found[measure] == pytest.approx(best, abs=1e-6)
    scores = score_run(run, tiny_store)
    pooled = pooled_dice(scores.square_both.to_numpy(), scores.square_total.to_numpy())
    assert pooled == pytest.approx(run.history.test_dice_pooled.max(), abs=1e-6)
    of_val = pd.read_csv(run.out / "scores_val.csv")
    assert np.allclose(score_run(plain, tiny_store).dice, of_val.dice, atol=1e-6)


@pytest.mark.study
@pytest.mark.parametrize("selection", ["last", "val"])
def test_test_data_chooses_nothing(tiny_store, train, selection):
    """Test masks turned inside out move no weight, epoch, threshold or calibration."""
    sides = split_cases(tiny_store.index, protocol="grouped", folds=4, val_share=0.3)
    how = {"selection": selection, "val_share": 0.3}
    clean = train("clean", **how)
    masks, bits = np.array(tiny_store.masks), np.array(tiny_store.bits)
    for row in np.flatnonzero(sides == "test"):
        masks[row] = 1 - masks[row]
        start = tiny_store.index.offset[row]
        bits[start : start + 44 * 56 // 8] ^= 255
    poisoned = replace(tiny_store, masks=masks, bits=bits, fingerprint="poisoned")
    other = train("poisoned", store=poisoned, **how)
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


STRONG = {
    "loss": "bce+dice", "schedule": "one-cycle", "weight_decay": 0.01, "ema": 0.8, "lr": 1e-2,
    "augment": dict.fromkeys(AUGMENTATIONS, 0.5),
}  # fmt: skip


@pytest.mark.study
@pytest.mark.parametrize("selection", ["val", "last"])
def test_averaged_weights_are_validated_chosen_and_kept(tiny_store, train, monkeypatch, selection):
    """And a training that ended, but was killed before its weights were written, has them too."""
    how = STRONG | {"selection": selection, "epochs": 4}
    run = train(**how)
    at = run.meta["selected_epoch"] - 1
    rows = np.flatnonzero(run.sides == "val")
    found = validate(run.model, tiny_store, rows, "cpu").summary("val")
    assert found["val_dice"] == pytest.approx(run.history.val_dice[at], abs=1e-6)
    assert found["val_loss"] == pytest.approx(run.history.val_loss[at], rel=1e-4)
    pair = (torch.tensor(np.array(each)) for each in (tiny_store.images, tiny_store.masks))
    net = build_model("unet", width=4).to(memory_format=torch.channels_last)
    states = recipe.fit(
        net, *pair, torch.from_numpy(np.flatnonzero(run.sides == "train")), batch_size=5,
        **{name: value for name, value in how.items() if name != "selection"},
    )  # fmt: skip
    for state in states:
        if state["epoch"] == run.meta["selected_epoch"]:
            expected = {name: value.clone() for name, value in state["averaged"].items()}
    kept = checkpoint.read(run.out / "model.pt")["weights"]
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    assert run.history.lr.iloc[-1] < 1e-3 < run.history.lr.max()  # as it was, not as it was set
    with monkeypatch.context() as patch:
        happen_once_kept(4, sys.exit, patch)
        with pytest.raises(SystemExit):
            train("again", **how)
    again = train("again", **how)
    assert again.meta["trained_epochs"] == 0
    assert same_weights(run, again)


@pytest.mark.study
def test_variant_flips_and_the_place_of_pretrained_weights_are_in_run_json_and_not_in_the_key(
    tiny_store, train, monkeypatch
):
    digests = {"a.pt": "1", "moved/a.pt": "1", "b.pt": "2"}
    known = lambda name, source: {"name": source, "sha256": digests[source]}  # noqa: E731
    monkeypatch.setattr(run_module, "describe_pretrained", known)
    monkeypatch.setattr(recipe, "load_pretrained", lambda net, source: None)
    plain, named = train(), train(variant="best", varied=["lr"], flip_test=True)
    assert named.meta["trained_epochs"] == 0
    score_run(named, tiny_store)
    about = json.loads((named.out / "run.json").read_text())
    assert [about[key] for key in ("variant", "varied", "flip_test")] == ["best", ["lr"], True]
    assert plain.meta["variant"] == "unet"
    first, moved, other = (train(pretrained=source) for source in digests)
    assert [run.meta["trained_epochs"] for run in (first, moved, other)] == [3, 0, 3]
    assert other.meta["pretrained_weights"] == {"name": "b.pt", "sha256": "2"}
    assert "pretrained_weights" not in plain.meta
    shares = train(train_share=0.5).meta, train(augment={"flip": 0.5, "gamma": 1}).meta
    assert [meta["trained_epochs"] for meta in shares] == [3, 3]  # another training side, draws
    assert shares[1]["augment"] == {"flip": 0.5, "gamma": 1.0}


def test_without_validation_cases_there_is_no_curve_and_no_temperature(tiny_store, train):
    run = train(val_share=0)
    assert [*run.history] == ["epoch", "lr", "train_loss"]
    score_run(run, tiny_store)
    about = json.loads((run.out / "run.json").read_text())
    assert about["temperature"] is None
    assert about["cases"]["val"] == 0
    assert "no validation cases" in curve_sentence("unet", run.history)
    (said,) = curves(run.history).axes[1].texts
    assert said.get_text() == "no validation cases"


def test_settings_that_do_not_fit_stop_before_any_work(tiny_store, train, tmp_path):
    few = {"selection": "val", "val_share": 0.01, "protocol": "random"}
    for size, wrong, message in (
        (32, few, "needs validation cases"),
        (32, {"selection": "test"}, "selection: got .*, but protocol grouped needs last or val"),
        (32, {"epoch": 3}, "epoch: unknown .did you mean epochs"),
        (40, {}, "multiples of 16, got 40x40"),
    ):
        store = replace(tiny_store, settings=tiny_store.settings | {"size": size})
        with pytest.raises(ValueError, match=message):
            train(store=store, **wrong)
        assert not (tmp_path / "run").exists()


# SegNet's seeds lie farther apart
@pytest.mark.parametrize(("model", "within"), [("unet", 0.02), ("segnet", 0.06), ("resunet", 0.02)])
@pytest.mark.study
def test_fast_training_ends_at_the_dice_of_a_plain_loop(tiny_store, train, model, within):
    settings = {"epochs": 40, "batch_size": 5, "lr": 5e-3}
    fast, plain = [], []
    torch.set_num_threads(1)
    for seed in (0, 1):
        run = train(f"{seed}", **settings, model=model, seed=seed, precision="bf16")
        fast.append(score_run(run, tiny_store).dice.mean())
        net, rows = build_model(model, width=SMALL["width"]), np.flatnonzero(run.sides == "train")
        pair = (torch.tensor(each[rows]) for each in (tiny_store.images, tiny_store.masks))
        train_plainly(net, *pair, seed=seed, **settings)
        tested = np.flatnonzero(run.sides == "test")
        plain.append(score_rows(net.eval(), tiny_store, tested).cases.dice.mean())
    assert np.mean(plain) > 0.85
    assert np.mean(fast) == pytest.approx(np.mean(plain), abs=within)
