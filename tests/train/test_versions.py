"""The bits of a training, of a store and of phantoms, held beside their version numbers.

A failure here means that the arithmetic has changed. If that is meant, raise TRAINING_VERSION,
STORE_VERSION or PHANTOM_VERSION by one and write down the new digests; else every user's old
weights, stores or phantoms would pass for new ones.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from thyroid_lib.study.runner import PINNED

ROOT = Path(__file__).parents[2]
TRAINING = (
    2,  # TRAINING_VERSION
    "9d25e43baf0e7f70946323d55e4deed87c073f3cd40014e20003d9b6fd7c3809",
)
STRONG = (
    2,  # TRAINING_VERSION
    "bfe162f14d3055b2b44c0538acda5d29edf548c412a756d1b401688f5d0d2a78",
)
STORE = (
    1,  # STORE_VERSION
    "79f50526cde414e1e636593f8b5062b7e2f44b1cafe56d53b27446904644a825",
)
PHANTOM = (
    1,  # PHANTOM_VERSION
    "5488f6bf8c4e07993c52ba175697665c4e43e95d659cb448102672767bcddeb5",
)
TRAIN = """
import hashlib, torch
from thyroid_lib.models import build_model
from thyroid_lib.train.recipe import TRAINING_VERSION, fit
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (10, 64, 64), generator=draw).byte()
masks = (torch.nn.functional.avg_pool2d(images[:, None].float(), 9, 1, 4)[:, 0] > 128).byte()
digest = hashlib.sha256()
for name in ("unet", "segnet", "resunet"):
    for augment in ("none", "standard"):
        net = build_model(name, width=4).to(memory_format=torch.channels_last)
        how = {"seed": 3, "epochs": 2, "batch_size": 5, "lr": 6e-3, "augment": augment}
        for state in fit(net, images, masks, **how):
            pass
        for value in net.state_dict().values():
            digest.update(value.numpy().tobytes())
print(TRAINING_VERSION, digest.hexdigest())
"""
TRAIN_STRONG = """
import hashlib, torch
from thyroid_lib.models import build_model
from thyroid_lib.settings import AUGMENTATIONS
from thyroid_lib.train.recipe import TRAINING_VERSION, fit
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (10, 64, 64), generator=draw).byte()
masks = (torch.nn.functional.avg_pool2d(images[:, None].float(), 9, 1, 4)[:, 0] > 128).byte()
net = build_model("resunet:tf_efficientnet_lite0", width=4).to(memory_format=torch.channels_last)
how = {"loss": "bce+dice", "schedule": "one-cycle", "weight_decay": 0.01, "ema": 0.9}
how |= {"encoder_lr": 0.5, "augment": dict.fromkeys(AUGMENTATIONS, 0.7)}
for state in fit(net, images, masks, seed=3, epochs=2, batch_size=5, lr=6e-3, **how):
    pass
digest = hashlib.sha256()
for value in [*state["weights"].values(), *state["averaged"].values()]:
    digest.update(value.numpy().tobytes())
print(TRAINING_VERSION, digest.hexdigest())
"""
BUILD = """
import hashlib, sys
from thyroid_lib.data.store import FILES, STORE_VERSION, build_store, load_cases
cases = load_cases("phantom", folder=sys.argv[1] + "/phantom", sweeps=2, frames=2, seed=5)
for resize in ("square", "letterbox"):
    how = {"size": 48, "resize": resize, "mend": ["text", "holes"]}
    build_store(cases, f"{sys.argv[1]}/{resize}", **how)
digest = hashlib.sha256()
for resize in ("square", "letterbox"):
    for name in FILES:
        digest.update(open(f"{sys.argv[1]}/{resize}/{name}", "rb").read())
print(STORE_VERSION, digest.hexdigest())
"""
DRAW = """
import hashlib
from thyroid_lib.data.phantom import PHANTOM_VERSION, make_sweep
digest = hashlib.sha256()
for sweep, text in ((0, True), (3, False)):
    drawn = make_sweep(seed=5, sweep=sweep, frames=3, text=text)
    digest.update(drawn["images"].tobytes() + drawn["masks"].tobytes())
print(PHANTOM_VERSION, digest.hexdigest())
"""


def locked(package: str) -> str:
    """Return the version of a package in requirements.lock, whose bits are known."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return next(line.split()[0].split("==")[1] for line in lines if line.startswith(f"{package}=="))


@pytest.mark.parametrize(
    ("code", "package", "known"),
    [
        pytest.param(TRAIN, "torch", TRAINING, marks=pytest.mark.study),
        pytest.param(TRAIN_STRONG, "torch", STRONG, marks=pytest.mark.study),
        (BUILD, "pillow", STORE),
        (DRAW, "scipy", PHANTOM),
    ],
)
def test_bits_change_only_with_the_version(tmp_path, code, package, known):
    from importlib.metadata import version

    if version(package).split("+")[0] != locked(package) or platform.machine() != "x86_64":
        pytest.skip(f"the digests are those of {package} {locked(package)} on x86-64")
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | PINNED, cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    number, digest = printed.split()
    assert (int(number), digest) == known
