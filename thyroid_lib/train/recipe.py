"""The training recipe, the same for every network: by default Adam on the cross-entropy of logits.

A training that goes on from a state ends in the same bits as one that never stopped: all random
numbers of an epoch depend on seed and epoch alone. Within it nothing waits for the device. Fused
Adam has exact square roots; the other one's differ between processors. What a stronger recipe adds
is in `optimiser` and `augment`.
"""

import time
from collections.abc import Callable, Iterator
from inspect import signature

import torch
from torch import Tensor, nn

from thyroid_lib.models import arithmetic, initialise, to_input
from thyroid_lib.models.pretrained import load_pretrained
from thyroid_lib.train import augment as augmentation
from thyroid_lib.train.graph import GraphedStep
from thyroid_lib.train.loss import cross_entropy, soft_dice_loss, to_mask
from thyroid_lib.train.optimiser import AveragedWeights, build_optimiser, one_cycle

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
    loss: str = "bce",
    schedule: str = "constant",
    weight_decay: float = 0.0,
    ema: float = 0.0,
    pretrained: str = "none",
    encoder_lr: float = 1.0,
    augment: str | dict[str, float] = "none",
    precision: str = "fp32",
    compile: bool = False,
    cuda_graph: bool = False,
    state: dict | None = None,
    after_step: Callable[[], None] = lambda: None,  # an error in it ends the training
) -> Iterator[dict]:
    """Train on rows of uint8 (N,S,S); yield after each epoch a state that it can go on from.

    In it `weights` are those of the last step, `averaged`, with `ema`, those of a moving average.
    """
    initialise(net, seed)
    if pretrained != "none" and not state:
        load_pretrained(net, pretrained)
    device = next(net.parameters()).device
    rates = {"lr": lr, "encoder_lr": encoder_lr, "weight_decay": weight_decay}
    optimiser = build_optimiser(net, **rates, graphed=cuda_graph)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # of the loss
    noise, total = torch.Generator(device), torch.zeros((), device=device)
    forward = torch.compile(net) if compile else net
    rows = torch.arange(len(images)) if rows is None else rows
    steps = len(cut_batches(rows, batch_size))  # in an epoch
    parts = {"weights": net, "optimiser": optimiser, "scaler": scaler}
    if schedule == "one-cycle":
        parts["schedule"] = one_cycle(optimiser, epochs * steps)
    if ema:
        parts["averaged"] = AveragedWeights(net, ema)
    done, seconds = 0, 0.0
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        done, seconds = state["epoch"], state["seconds"]

    def step(frames: Tensor, outlines: Tensor) -> None:  # uint8 (B,S,S)
        image, mask = to_input(frames), to_mask(outlines, net.out_channels)  # (B,1,S,S), (B,C,S,S)
        if augment != "none":
            image, mask = augmentation.augment(image, mask, augment, generator=noise)
        with arithmetic(precision, device):
            logits = forward(image)  # (B,C,S,S)
        error = cross_entropy(logits, mask)
        if loss == "bce+dice":
            error = error + soft_dice_loss(logits, mask)
        optimiser.zero_grad()
        scaler.scale(error).backward()
        scaler.step(optimiser)
        scaler.update()
        total.add_(error.detach() * len(frames))

    train_on = GraphedStep(step, noise) if cuda_graph else step
    for epoch in range(done + 1, epochs + 1):
        began = time.perf_counter()
        net.train()
        total.zero_()
        torch.manual_seed((seed + 2) * 1_000_037 - epoch)  # for dropout layers
        noise.manual_seed((seed + 1) * 1_000_033 - epoch)
        shuffle = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = rows[torch.randperm(len(rows), generator=shuffle)].to(images.device)
        for number, batch in enumerate(cut_batches(order, batch_size), (epoch - 1) * steps + 1):
            train_on(gather(images, batch, device), gather(masks, batch, device))
            if schedule == "one-cycle":
                parts["schedule"].step()
            if ema:
                parts["averaged"].update(number)
            after_step()
        mean_loss = float(total) / len(rows)
        seconds += time.perf_counter() - began
        last_lr = float(optimiser.param_groups[-1]["lr"])
        # frees the previous state
        state = {"epoch": epoch, "loss": mean_loss, "lr": last_lr, "seconds": seconds}
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
