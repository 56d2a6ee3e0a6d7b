"""How long the leakage audit takes on as many frames as TG3K has: about a minute is allowed.

    OMP_NUM_THREADS=2 python benchmarks/audit.py

Frames: 15 phantom sweeps, 16 frames drawn of each; the others are these again, shifted by up to 3
px, with other gain and fresh noise, at 256 x 256 px. Drawing them is not timed.
"""

import time
from types import SimpleNamespace

import numpy as np
import pandas as pd

from thyroid_lib.audit import leakage as audit
from thyroid_lib.data import phantom
from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.splits import split_cases

SWEEPS, DRAWN, FRAMES, SIZE = 15, 16, 239, 256

rng = np.random.default_rng(0)
images = []
for sweep in range(SWEEPS):
    drawn = phantom.make_sweep(sweep=sweep, frames=DRAWN)["images"]
    drawn = [fit_image(image, SIZE, "square") for image in drawn]
    for frame in range(FRAMES):
        image = np.roll(drawn[frame * DRAWN // FRAMES], rng.integers(-3, 4, 2), (0, 1))
        image = image * rng.uniform(0.9, 1.1) + rng.normal(0, 3, image.shape).astype(np.float32)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
images = np.stack(images)
index = pd.DataFrame({"case_id": [f"{row:04d}" for row in range(len(images))]})
index["group"] = np.repeat([f"sweep{sweep:02d}" for sweep in range(SWEEPS)], FRAMES)
store = SimpleNamespace(images=images, index=index, size=SIZE, settings={"resize": "square"})

took = {}
for name in ("random", "grouped", "groups"):
    began = time.perf_counter(), time.process_time()
    if name == "groups":
        proposed = audit.propose_groups(audit.describe(images))
    else:
        audit.leakage(store, split_cases(index, protocol=name))
    took[name] = time.perf_counter() - began[0], time.process_time() - began[1]
each = ", ".join(f"{name} {wall:.1f} s ({cpu:.1f} s of CPU)" for name, (wall, cpu) in took.items())
print(f"{len(images)} frames: {each}; {audit.groups_sentence(proposed, index.group.to_numpy())}")
