"""The training loop: what it computes, in which order, and that it resumes to the same bits."""

import io
import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from thyroid_lib.models import PRECISIONS, initialise
from thyroid_lib.settings import AUGMENTATIONS, AUGMENTS
from thyroid_lib.train import recipe
from thyroid_lib.train.recipe import RECIPE, cut_batches, fit

IMAGES = torch.randint(0, 256, (10, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
MASKS = (IMAGES > 127).byte()
SETTINGS = {"seed": 0, "epochs": 4, "batch_size": 4, "lr": 0.1}


def network() -> nn.Module:
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(0.2), nn.Conv2d(2, 1, 1)
    return of_one_class(nn.Sequential(*layers))


def of_one_class(net: nn.Module) -> nn.Module:
    net.out_channels = 1  # as networks have it
    return net


STRONG = {
    "loss": "bce+dice", "schedule": "one-cycle", "weight_decay": 0.01, "ema": 0.9,
    "encoder_lr": 0.5, "augment": dict.fromkeys(AUGMENTATIONS, 0.7),
}  # fmt: skip


class Encoded(nn.Module):
    out_channels = 1

    def __init__(self):
        super().__init__()
        self.encoder, self.rest = network(), nn.Conv2d(1, 1, 1)

    def forward(self, image):
        return self.rest(self.encoder(image))


def end(state=None, images=IMAGES, masks=MASKS, **changed) -> dict:
    (*_, last) = fit(network(), images, masks, state=state, **SETTINGS | changed)
    return last


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


def train_plainly(net, images, masks, *, seed, epochs, batch_size, lr) -> list[float]:
    """The recipe as anyone would write it, in float32; return the mean loss of each epoch."""
    initialise(net, seed)
    images, masks = images[:, None] / 255, masks[:, None].float()
    optimiser, losses = torch.optim.Adam(net.parameters(), lr=lr), []
    for epoch in range(1, epochs + 1):
        draw, total = torch.Generator().manual_seed(seed * 1_000_003 + epoch), 0
        for batch in cut_batches(torch.randperm(len(images), generator=draw), batch_size):
            prob = torch.sigmoid(net(images[batch]))
            loss = nn.functional.binary_cross_entropy(prob, masks[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(images))
    return losses


def test_it_is_adam_on_cross_entropy_of_logits():
    # no batch norm here: it makes the true gradient of a bias 0, and Adam would blow up the noise
    layers = lambda: (nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1))  # noqa: E731
    net, plain = (of_one_class(nn.Sequential(*layers())) for _ in "ab")
    (state,) = fit(net, IMAGES, MASKS, **SETTINGS | {"epochs": 1})
    losses = train_plainly(plain, IMAGES, MASKS, **SETTINGS | {"epochs": 1})
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state["weights"][name], value, atol=1e-5, rtol=1e-4)
    assert state["loss"] == pytest.approx(losses[0], abs=1e-6)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_from_any_epoch_it_goes_on_to_the_same_bits(precision, augment):
    """Stopped after each epoch in turn, through a file; weights and loss are float32 always."""
    how = {"precision": precision, "augment": augment}
    whole, state, losses = end(**how), None, []
    for _ in range(SETTINGS["epochs"]):
        buffer = io.BytesIO()
        torch.save(next(fit(network(), IMAGES, MASKS, state=state, **SETTINGS | how)), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        losses.append(state["loss"])
    assert equal(state, whole)
    assert all(state[name] == whole[name] for name in ("epoch", "loss", "scaler"))
    assert bool(state["scaler"]) == (precision == "fp16")
    assert losses[-1] < losses[0]
    kinds = {value.dtype for value in whole["weights"].values() if value.is_floating_point()}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("parts", [[name] for name in STRONG] + [[*STRONG]], ids=len)
def test_each_part_of_a_stronger_recipe_moves_weights_and_goes_on_to_the_same_bits(parts):
    how, states = SETTINGS | {name: STRONG[name] for name in parts}, []
    plain, moved = "weights", "averaged" if parts == ["ema"] else "weights"
    *_, whole = fit(Encoded(), IMAGES, MASKS, **how)
    *_, reported = fit(Encoded(), IMAGES, MASKS, **SETTINGS)
    for state in fit(Encoded(), IMAGES, MASKS, **how):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer)
    for buffer in states[:-1]:
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        *_, last = fit(Encoded(), IMAGES, MASKS, state=state, **how)
        for name in ("weights", "averaged") if "ema" in parts else ("weights",):
            assert all(map(torch.equal, last[name].values(), whole[name].values()))
        assert (last["loss"], last["lr"]) == (whole["loss"], whole["lr"])
    assert not all(map(torch.equal, whole[moved].values(), reported[plain].values()))
    if parts == ["ema"]:  # it only watches
        assert equal(whole, reported)


def test_with_rates_as_tensors_for_a_cuda_graph_it_is_the_same_training(monkeypatch):
    """The step itself, computed here at once: only its rates are tensors, in float32."""
    monkeypatch.setattr(recipe, "GraphedStep", lambda step, *generators: step)
    how, ends = SETTINGS | STRONG, []
    for graphed in (False, True):
        state = next(fit(Encoded(), IMAGES, MASKS, **how, cuda_graph=graphed))
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        kept = torch.load(buffer, weights_only=True)
        *_, whole = fit(Encoded(), IMAGES, MASKS, **how, cuda_graph=graphed)
        *_, resumed = fit(Encoded(), IMAGES, MASKS, state=kept, **how, cuda_graph=graphed)
        assert equal(whole, resumed)
        ends.append(whole)
    assert ends[1]["lr"] == pytest.approx(ends[0]["lr"], rel=1e-6)
    assert ends[1]["loss"] == pytest.approx(ends[0]["loss"], rel=1e-3)


def test_a_pretrained_start_comes_after_the_seeds_and_is_read_once(monkeypatch):
    def load(net, source):
        sources.append(source)
        nn.init.zeros_(net.encoder[0].weight)

    sources, how = [], SETTINGS | {"pretrained": "a.pt", "lr": 1e-9, "epochs": 2}
    monkeypatch.setattr(recipe, "load_pretrained", load)
    first, second = fit(Encoded(), IMAGES, MASKS, **how)
    assert second["weights"]["encoder.0.weight"].abs().max() < 1e-6
    plain = next(fit(Encoded(), IMAGES, MASKS, **how | {"pretrained": "none"}))
    torch.testing.assert_close(
        first["weights"]["rest.weight"], plain["weights"]["rest.weight"], atol=1e-6, rtol=0
    )
    list(fit(Encoded(), IMAGES, MASKS, state=first, **how))  # the file may be gone by now
    assert sources == ["a.pt"]


def test_chosen_rows_train_as_they_would_alone():
    rows = torch.tensor([7, 1, 4, 2])
    assert equal(end(rows=rows), end(images=IMAGES[rows], masks=MASKS[rows]))


def test_every_model_sees_the_same_batches_in_the_same_order():
    images = torch.arange(11, dtype=torch.uint8).reshape(11, 1, 1).expand(11, 2, 2).contiguous()

    class Spy(torch.nn.Module):
        out_channels = 1

        def __init__(self, extra):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.extra, self.seen = extra, []

        def forward(self, image):
            torch.rand(self.extra)  # a model that draws numbers must not disturb the order
            self.seen.append((image[:, 0, 0, 0] * 255).round().int().tolist())
            return image * self.weight

    spies = [Spy(0), Spy(3)]
    for spy in spies:
        list(fit(spy, images, images * 0, epochs=2, batch_size=5))
    assert spies[0].seen == spies[1].seen
    first, second = spies[0].seen[:2], spies[0].seen[2:]
    assert [len(batch) for batch in first] == [5, 6]  # never one of one frame
    assert sorted(frame for batch in first for frame in batch) == list(range(11))
    assert first != second


def test_the_settings_are_those_of_the_loops():
    known = {"seed": 0, "epochs": 25, "lr": 1e-4, "batch_size": 16}  # another may be added
    assert (known | {"augment": "none", "precision": "fp32"}).items() <= RECIPE.items()
    with pytest.raises(ValueError, match="precision: got 'half', need one of"):
        next(fit(network(), IMAGES, MASKS, precision="half"))


class NoWaiting(TorchDispatchMode):
    """Counts where a tensor's value is asked for: there a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "equal")
        return function(*args, **kwargs or {})


class SlowDevice(TorchDispatchMode):
    """Answers late when a value is asked for, as a GPU does that has work left."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ == "_local_scalar_dense":
            time.sleep(0.3)
        return function(*args, **kwargs or {})


@pytest.mark.study
def test_seconds_include_the_wait_for_the_device_and_seeds_are_set_once_an_epoch(monkeypatch):
    seeds, seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda value: seeds.append(value) or seed(value))
    training = fit(network(), IMAGES, MASKS, epochs=3, batch_size=3)
    with SlowDevice():
        *_, last = training
    assert last["seconds"] >= 3 * 0.3
    assert len(set(seeds)) == len(seeds) == 1 + 3  # of the weights and of each epoch


@pytest.mark.parametrize("how", [{"augment": "none"}, {"augment": "standard"}, STRONG])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_the_device_within_an_epoch(precision, how):
    training = fit(Encoded(), IMAGES, MASKS, batch_size=3, precision=precision, **how)
    with NoWaiting() as waited:
        next(training)
    assert waited.count == 1  # the mean loss, at the end
