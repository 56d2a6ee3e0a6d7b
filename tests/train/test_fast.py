"""torch.compile and CUDA graphs: what they compute, and that a training goes on without them."""

import json
from contextlib import contextmanager, nullcontext
from unittest.mock import Mock

import pytest
import torch

from thyroid_lib.models import build_model
from thyroid_lib.train import device as devices
from thyroid_lib.train import graph as graphs
from thyroid_lib.train.recipe import fit
from thyroid_lib.train.run import score_run, train_model

SMALL = {"model": "unet", "width": 2, "folds": 4, "epochs": 1, "batch_size": 5, "device": "cpu"}
NO_COMPILER = "Failed to find a working C++ compiler"
CPU_ALONE = "it needs an NVIDIA GPU, and device is cpu"


@pytest.mark.parametrize(
    ("setting", "reason", "pin"),
    [
        ("compile", f"RuntimeError: {NO_COMPILER}", ""),
        (
            "compile",
            "it ignores pin_instructions, and its kernels beside pinned ones give NaN",
            "avx2",
        ),
        ("cuda_graph", CPU_ALONE, ""),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_the_training_goes_on(
    tiny_store, tmp_path, monkeypatch, capsys, setting, reason, pin
):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if pin:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", pin)
    error = RuntimeError(f"{NO_COMPILER}\nfurther lines")
    monkeypatch.setattr(torch, "compile", Mock(side_effect=error))
    plain = train_model(tiny_store, out=tmp_path / "plain", **SMALL)
    run = train_model(tiny_store, out=tmp_path / "run", **SMALL | {setting: True})
    said = f"{setting} cannot be used here ({reason}); the training goes on without it"
    assert said in capsys.readouterr().err
    score_run(run, tiny_store)
    assert json.loads((run.out / "run.json").read_text())[setting] is False
    assert run.meta["key"] == plain.meta["key"]  # so that it is not trained again elsewhere


@pytest.mark.slow
def test_a_compiled_training_ends_near_the_plain_one():
    if not devices.can_do("compile", torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    images = torch.randint(0, 256, (16, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    losses = []
    for compiled in (False, True):
        net = build_model("resunet", width=2).to(memory_format=torch.channels_last)
        how = {"epochs": 2, "batch_size": 8, "compile": compiled}
        losses.append([state["loss"] for state in fit(net, images, (images > 127).byte(), **how)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_peak_memory_begins_anew_with_each_run(tiny_store, tmp_path, monkeypatch):
    forgotten, forget = [], devices.forget_peak
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    monkeypatch.setattr(devices, "forget_peak", lambda device: forget(torch.device("cuda")))
    for name in "ab":
        train_model(tiny_store, out=tmp_path / name, **SMALL)
    assert forgotten == [torch.device("cuda")] * 2


class Graphs:
    """Imitates CUDA graphs: what runs while one is recorded runs at each replay, not at once."""

    def __init__(self, patch):
        self.recording, self.recorded, self.replays = False, 0, 0
        self.body: list = []

        @contextmanager
        def record(graph):
            self.recording, self.recorded = True, self.recorded + 1
            yield
            self.recording = False

        stream = type("Stream", (), {"wait_stream": lambda *streams: None})
        patch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        patch.setattr(torch.cuda, "graph", record)
        patch.setattr(torch.cuda, "Stream", stream)
        patch.setattr(torch.cuda, "current_stream", stream)
        patch.setattr(torch.cuda, "stream", nullcontext)

    def register_generator_state(self, generator):
        assert not self.recording

    def replay(self):
        self.replays += 1
        for operation in self.body:
            operation()

    def run(self, operation):
        self.body.append(operation) if self.recording else operation()


def test_a_graph_is_recorded_after_the_warm_up_and_odd_batches_are_computed_directly(monkeypatch):
    imitated, total = Graphs(monkeypatch), torch.zeros(())

    def step(x, y):
        imitated.run(lambda: total.add_((x * y).sum()))

    graphed, expected = graphs.GraphedStep(step, torch.Generator()), 0.0
    for number in range(12):
        x, y = (torch.rand(2 if number in (1, 6, 11) else 4) for _ in range(2))
        expected += float((x * y).sum())
        graphed(x, y)
        assert float(total) == pytest.approx(expected, rel=1e-5)
    assert (imitated.recorded, imitated.replays) == (1, 9 - graphs.WARM_UP)
