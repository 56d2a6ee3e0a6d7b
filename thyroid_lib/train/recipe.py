"""The training recipe, the same for every network: Adam on the cross-entropy of logits.

A training that goes on from a state ends in the same bits as one that never stopped: all random
numbers of an epoch depend on seed and epoch alone. Within it nothing waits for the device. Fused
Adam has exact square roots; the other one's differ between processors.
"""

import time
from collections.abc import Callable, Iterator
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from thyroid_lib.models import arithmetic, initialise, to_input
from thyroid_lib.train.augment import augment as augment_standard
from thyroid_lib.train.graph import GraphedStep

# Raise by one with every change that moves a bit of any weight, in networks, split, augmentation or
# here: runs of another version are trained again. tests/train/test_versions.py fails otherwise.
TRAINING_VERSION = 2


def fit(
    net: nn.Module,
    images: Tensor,
    masks: Tensor,
    rows: Tensor | None = None,
    *,
    seed: int = 0,
    epochs: int = 25,
    batch_size: int = 16,
    lr: float = 1e-4,
    augment: str = "none",
    precision: str = "fp32",
    compile: bool = False,
    cuda_graph: bool = False,
    state: dict | None = None,
    after_step: Callable[[], None] = lambda: None,  # an error in it ends the training
) -> Iterator[dict]:
    """Train on rows of uint8 (N,S,S); yield after each epoch a state that it can go on from."""
    initialise(net, seed)
    device = next(net.parameters()).device
    how = {"fused": device.type != "mps", "capturable": cuda_graph}
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, **how)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # of the loss
    noise, total = torch.Generator(device), torch.zeros((), device=device)
    forward = torch.compile(net) if compile else net
    rows = torch.arange(len(images)) if rows is None else rows
    parts = {"weights": net, "optimiser": optimiser, "scaler": scaler}
    done, seconds = 0, 0.0
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        done, seconds = state["epoch"], state["seconds"]

    def step(frames: Tensor, outlines: Tensor) -> None:  # uint8 (B,S,S)
        image, mask = to_input(frames), outlines.unsqueeze(1).float()  # (B,1,S,S)
        if augment == "standard":
            image, mask = augment_standard(image, mask, generator=noise)
        with arithmetic(precision, device):
            logits = forward(image)  # (B,1,S,S)
        loss = binary_cross_entropy_with_logits(logits.float(), mask)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        total.add_(loss.detach() * len(frames))

    train_on = GraphedStep(step, noise) if cuda_graph else step
    for epoch in range(done + 1, epochs + 1):
        began = time.perf_counter()
        net.train()
        total.zero_()
        torch.manual_seed((seed + 2) * 1_000_037 - epoch)  # for dropout layers
        noise.manual_seed((seed + 1) * 1_000_033 - epoch)
        shuffle = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = rows[torch.randperm(len(rows), generator=shuffle)].to(images.device)
        for batch in cut_batches(order, batch_size):
            train_on(gather(images, batch, device), gather(masks, batch, device))
            after_step()
        loss = float(total) / len(rows)
        seconds += time.perf_counter() - began
        state = {"epoch": epoch, "loss": loss, "seconds": seconds}  # frees the previous state
        yield state | {name: part.state_dict() for name, part in parts.items()}


# The recipe's settings and their defaults: the arguments of `fit` that are plain values.
RECIPE = {
    name: each.default
    for name, each in signature(fit).parameters.items()
    if isinstance(each.default, str | float | int)
}


def gather(frames: Tensor, batch: Tensor, device: torch.device) -> Tensor:
    """Return frames[batch], (B,S,S), on the device, without waiting for CUDA."""
    part = frames[batch]
    if device.type == "cuda" and part.device != device:
        part = part.pin_memory()
    return part.to(device, non_blocking=device.type == "cuda")


def cut_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order of frames (N,) into batches, none of one frame: batch norm needs more."""
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
