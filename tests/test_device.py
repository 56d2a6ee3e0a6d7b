import os
import subprocess
import sys

import pytest
import torch

from thyroid_lib import device
from thyroid_lib.device import choose_device, choose_precision, fits
from thyroid_lib.models import PRECISIONS, arithmetic
from thyroid_lib.runner import PINNED

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_an_absent_device_is_named():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: got 'cuda', this machine has"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_a_gpu_gets_what_it_is_fast_at(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", CUDA) == wanted
    assert choose_precision("fp32", CUDA) == "fp32"


@pytest.mark.parametrize(("has", "wanted"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_gets_bf16_if_it_has_instructions_for_it(monkeypatch, has, wanted):
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: has)
    assert choose_precision("auto", CPU) == wanted
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    for name in PRECISIONS:
        assert choose_precision(name, CPU) == name


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: got 'half', need auto, fp32, bf16, fp16"):
        choose_precision("half", CPU)
    with pytest.raises(ValueError, match="precision: got 'auto', need one of fp32, bf16, fp16"):
        arithmetic("auto", CPU)


def test_pinned_instructions_have_no_bf16():
    code = "import torch; from thyroid_lib.device import choose_precision as c; "
    code += "print(c('auto', torch.device('cpu')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | PINNED, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "fp32"


def test_half_of_what_is_free_may_be_filled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert fits(CUDA, 500)
    assert not fits(CUDA, 501)
    assert not fits(CPU, 1)  # memory maps are its memory already
