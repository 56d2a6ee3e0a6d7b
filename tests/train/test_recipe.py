import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from thyroid_lib.files.stopping import Stopped
from thyroid_lib.models import PRECISIONS
from thyroid_lib.train.augment import AUGMENTS
from thyroid_lib.train.recipe import cut_batches, fit, keep_better, train_epoch

IMAGES = torch.randint(0, 256, (10, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
MASKS = (IMAGES > 127).byte()
RECIPE = {"seed": 0, "epochs": 4, "batch_size": 4, "lr": 0.1}


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))


def states(**changed) -> list[dict]:
    kept = []
    for state in fit(network(), IMAGES, MASKS, **RECIPE | changed):
        copy = {name: value.clone() for name, value in state["weights"].items()}
        kept.append(state | {"weights": copy})
    return kept


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


def test_it_is_adam_on_cross_entropy_of_logits():
    """The same steps written out plainly, on the same draw of weights and batches."""
    # no batch norm here: it makes the true gradient of a bias 0, and Adam would blow up the noise
    net, plain = (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1)) for _ in "ab")
    (state,) = fit(net, IMAGES, MASKS, **RECIPE | {"epochs": 1})
    torch.manual_seed(0)
    for layer in plain:
        layer.reset_parameters()
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    losses = []
    for batch in (order[:4], order[4:8], order[8:]):
        prob = torch.sigmoid(plain(IMAGES[batch][:, None] / 255))
        loss = nn.functional.binary_cross_entropy(prob, MASKS[batch][:, None].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()) * len(batch))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state["weights"][name], value, atol=1e-5, rtol=1e-4)
    assert state["history"][0]["train_loss"] == pytest.approx(sum(losses) / 10, abs=1e-6)


def test_from_any_state_it_goes_on_to_the_same_end():
    whole = states()
    for stopped_at in range(3):
        stopped = None
        for stopped in fit(network(), IMAGES, MASKS, **RECIPE):
            if stopped["epoch"] == stopped_at + 1:
                break
        resumed = states(state=stopped)
        assert len(resumed) == 3 - stopped_at
        assert equal(resumed[-1], whole[-1])
        assert resumed[-1]["history"] == whole[-1]["history"]


def test_seeds_and_what_is_watched():
    first, second = states(), states(seed=1)
    assert not equal(first[-1], second[-1])
    seen = states(watch=lambda net: {"val_dice": 0.5})
    assert [record["val_dice"] for record in seen[-1]["history"]] == [0.5] * 4
    assert equal(seen[-1], first[-1])


def test_batches_are_never_of_one_frame():
    sizes = [len(batch) for batch in cut_batches(torch.arange(11), 5)]
    assert sizes == [5, 6]
    assert [len(batch) for batch in cut_batches(torch.arange(1), 5)] == [1]
    assert torch.cat(cut_batches(torch.arange(11), 5)).tolist() == list(range(11))


def test_the_better_epoch_is_kept_and_a_draw_goes_to_the_first():
    best = None
    for epoch, score in enumerate([0.1, 0.7, 0.7, 0.3], start=1):
        state = {"epoch": epoch, "history": [{"val_dice": score}]}
        best = keep_better(best, state | {"weights": {"w": torch.tensor(epoch)}}, "val")
    assert (best["epoch"], best["score"], int(best["weights"]["w"])) == (2, 0.7, 2)
    last = keep_better(best, {"epoch": 4, "history": [{}], "weights": {}}, "last")
    assert (last["epoch"], last["weights"]) == (4, None)


def test_a_loss_that_is_no_number_stops_with_advice():
    training = fit(network(), IMAGES, MASKS, **RECIPE | {"lr": 1e30}, name="unet-grouped")
    with pytest.raises(FloatingPointError, match=r"unet-grouped: the loss became .* lower lr"):
        list(training)


def test_every_model_sees_the_same_batches_in_the_same_order():
    images = torch.arange(11, dtype=torch.uint8).reshape(11, 1, 1).expand(11, 2, 2).contiguous()

    class Spy(torch.nn.Module):
        def __init__(self, extra):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.extra, self.seen = extra, []

        def forward(self, image):
            torch.rand(self.extra)  # a model that draws numbers must not disturb the order
            self.seen.append((image[:, 0, 0, 0] * 255).round().int().tolist())
            return image * self.weight

    rows = torch.arange(11)
    spies = [Spy(0), Spy(3)]
    for spy in spies:
        for epoch in (1, 2):
            train_epoch(
                spy, torch.optim.SGD(spy.parameters(), lr=0.0), images, images * 0, rows,
                batch_size=5, seed=0, epoch=epoch,
            )  # fmt: skip
    assert spies[0].seen == spies[1].seen
    first, second = spies[0].seen[:2], spies[0].seen[2:]
    # eleven frames in fives: the last one joins its neighbours instead of making a batch of one
    assert [len(batch) for batch in first] == [5, 6]
    assert sorted(frame for batch in first for frame in batch) == list(range(11))
    assert first != second


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_from_any_step_it_goes_on_to_the_same_end(precision, augment):
    """Stopped after each of the 4 x 3 steps in turn, through a file, as a kill would have it."""
    how = {"precision": precision, "augment": augment}
    whole, state, stops = states(**how)[-1], None, 0
    while state is None or state["epoch"] < RECIPE["epochs"]:
        training = fit(network(), IMAGES, MASKS, **RECIPE, **how, state=state, due=lambda: True)
        buffer = io.BytesIO()
        torch.save(next(training), buffer)
        buffer.seek(0)
        state, stops = torch.load(buffer, weights_only=True), stops + 1
    assert stops == 4 * (3 + 1)
    assert state["within"] is None
    assert equal(state, whole)
    assert state["history"] == whole["history"]
    assert state["scaler"] == whole["scaler"]


def test_stopped_while_it_watches_it_loses_no_step():
    def told(net):
        raise Stopped

    kept = []
    with pytest.raises(Stopped):
        kept.extend(fit(network(), IMAGES, MASKS, **RECIPE, watch=told))
    assert [(state["epoch"], state["within"]["steps"]) for state in kept] == [(0, 3)]
    (*_, last) = fit(network(), IMAGES, MASKS, **RECIPE, state=kept[0])
    assert equal(last, states()[-1])


@pytest.mark.parametrize("due", [False, True])
def test_a_loss_that_is_no_number_is_told_with_its_place(due):
    """The eighth step of training, three an epoch, has an infinite loss."""

    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = network(), 0

        def forward(self, image):
            self.seen += self.training
            return self.net(image) + (torch.inf if self.seen == 8 else 0.0)  # epoch 3, step 2

    kept = []
    training = fit(Spoilt(), IMAGES, MASKS, **RECIPE, due=lambda: due, name="unet-x")
    with pytest.raises(FloatingPointError, match=r"nan|inf") as error:
        kept.extend(training)
    for part in ("unet-x: ", "in epoch 3, step 2 of 3, at lr 0.1 in fp32", "lower lr", "is kept"):
        assert part in str(error.value)
    assert kept[-1]["epoch"] == 2
    assert (kept[-1]["within"] or {"steps": 0})["steps"] == int(due)


# --- fast, and still the same recipe


class NoWaiting(TorchDispatchMode):
    """Fails where a tensor's value is asked for: there a GPU would be waited for."""

    def __init__(self, allowed: int):
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.allowed -= 1
            assert self.allowed >= 0, "the loop asks for a value"
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_the_device_within_an_epoch(precision, augment):
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), fused=True)
    with NoWaiting(allowed=1):  # the mean loss, at the end
        train_epoch(
            net, optimiser, IMAGES, MASKS, torch.arange(10), batch_size=3, seed=0, epoch=1,
            precision=precision, augment=augment,
        )  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns_resumes_and_keeps_weights_in_float32(precision):
    whole = states(precision=precision)
    assert {value.dtype for name, value in whole[-1]["weights"].items() if "num" not in name} == {
        torch.float32
    }
    losses = [record["train_loss"] for record in whole[-1]["history"]]
    assert losses[-1] < losses[0]
    for stopped in fit(network(), IMAGES, MASKS, **RECIPE, precision=precision):
        if stopped["epoch"] == 2:
            break
    assert equal(states(precision=precision, state=stopped)[-1], whole[-1])
    assert bool(whole[-1]["scaler"]) == (precision == "fp16")


def test_the_scale_of_the_loss_is_taken_up_again():
    stopped = next(fit(network(), IMAGES, MASKS, **RECIPE, precision="fp16"))
    stopped["scaler"]["scale"] = 2.0
    (*_, last) = fit(network(), IMAGES, MASKS, **RECIPE, precision="fp16", state=stopped)
    assert last["scaler"]["scale"] == 2.0


def test_an_unknown_augmentation_or_precision_is_refused():
    for name in ("augment", "precision"):
        with pytest.raises(ValueError, match=f"{name}: got 'all', need one of"):
            next(fit(network(), IMAGES, MASKS, **RECIPE, **{name: "all"}))


def test_frames_of_a_memory_map_give_the_same_bits(tmp_path):
    for name, array in (("images", IMAGES), ("masks", MASKS)):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    maps = (np.load(tmp_path / f"{name}.npy", mmap_mode="c") for name in ("images", "masks"))
    (*_, streamed) = fit(network(), *map(torch.from_numpy, maps), **RECIPE)
    assert equal(streamed, states()[-1])


def test_only_the_rows_asked_for_are_trained_on():
    rows = torch.tensor([7, 1, 4, 2])
    (*_, some) = fit(network(), IMAGES, MASKS, rows=rows, **RECIPE)
    (*_, alone) = fit(network(), IMAGES[rows], MASKS[rows], **RECIPE)
    assert equal(some, alone)


def test_augmented_training_repeats_and_differs():
    once, again, plain = states(augment="standard"), states(augment="standard"), states()
    assert equal(once[-1], again[-1])
    assert not equal(once[-1], plain[-1])
    stopped = next(fit(network(), IMAGES, MASKS, **RECIPE, augment="standard"))
    assert equal(states(augment="standard", state=stopped)[-1], once[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_cuda_is_not_waited_for(on_device, precision):
    net = network().cuda()
    optimiser = torch.optim.Adam(net.parameters(), fused=True)
    data = (IMAGES.cuda(), MASKS.cuda()) if on_device else (IMAGES, MASKS)
    how = {"batch_size": 3, "seed": 0, "precision": precision, "augment": "standard"}
    how["scaler"] = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    train_epoch(net, optimiser, *data, torch.arange(10), epoch=1, **how)  # loads its kernels
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_epoch(net, optimiser, *data, torch.arange(10), epoch=2, **how)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(said) <= 2  # the order sent there, the mean loss brought back
