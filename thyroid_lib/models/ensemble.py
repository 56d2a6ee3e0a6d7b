"""Ensemble: one network that gives the mean logits of several, or of a frame and its mirror."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thyroid_lib.models.blocks import Network


class Ensemble(Network):
    """The mean of the members' logits; with `flip` also over each image and its mirror image."""

    def __init__(self, members: Sequence[Network], flip: bool = False):
        first = members[0]
        super().__init__(first.in_channels, first.out_channels, first.width)
        self.divisor = math.lcm(*(member.divisor for member in members))
        self.members, self.flip = nn.ModuleList(members), flip

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        logits = [member(images) for member in self.members]
        if self.flip:
            mirrored = images.flip(3)
            logits += [member(mirrored).flip(3) for member in self.members]
        return torch.stack(logits).mean(0)


def without_flip(network: nn.Module) -> nn.Module:
    """Return what a network's `flip` averages: its single member, or the ensemble without it."""
    if not getattr(network, "flip", False) or not isinstance(network, Ensemble):
        return network
    members = list(network.members)
    return members[0] if len(members) == 1 else Ensemble(members).eval()
