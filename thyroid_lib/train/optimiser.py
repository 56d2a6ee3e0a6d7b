"""Parts of a stronger recipe: decoupled weight decay, one-cycle, averaged weights.

All stay off by default, where `recipe.fit` is Adam on the cross-entropy, as reported. None of them
waits for the device within a step; a state of each lets a training go on to the same bits.
"""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn


def build_optimiser(
    net: nn.Module, *, lr: float, encoder_lr: float, weight_decay: float, graphed: bool
) -> torch.optim.Adam:
    """Return Adam, or AdamW where weights decay (Loshchilov & Hutter, ICLR 2019).

    A network's `encoder`, if it has one, gets the share `encoder_lr` of the learning rate. In a
    CUDA graph rates are tensors: a number would be recorded, and not change with the schedule.
    """
    device, groups = next(net.parameters()).device, [{"params": list(net.parameters()), "lr": lr}]
    if encoder_lr != 1 and hasattr(net, "encoder"):
        slow = list(net.encoder.parameters())
        rest = [one for one in net.parameters() if not any(one is other for other in slow)]
        groups = [{"params": slow, "lr": encoder_lr * lr}, {"params": rest, "lr": lr}]
    how = {"fused": device.type != "mps", "capturable": graphed}
    kind = torch.optim.Adam
    if weight_decay:
        kind, how = torch.optim.AdamW, how | {"weight_decay": weight_decay}
    optimiser = kind(groups, **how)
    if graphed:
        _rates_to(device, optimiser)
        optimiser.register_load_state_dict_post_hook(lambda each: _rates_to(device, each))
    return optimiser


def _rates_to(device: torch.device, optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def one_cycle(optimiser: torch.optim.Optimizer, steps: int) -> OneCycleLR:
    """Raise each rate from 1/25 of its value to it in 30 % of the steps, then let it fall to 0.

    Both along a cosine. Source: Smith & Topin, arXiv 1708.07120, with PyTorch's numbers.
    """
    highest = [float(group["lr"]) for group in optimiser.param_groups]
    return OneCycleLR(optimiser, highest, total_steps=steps, cycle_momentum=False)


class AveragedWeights:
    """Exponential moving average, over the steps, of all weights and batch norm statistics.

    After step t it is Σ dᵗ⁻ˢ·wₛ / Σ dᵗ⁻ˢ over s = 1 … t: as in Adam's moments, nothing is left of
    the start. torch's AveragedModel would wait for the device in each step.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay, self.current = decay, net.state_dict()  # they change in place
        self.kept = {name: value.clone() for name, value in self.current.items()}
        self.floats = [name for name, value in self.kept.items() if value.is_floating_point()]

    def update(self, step: int) -> None:
        """Take the weights after this step of the training, counted from 1, into the average."""
        share = (1 - self.decay) / (1 - self.decay**step)
        kept, new = ([part[name] for name in self.floats] for part in (self.kept, self.current))
        get_ema_multi_avg_fn(1 - share)(kept, new, None)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the network's `load_state_dict` takes; counters are not averaged."""
        for name in self.kept.keys() - {*self.floats}:
            self.kept[name].copy_(self.current[name])
        return self.kept

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.kept.items():
            value.copy_(state[name])
