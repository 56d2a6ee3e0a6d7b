"""The training recipe, the same for every network: Adam on the cross-entropy of logits.

`fit` is the loop over epochs, `train_epoch` the loop over batches. A training that goes on from a
state ends in the same bits as one that never stopped (on a CPU with as many threads): all random
numbers depend on seed, epoch and step alone. Within an epoch nothing waits for the device.
"""

import time
import zlib
from collections.abc import Callable, Iterator
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from thyroid_lib.models import arithmetic, initialise, to_input
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
    seed: int = 0,
    epochs: int = 25,
    lr: float = 1e-4,
    precision: str = "fp32",
    state: dict | None = None,
    **how,
) -> Iterator[dict]:
    """Train epoch after epoch; yield after each the state that training can go on from.

    Args:
        net: on the device that trains; its initial weights are drawn here, from `seed`.
        images, masks: uint8 (N,S,S), masks in {0,1}, on that device or on the CPU.
        rows: indices of the frames to train on; None for all.
        precision: a key of `models.PRECISIONS`, of the network's forward pass.
        state: the last one of a training that was stopped.
        how: further arguments of `train_epoch`.
    """
    initialise(net, seed)
    device = next(net.parameters()).device
    # Fused Adam takes exact square roots; those of the other one differ between processors.
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, fused=device.type != "mps")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    rows = torch.arange(len(images)) if rows is None else rows
    done, seconds = 0, 0.0
    if state:
        net.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        done, seconds = state["epoch"], state["seconds"]
        state = None  # frees a copy of weights and moments
    for epoch in range(done + 1, epochs + 1):
        began = time.perf_counter()
        loss = train_epoch(
            net, optimiser, images, masks, rows, seed=seed, epoch=epoch, precision=precision,
            scaler=scaler, **how,
        )  # fmt: skip
        seconds += time.perf_counter() - began
        yield {
            "epoch": epoch, "loss": loss, "seconds": seconds, "weights": net.state_dict(),
            "optimiser": optimiser.state_dict(), "scaler": scaler.state_dict(),
        }  # fmt: skip


def train_epoch(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    masks: Tensor,
    rows: Tensor,
    *,
    seed: int,
    epoch: int,
    batch_size: int = 16,
    augment: str = "none",
    precision: str = "fp32",
    scaler: torch.amp.GradScaler | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Train once on every frame of `rows`; return the mean loss. An error in after_step ends it."""
    net.train()
    device = next(net.parameters()).device
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    shuffle = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    noise = torch.Generator(device).manual_seed((seed + 1) * 1_000_033 - epoch)
    order = rows[torch.randperm(len(rows), generator=shuffle)].to(images.device)
    total = torch.zeros((), device=device)
    for step, batch in enumerate(cut_batches(order, batch_size)):
        torch.manual_seed(zlib.crc32(f"{seed} {epoch} {step}".encode()))  # for dropout layers
        image = to_input(gather(images, batch, device))  # (B,1,S,S)
        mask = gather(masks, batch, device).unsqueeze(1).float()  # (B,1,S,S)
        if augment == "standard":
            image, mask = augment_standard(image, mask, generator=noise)
        with arithmetic(precision, device):
            logits = net(image)  # (B,1,S,S)
        loss = binary_cross_entropy_with_logits(logits.float(), mask)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        total += loss.detach() * len(batch)
        after_step()
    return float(total) / len(rows)


# The recipe's settings and their defaults: all arguments of the two loops that are plain values.
RECIPE = {
    name: each.default
    for loop in (train_epoch, fit)
    for name, each in signature(loop).parameters.items()
    if isinstance(each.default, str | float | int)
}


def gather(frames: Tensor, batch: Tensor, device: torch.device) -> Tensor:
    """Return frames[batch] on the device, without waiting for CUDA."""
    part = frames[batch]  # (B,S,S)
    if device.type == "cuda" and part.device != device:
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


def cut_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order of frames (N,) into batches, none of one frame: batch norm needs more."""
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
