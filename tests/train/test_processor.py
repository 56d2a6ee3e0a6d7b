"""With the demo's pinned instructions, another processor trains to the same bits.

The other one is an Intel Haswell, emulated by qemu (Debian: qemu-user): no AVX-512, other caches.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_versions import TRAIN

from thyroid_lib.study.runner import PINNED


@pytest.mark.slow
def test_another_processor_trains_to_the_same_bits():
    qemu = shutil.which("qemu-x86_64")
    if platform.machine() != "x86_64" or not qemu:
        pytest.skip("needs an x86-64 Linux with qemu-x86_64 (Debian: apt-get install qemu-user)")
    python = str(Path(sys.executable).resolve())  # qemu starts no link of a virtual environment
    paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
    environment = os.environ | PINNED
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    commands = ([*emulator, python, "-c", TRAIN] for emulator in ([], [qemu, "-cpu", "Haswell"]))
    printed = [subprocess.check_output(each, env=environment, text=True) for each in commands]
    assert printed[0] == printed[1] != ""
