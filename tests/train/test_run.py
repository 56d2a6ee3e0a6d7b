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
from thyroid_lib.train import recipe as train
from thyroid_lib.train import run
from thyroid_lib.train.run import score_run, train_model, watch_sides

SMALL = {
    "model": "unet", "width": 4, "folds": 4, "epochs": 3, "batch_size": 5, "lr": 1e-3,
    "threads": 1, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def weights_of(run):
    return torch.load(run.out / "model.pt", weights_only=True)["weights"]


def same_weights(one, other):
    a, b = weights_of(one), weights_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_leaves_its_tables(tiny_store, tmp_path):
    run = train_model(tiny_store, out=tmp_path / "run", **SMALL | {"epochs": 25, "lr": 1e-2})
    assert run.history.train_loss.iloc[-1] < 0.5 * run.history.train_loss.iloc[0]
    scores = score_run(run, tiny_store)
    assert sorted(scores.case_id) == sorted(tiny_store.index.case_id[run.labels == "test"])
    assert scores.dice.mean() > 0.7
    names = {file.name for file in run.out.iterdir()}
    tables = {"history.csv", "scores.csv", "thresholds.csv", "calibration.csv"}
    assert names == {"model.pt", "run.json"} | tables
    about = json.loads((run.out / "run.json").read_text())
    assert about["trained_epochs"] == 25
    foreground = tiny_store.masks[run.labels == "train"].mean()
    assert about["train_foreground"] == pytest.approx(foreground, abs=1e-6)
    assert about["parameters"] == sum(p.numel() for p in run.model.parameters())


def test_two_runs_are_equal_to_the_bit_and_a_seed_makes_another(tiny_store, tmp_path):
    runs = {
        name: train_model(tiny_store, out=tmp_path / name, seed=seed, **SMALL)
        for name, seed in {"a": 0, "b": 0, "c": 1}.items()
    }
    assert same_weights(runs["a"], runs["b"])
    assert not same_weights(runs["a"], runs["c"])
    histories = [(tmp_path / name / "history.csv").read_bytes() for name in "ab"]
    assert histories[0] == histories[1]


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tiny_store, tmp_path, monkeypatch):
    whole = train_model(tiny_store, out=tmp_path / "whole", **SMALL)
    steps_of = train.train_steps

    def killed_in_epoch_3(*args, epoch, **kwargs):
        if epoch == 3:
            raise KeyboardInterrupt
        return steps_of(*args, epoch=epoch, **kwargs)

    monkeypatch.setattr(train, "train_steps", killed_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        train_model(tiny_store, out=tmp_path / "killed", **SMALL)
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    assert not (tmp_path / "killed" / "model.pt").exists()
    monkeypatch.setattr(train, "train_steps", steps_of)
    resumed = train_model(tiny_store, out=tmp_path / "killed", **SMALL)
    assert resumed.meta["trained_epochs"] == 1
    assert same_weights(whole, resumed)
    assert (resumed.out / "history.csv").read_bytes() == (whole.out / "history.csv").read_bytes()
    assert not (resumed.out / "checkpoint.pt").exists()


def stop_after(steps: int, how, monkeypatch):
    """Let `how` happen in this step of the training."""
    steps_of, count = train.train_steps, 0

    def counted(*args, **kwargs):
        nonlocal count
        for place in steps_of(*args, **kwargs):
            count += 1
            if count == steps:
                how()
            yield place

    monkeypatch.setattr(train, "train_steps", counted)


@pytest.mark.parametrize(
    ("name", "selection", "steps"),  # of 3 epochs x 3
    [("SIGINT", "last", 1), ("SIGTERM", "val", 5), ("time", "val", 6), ("SIGTERM", "last", 9)],
)
def test_told_to_stop_it_keeps_the_step_and_goes_on(
    tiny_store, tmp_path, monkeypatch, name, selection, steps
):
    asked = SMALL | {"selection": selection, "augment": "standard"}
    whole = train_model(tiny_store, out=tmp_path / "whole", **asked)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        if name == "time":
            late = time.time() + 1000
            patch.setenv("THYROID_DEADLINE", str(late))
            stop_after(steps, lambda: patch.setattr(time, "time", lambda: late + 1), patch)
        else:
            stop_after(steps, lambda: signal.raise_signal(getattr(signal, name)), patch)
        why = "its time budget is used up" if name == "time" else "it was told to"
        with pytest.raises(Stopped, match=rf"run: stopped in epoch \d of 3, as {why}; .*goes on"):
            train_model(tiny_store, out=tmp_path / "run", **asked)
    assert signal.getsignal(signal.SIGTERM) == before
    within = checkpoint.read(tmp_path / "run" / "checkpoint.pt")["within"]
    assert within["steps"] == (steps - 1) % 3 + 1
    resumed = train_model(tiny_store, out=tmp_path / "run", **asked)
    assert same_weights(whole, resumed)
    assert (resumed.out / "history.csv").read_bytes() == (whole.out / "history.csv").read_bytes()
    assert {path.name for path in resumed.out.iterdir()} == {"model.pt", "history.csv"}


@pytest.mark.parametrize(("grace", "obeyed"), [(60, Stopped), (0, KeyboardInterrupt)])
def test_told_twice_it_obeys_at_once(tiny_store, tmp_path, monkeypatch, grace, obeyed):
    def twice():
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(stopping, "GRACE", grace)
        signal.raise_signal(signal.SIGINT)

    stop_after(2, twice, monkeypatch)
    with pytest.raises(obeyed):
        train_model(tiny_store, out=tmp_path / "run", **SMALL)


def test_told_to_stop_in_the_last_epoch_it_stops_too(tiny_store, tmp_path, monkeypatch):
    keep = checkpoint.keep

    def told(out, state):
        keep(out, state)
        if state["epoch"] == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "keep", told)
        with pytest.raises(Stopped, match="trained, and told to stop"):
            train_model(tiny_store, out=tmp_path / "run", **SMALL)
    done = train_model(tiny_store, out=tmp_path / "run", **SMALL)
    assert done.meta["trained_epochs"] == 0


def test_a_budget_stops_it_and_the_next_start_goes_on(tiny_store, tmp_path):
    with pytest.raises(Stopped, match="time budget is used up"):
        train_model(tiny_store, out=tmp_path / "run", **SMALL, budget_minutes=1e-6)
    done = train_model(tiny_store, out=tmp_path / "run", **SMALL, budget_minutes=1000)
    assert done.meta["trained_epochs"] == 3
    # what is finished needs no time
    again = train_model(tiny_store, out=tmp_path / "run", **SMALL, budget_minutes=1e-6)
    assert again.meta["trained_epochs"] == 0


def test_in_a_long_epoch_the_state_is_kept_every_few_minutes(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "KEEP_EVERY", -1)
    kept, keep = [], checkpoint.keep
    monkeypatch.setattr(
        checkpoint, "keep", lambda out, state: (kept.append(state["within"]), keep(out, state))
    )
    train_model(tiny_store, out=tmp_path / "run", **SMALL)
    assert [within and within["steps"] for within in kept] == [1, 2, 3, None] * 3


def test_too_little_memory_says_what_to_lower(tiny_store, tmp_path, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    stop_after(4, full, monkeypatch)
    with pytest.raises(RuntimeError, match="lower batch_size, or else width") as error:
        train_model(tiny_store, out=tmp_path / "run", **SMALL)
    for part in ("model unet", "width 4", "batch_size 5", "size 32", "precision fp32"):
        assert part in str(error.value)
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1


def test_the_tables_checksums_stand_in_run_json(tiny_store, tmp_path):
    done = train_model(tiny_store, out=tmp_path / "run", **SMALL)
    score_run(done, tiny_store)
    files = json.loads((done.out / "run.json").read_text())["files"]
    assert set(files) == {"history.csv", "scores.csv", "thresholds.csv", "calibration.csv"}
    for name, digest in files.items():
        assert hashlib.sha256((done.out / name).read_bytes()).hexdigest() == digest


def test_a_finished_run_is_not_trained_again_unless_something_changed(tiny_store, tmp_path):
    first = train_model(tiny_store, out=tmp_path / "run", **SMALL)
    again = train_model(tiny_store, out=tmp_path / "run", **SMALL)
    assert (first.meta["trained_epochs"], again.meta["trained_epochs"]) == (3, 0)
    assert again.meta["train_seconds"] == first.meta["train_seconds"]
    pd.testing.assert_frame_equal(first.history, again.history)
    # a threshold moves scores, not weights
    other = train_model(tiny_store, out=tmp_path / "run", **SMALL, threshold=0.3)
    assert (other.meta["trained_epochs"], other.meta["threshold"]) == (0, 0.3)
    slower = train_model(tiny_store, out=tmp_path / "run", **SMALL | {"lr": 1e-4})
    assert slower.meta["trained_epochs"] == 3


@pytest.mark.parametrize("model", ["unet", "segnet", "resunet"])
def test_scored_again_it_gives_the_same_bytes(tiny_store, tmp_path, model):
    """Whether the weights were trained just now or found: the same layout, the same kernels."""
    tables, probs = [], []
    for _ in range(2):
        run = train_model(tiny_store, out=tmp_path / "run", **SMALL | {"model": model})
        score_run(run, tiny_store)
        probs.append(predict_prob(run.model, tiny_store.images))
        tables.append([path.read_bytes() for path in sorted(run.out.glob("*.csv"))])
    assert run.meta["trained_epochs"] == 0
    assert np.array_equal(*probs)
    assert tables[0] == tables[1]
    stored, _ = load_model(run.out / "model.pt")
    assert np.array_equal(predict_prob(stored, tiny_store.images), probs[0])


def test_another_training_version_trains_anew(tiny_store, tmp_path, monkeypatch):
    train_model(tiny_store, out=tmp_path / "run", **SMALL)
    monkeypatch.setattr(train, "TRAINING_VERSION", train.TRAINING_VERSION + 1)
    assert train_model(tiny_store, out=tmp_path / "run", **SMALL).meta["trained_epochs"] == 3


def test_selection_keeps_the_best_epoch_on_validation(tiny_store, tmp_path):
    run = train_model(
        tiny_store, out=tmp_path / "run", selection="val", val_share=0.3, **SMALL | {"epochs": 6}
    )
    assert run.meta["selected_epoch"] == run.history.val_dice.idxmax() + 1
    model, _ = load_model(run.out / "model.pt")
    again = watch_sides(model, tiny_store, run.labels, ["val"], "cpu")
    assert again["val_dice"] == pytest.approx(run.history.val_dice.max(), abs=1e-6)


def test_the_reported_protocol_chooses_on_test_and_keeps_what_validation_chose(
    tiny_store, tmp_path
):
    how = {"protocol": "reported", "selection": "test", "val_share": 0.3}
    run = train_model(tiny_store, out=tmp_path / "run", **how, **SMALL | {"epochs": 6})
    assert run.meta["selected_epoch"] == run.history.test_dice_pooled.idxmax() + 1
    for model, side, measure in (
        (run.model, "test", "test_dice_pooled"), (run.val_model, "val", "val_dice")
    ):  # fmt: skip
        again = watch_sides(model, tiny_store, run.labels, [side], "cpu")
        assert again[measure] == pytest.approx(run.history[measure].max(), abs=1e-6)
    scores = score_run(run, tiny_store)
    pooled = pooled_dice(scores.square_both.to_numpy(), scores.square_total.to_numpy())
    assert pooled == pytest.approx(run.history.test_dice_pooled.max(), abs=1e-6)
    of_val = pd.read_csv(run.out / "scores_val.csv")
    assert list(of_val.case_id) == list(scores.case_id)
    plain = train_model(
        tiny_store, out=tmp_path / "plain", **how | {"protocol": "random", "selection": "val"},
        **SMALL | {"epochs": 6},
    )  # fmt: skip
    assert np.allclose(score_run(plain, tiny_store).dice, of_val.dice, atol=1e-6)


def test_test_data_chooses_nothing(tiny_store, tmp_path):
    """Test masks turned inside out move no weight, epoch, threshold or calibration."""
    labels = split_cases(tiny_store.index, protocol="grouped", folds=4, val_share=0.3)
    for selection in ("last", "val"):
        how = SMALL | {"selection": selection, "val_share": 0.3}
        clean = train_model(tiny_store, out=tmp_path / f"clean-{selection}", **how)
        masks, bits = np.array(tiny_store.masks), np.array(tiny_store.bits)
        for row in np.flatnonzero(labels == "test"):
            masks[row] = 1 - masks[row]
            start = tiny_store.index.offset[row]
            bits[start : start + 44 * 56 // 8] ^= 255
        poisoned = replace(tiny_store, masks=masks, bits=bits, fingerprint="poisoned")
        other = train_model(poisoned, out=tmp_path / f"poisoned-{selection}", **how)
        assert other.meta["trained_epochs"] == 3  # not the weights of the clean run
        assert same_weights(clean, other)
        assert not score_run(clean, tiny_store).brier.equals(score_run(other, poisoned).brier)
        about = [json.loads((run.out / "run.json").read_text()) for run in (clean, other)]
        for chosen in ("selected_epoch", "threshold", "temperature"):
            assert about[0][chosen] == about[1][chosen]
        pd.testing.assert_frame_equal(clean.history, other.history)


def test_the_last_epoch_never_looks_at_the_test_side(tiny_store, tmp_path):
    run = train_model(tiny_store, out=tmp_path / "run", **SMALL)
    assert not [column for column in run.history if "test" in column]
    assert run.meta["selected_epoch"] == 3


def test_watched_loss_and_dice_are_the_mean_over_cases(tiny_store):
    class Half(torch.nn.Module):
        def forward(self, image):
            return torch.zeros_like(image)

    labels = np.where(np.arange(len(tiny_store)) < 4, "val", "train")
    seen = watch_sides(Half(), tiny_store, labels, ["val"], "cpu")
    assert seen["val_loss"] == pytest.approx(np.log(2), abs=1e-6)
    nothing = np.zeros_like(tiny_store.masks[0], dtype=bool)  # 0.5 is not above 0.5
    assert seen["val_dice"] == np.mean(
        [dice(nothing, tiny_store.masks[row].astype(bool)) for row in range(4)]
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "got epochs 0"),
        ({"lr": 0.0}, "lr above 0"),
        ({"selection": "best"}, "need one of last, val, test"),
        ({"selection": "val", "val_share": 0.0}, "raise val_share above 0"),
        ({"selection": "test"}, "only protocol 'reported' chooses on the test set"),
        ({"protocol": "reported"}, "say both or neither"),
        ({"model": "vnet"}, "unet, segnet, resunet"),
        ({"augment": "blur"}, "augment: got 'blur', need one of none, standard"),
        ({"precision": "half"}, "precision: got 'half', need auto, fp32"),
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"protocol": "sweep"}, "need one of random, reported, official, grouped"),
    ],
)
def test_impossible_settings_stop_before_any_work(tiny_store, tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        train_model(tiny_store, out=tmp_path / "run", **SMALL | wrong)
    assert not (tmp_path / "run").exists()


def train_plainly(net, store, rows, *, seed, epochs, batch_size, lr):
    """The recipe as anyone would write it: float32, contiguous, sigmoid and cross-entropy."""
    initialise(net, seed)
    images = torch.tensor(store.images[rows] / 255, dtype=torch.float32)[:, None]
    masks = torch.tensor(store.masks[rows], dtype=torch.float32)[:, None]
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    for epoch in range(1, epochs + 1):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for batch in train.cut_batches(torch.randperm(len(rows), generator=draw), batch_size):
            prob = torch.sigmoid(net(images[batch]))
            loss = torch.nn.functional.binary_cross_entropy(prob, masks[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def test_augmentation_and_precision_make_other_weights(tiny_store, tmp_path):
    runs = {
        name: train_model(tiny_store, out=tmp_path / name, **SMALL | changed)
        for name, changed in {
            "plain": {}, "augmented": {"augment": "standard"}, "bf16": {"precision": "bf16"}
        }.items()
    }  # fmt: skip
    assert len({run.meta["key"] for run in runs.values()}) == 3
    assert not same_weights(runs["plain"], runs["augmented"])
    assert not same_weights(runs["plain"], runs["bf16"])
    assert runs["augmented"].meta["augment"] == "standard"
    again = train_model(tiny_store, out=tmp_path / "augmented", **SMALL)
    assert again.meta["trained_epochs"] == SMALL["epochs"]  # found weights of another recipe


# SegNet's seeds lie farther apart
@pytest.mark.parametrize(("model", "within"), [("unet", 0.02), ("segnet", 0.06), ("resunet", 0.02)])
def test_fast_training_ends_at_the_dice_of_a_plain_loop(tiny_store, tmp_path, model, within):
    recipe = {"epochs": 40, "batch_size": 5, "lr": 5e-3}
    fast, plain = [], []
    torch.set_num_threads(1)
    for seed in (0, 1):
        asked = SMALL | recipe | {"model": model, "seed": seed, "precision": "bf16"}
        run = train_model(tiny_store, out=tmp_path / f"{seed}", **asked)
        fast.append(score_run(run, tiny_store).dice.mean())
        net = build_model(model, width=SMALL["width"])
        train_plainly(net, tiny_store, np.flatnonzero(run.labels == "train"), seed=seed, **recipe)
        tested = np.flatnonzero(run.labels == "test")
        plain.append(score_rows(net, tiny_store, tested).cases.dice.mean())
    assert np.mean(plain) > 0.85
    assert np.mean(fast) == pytest.approx(np.mean(plain), abs=within)
