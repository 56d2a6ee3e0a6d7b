"""The recipe, visible at a glance: Adam, cross-entropy on logits, augmentation only on request.

It is the reported one, and the same for every architecture: one initialisation scheme, the same
batches in the same order. Frames lie on the device as uint8 and are gathered there; where they are
too many for it, each batch is read from the store's memory map. Nothing waits for the device within
an epoch. Training that was stopped, in the middle of an epoch too, goes on from the last state that
`fit` gave, and ends on a CPU with as many threads in the very same bits: what is drawn depends on
seed and epoch, or is part of the state. `run` puts this to work on a store.
"""

import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from thyroid_lib.files.stopping import Stopped
from thyroid_lib.models import arithmetic, initialise, to_input
from thyroid_lib.train.augment import AUGMENTS
from thyroid_lib.train.augment import augment as augment_standard

# Raise by one with every change that moves a bit of any weight: of a network, the split, the
# augmentation or this loop. Runs of another version are trained again.
# tests/train/test_versions.py fails where that was forgotten.
TRAINING_VERSION = 1
SELECTIONS = ("last", "val", "test")


def fit(
    net: nn.Module,
    images: Tensor,
    masks: Tensor,
    *,
    rows: Tensor | None = None,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
    precision: str = "fp32",
    augment: str = "none",
    state: dict | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
    due: Callable[[], bool] = lambda: False,
    name: str = "training",
) -> Iterator[dict]:
    """Train epoch after epoch, and give after each the state from which training can go on.

    Args:
        net: on the device that trains; its weights are drawn here, from `seed`.
        images, masks: uint8 (N,S,S), masks in {0,1}, on that device or on the CPU.
        rows: which frames are trained on; None for all.
        lr: learning rate of Adam, constant as reported.
        precision: a key of `models.PRECISIONS`, of the network's arithmetic alone.
        augment: one of `augment.AUGMENTS`.
        state: the last one of a training that was stopped.
        watch: called after each epoch; what it returns joins the epoch's record. A `Stopped` that
            it raises goes on after the state before it was given.
        due: asked after each step; where it says so, a state is given within the epoch, too.
        name: for the progress bar and for errors.

    Yields:
        epoch, weights, optimiser, scaler (of the loss, for fp16), history (one record an epoch:
        epoch, lr, train_loss and what `watch` saw), seconds spent on training alone, and within
        (None, or how far the next epoch has come).

    Raises:
        ValueError: unknown augment or precision.
        FloatingPointError: the loss stopped being a number; the state before it was given.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment: got {augment!r}, need one of {', '.join(AUGMENTS)}")
    initialise(net, seed)
    # The fused one takes exact square roots; the plain one's, of MKL, differ between processors.
    device = next(net.parameters()).device
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, fused=device.type != "mps")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    history, seconds, within = [], 0.0, None
    if state:
        net.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        history, seconds, within = (state[name] for name in ("history", "seconds", "within"))
        state = None  # it takes as much memory as all of this
    rows = torch.arange(len(images)) if rows is None else rows

    def so_far(place: Place | None = None) -> dict:
        return {
            "epoch": len(history), "history": history, "seconds": seconds,
            "weights": net.state_dict(), "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(), "within": place and place.pack(),
        }  # fmt: skip

    def check(place: Place) -> float:
        loss = float(place.loss) / len(rows)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"{name}: the loss became {loss} in epoch {epoch}, step {int(place.sound) + 1} of "
                f"{steps}, at lr {lr:g} in {precision}: lower lr (to a tenth, say), train in fp32, "
                "or look at the frames; the last good checkpoint is kept"
            )
        return loss

    steps = len(cut_batches(rows, batch_size))
    bar = tqdm(desc=name, total=epochs * steps, unit="batch", leave=False)
    bar.update(len(history) * steps + (within["steps"] if within else 0))
    silent = bar.disable
    with bar:
        for epoch in range(len(history) + 1, epochs + 1):
            began = time.perf_counter()
            place = Place.unpack(within, device, seed, epoch)
            within = None
            for _ in train_steps(
                net, optimiser, images, masks, rows, batch_size=batch_size, seed=seed, epoch=epoch,
                precision=precision, augment=augment, scaler=scaler, place=place,
            ):  # fmt: skip
                bar.update()
                if due():
                    check(place)
                    seconds += time.perf_counter() - began
                    yield so_far(place)
                    began = time.perf_counter()
            seconds += time.perf_counter() - began
            loss = check(place)
            try:
                seen = watch(net) if watch else {}
            except Stopped:
                yield so_far(place)
                raise
            history = [*history, {"epoch": epoch, "lr": lr, "train_loss": loss} | seen]
            yield so_far()
    if "ipykernel" in sys.modules and not silent:
        from IPython.display import clear_output

        clear_output()  # the bar was for the waiting; the executed notebook keeps none of it


@dataclass
class Place:
    """How far an epoch has come; on the device, so that nothing waits for it."""

    steps: int
    loss: Tensor  # (), summed over the frames of these steps
    sound: Tensor  # (), int: steps after which that sum was a finite number
    noise: torch.Generator  # of the augmentation

    @classmethod
    def unpack(cls, packed: dict | None, device: torch.device, seed: int, epoch: int) -> "Place":
        """Begin an epoch, or take up one that was packed."""
        noise = torch.Generator(device).manual_seed((seed + 1) * 1_000_033 - epoch)
        if packed is None:
            nothing = torch.zeros((), device=device)
            return cls(0, nothing, nothing.int(), noise)
        noise.set_state(packed["noise"])
        sums = (packed[name].to(device, copy=True) for name in ("loss", "sound"))
        return cls(packed["steps"], *sums, noise)

    def pack(self) -> dict:
        """Return it as tensors and numbers, for a checkpoint."""
        sums = {"loss": self.loss.clone(), "sound": self.sound.clone()}
        return {"steps": self.steps, "noise": self.noise.get_state()} | sums


def train_steps(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    masks: Tensor,
    rows: Tensor,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    precision: str = "fp32",
    augment: str = "none",
    scaler: torch.amp.GradScaler | None = None,
    place: Place | None = None,
) -> Iterator[Place]:
    """Show every frame of `rows` once, in an order drawn from seed and epoch.

    Args as of `fit`; `scaler` belongs to precision fp16, `place` is where the epoch is taken up.

    Yields:
        The place, after each step; one object that moves on.
    """
    net.train()
    device = next(net.parameters()).device
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    place = place or Place.unpack(None, device, seed, epoch)
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = rows[torch.randperm(len(rows), generator=draw)].to(images.device)
    for batch in cut_batches(order, batch_size)[place.steps :]:
        optimiser.zero_grad(set_to_none=True)
        image = to_input(gather(images, batch, device))  # (B,1,S,S)
        mask = gather(masks, batch, device).unsqueeze(1).float()  # (B,1,S,S)
        if augment == "standard":
            image, mask = augment_standard(image, mask, generator=place.noise)
        # what a network draws itself, dropout say: the same also where a training is taken up
        torch.manual_seed(zlib.crc32(f"{seed} {epoch} {place.steps}".encode()))
        with arithmetic(precision, device):
            logits = net(image)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), mask)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        place.loss += loss.detach() * len(batch)
        place.sound += torch.isfinite(place.loss)
        place.steps += 1
        yield place


def train_epoch(*args, **how) -> float:
    """Go through a whole epoch of `train_steps`; return the mean loss, weighed by frames."""
    *_, place = train_steps(*args, **how)
    return float(place.loss) / len(args[4])


def gather(frames: Tensor, batch: Tensor, device: torch.device) -> Tensor:
    """Return frames[batch] on the device; CUDA is not waited for."""
    part = frames[batch]  # (B,S,S)
    if part.device == device:
        return part
    if device.type == "cuda":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


def cut_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order of frames (N,) into batches, the last one smaller but never of one frame.

    Batch normalisation has no spread to work with in a batch of one: it joins its neighbours.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def keep_better(best: dict | None, state: dict, selection: str) -> dict:
    """Return what is kept so far: epoch, score and weights, by the Dice of the `selection` side.

    Under "last" it is always the newest epoch, and the weights stay in the state (None here).
    On "test" the Dice is the reported study's own, as was the choice.
    """
    if selection == "last":
        return {"epoch": state["epoch"], "score": None, "weights": None}
    measure = "test_dice_pooled" if selection == "test" else f"{selection}_dice"
    score = state["history"][-1][measure]
    if best is not None and best["score"] >= score:
        return best
    weights = {name: value.cpu().clone() for name, value in state["weights"].items()}
    return {"epoch": state["epoch"], "score": score, "weights": weights}
