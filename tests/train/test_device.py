import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from thyroid_lib.files import locks
from thyroid_lib.models import arithmetic
from thyroid_lib.study.runner import PINNED
from thyroid_lib.train import device, recipe
from thyroid_lib.train.device import choose_device, choose_precision

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


def test_a_device_gets_the_precision_that_it_is_fast_at(monkeypatch):
    known = {(9, 0): "bf16", (8, 0): "bf16", (7, 5): "fp16", (6, 1): "fp32"}
    for capability, wanted in known.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, has=capability: has)
        assert choose_precision("auto", CUDA) == wanted
        assert choose_precision("fp32", CUDA) == "fp32"
    for has, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "cpu_has_bf16", lambda has=has: has)
        assert choose_precision("auto", CPU) == wanted


@pytest.mark.study
def test_pinned_instructions_have_no_bf16():
    code = "import torch; from thyroid_lib.train.device import describe_machine as d; "
    code += "about = d(torch.device('cpu')); print(about['capability'], about['bf16'])"
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, env=os.environ | PINNED, text=True)
    assert printed.strip() in ("AVX2 False", "DEFAULT False")


def test_the_processor_and_its_instructions_are_named():
    about = device.describe_machine(CPU)
    assert about["processor"]
    info = Path("/proc/cpuinfo")
    if info.is_file() and "model name" in (text := info.read_text("utf-8")):
        assert f": {about['processor']}\n" in text
    assert about["capability"] == torch.backends.cpu.get_cpu_capability()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as torch shows it: what computing on it raises, or the sum that comes out."""

    def show(answer, *, built=("sm_75", "sm_80"), capability=(6, 0)):
        def compute(*_, **__):
            if isinstance(answer, Exception):
                raise answer
            return torch.tensor([float(answer)])

        device.gpu_problem.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100-PCIE-16GB")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1, 4, 8, 8))
        monkeypatch.setattr(torch.nn.functional, "conv2d", compute)

    yield show
    device.gpu_problem.cache_clear()


def test_a_gpu_that_torch_has_no_code_for_is_named_and_passed_over(gpu, capsys):
    """As on Kaggle's P100: it is listed, and fails at the first operation."""
    gpu(RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore"))
    problem = device.gpu_problem()
    assert re.match("Tesla P100-PCIE-16GB is here, but .*code for sm_75, sm_80 alone", problem)
    assert choose_device("auto").type != "cuda"
    assert f"{problem}; cpu is used instead" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"or say auto: Tesla P100"):
        choose_device("cuda")


def test_a_gpu_that_computes_is_taken_and_one_that_is_full_is_waited_for(gpu):
    gpu(36 * 36, capability=(7, 5))
    assert device.gpu_problem() == ""
    assert choose_device("auto") == CUDA
    # trained elsewhere other bits would come of it, and the next start would find it free
    gpu(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"), capability=(7, 5))
    with pytest.raises(RuntimeError, match=r"\(CUDA out of memory.*end what else uses it"):
        choose_device("auto")


def test_a_gpu_without_a_torch_for_it_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cases = (None, ["0"], "has no CUDA in it"), ("12.8", ["0"], "reach its driver"), (None, [], "")
    for cuda, gpus, said in cases:
        device.gpu_problem.cache_clear()
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(device, "visible_gpus", lambda gpus=gpus: gpus)
        assert device.gpu_problem().endswith(said)
        assert bool(device.gpu_problem()) == bool(gpus)
    device.gpu_problem.cache_clear()


def test_each_of_two_t4_takes_a_run_in_fp16(gpu, monkeypatch, tmp_path):
    """As on Kaggle, where no variable names them: the driver's files do."""
    gpu(36 * 36, capability=(7, 5))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(locks.glob, "glob", lambda _: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    held = []
    for expected in ("0", "1"):  # of two processes
        held.append(locks.claim_gpu("run"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
        assert choose_precision("auto", choose_device("auto")) == "fp16"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for lock in held:
        lock.close()


def test_apple_s_gpu_is_taken_in_fp32_without_autocast_and_fused_adam(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "visible_gpus", list)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device.gpu_problem.cache_clear()
    assert choose_device("auto") == MPS
    assert choose_precision("auto", MPS) == "fp32"
    assert isinstance(arithmetic("fp32", MPS), nullcontext)

    device.gpu_problem.cache_clear()
    monkeypatch.setattr(recipe, "initialise", lambda *_: None)
    monkeypatch.setattr(torch.optim, "Adam", adam := Mock(side_effect=KeyError))
    frames = torch.zeros(2, 8, 8, dtype=torch.uint8)
    for where in (MPS, CPU, CUDA):
        net = Mock(parameters=lambda where=where: iter([Mock(device=where)]))
        with pytest.raises(KeyError):
            next(recipe.fit(net, frames, frames))
    assert [call.kwargs["fused"] for call in adam.call_args_list] == [False, True, True]
