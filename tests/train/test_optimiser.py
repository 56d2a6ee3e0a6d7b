"""What a stronger recipe is made of, against values by hand and what anyone would write."""

import math

import pytest
import torch
from torch import nn

from thyroid_lib.train.loss import soft_dice_loss
from thyroid_lib.train.optimiser import AveragedWeights, build_optimiser, one_cycle

HOW = {"lr": 0.1, "encoder_lr": 1.0, "weight_decay": 0.0, "graphed": False}


class Encoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def test_soft_dice_by_hand_is_a_mean_over_frames_in_float32():
    masks = torch.tensor([[[[1.0, 1, 0, 0]]], [[[0.0, 0, 0, 0]]]])
    sure = torch.tensor([[[[99.0, 99, -99, -99]]], [[[-99.0] * 4]]])
    assert soft_dice_loss(sure, masks).item() == 0  # an empty mask too
    half = torch.zeros_like(masks)  # p = 0.5: 1 - (2 + 1) / (2 + 2 + 1) and 1 - 1 / (2 + 1)
    assert soft_dice_loss(half, masks).item() == pytest.approx((0.4 + 2 / 3) / 2)
    assert soft_dice_loss(half.bfloat16(), masks).dtype == torch.float32
    assert soft_dice_loss(-sure, masks).item() == pytest.approx((1 - 1 / 5 + 1 - 1 / 5) / 2)


def test_rates_and_decay_are_those_of_their_weights():
    net = Encoded()
    plain = build_optimiser(net, **HOW)
    assert (type(plain), len(plain.param_groups)) == (torch.optim.Adam, 1)
    parted = build_optimiser(net, **HOW | {"encoder_lr": 0.25, "weight_decay": 0.5})
    assert type(parted) is torch.optim.AdamW
    rate_of = {id(one): group["lr"] for group in parted.param_groups for one in group["params"]}
    assert [rate_of[id(one)] for one in net.encoder.parameters()] == [0.025] * 2
    assert [rate_of[id(one)] for one in net.head.parameters()] == [0.1] * 2
    assert {group["weight_decay"] for group in parted.param_groups} == {0.5}
    without = build_optimiser(nn.Linear(1, 1), **HOW | {"encoder_lr": 0.25})
    assert [group["lr"] for group in without.param_groups] == [0.1]


def test_one_cycle_rises_and_falls_along_cosines():
    optimiser = build_optimiser(Encoded(), **HOW | {"encoder_lr": 0.5})
    plan, rates = one_cycle(optimiser, 20), []
    for _ in range(20):
        rates.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        plan.step()

    def expected(step: int) -> float:
        low, high, least, top = 0.1 / 25, 0.1, 0.1 / 25 / 1e4, 0.3 * 20 - 1
        if step <= top:
            return high + (low - high) * (1 + math.cos(math.pi * step / top)) / 2
        return least + (high - least) * (1 + math.cos(math.pi * (step - top) / (19 - top))) / 2

    assert [rate for _, rate in rates] == pytest.approx([expected(step) for step in range(20)])
    assert [slow for slow, _ in rates] == pytest.approx([rate / 2 for _, rate in rates])
    assert max(rate for _, rate in rates) == 0.1


def test_in_a_graph_rates_are_tensors_that_a_schedule_and_a_kept_state_fill():
    """The graph reads the same tensors at each replay: they must never be replaced by numbers."""
    net = Encoded()
    optimiser = build_optimiser(net, **HOW | {"encoder_lr": 0.5, "graphed": True})
    plan, tensors = one_cycle(optimiser, 20), [group["lr"] for group in optimiser.param_groups]
    before = [float(each) for each in tensors]
    for _ in range(3):
        optimiser.step()
        plan.step()
    assert [group["lr"] for group in optimiser.param_groups] == tensors  # by value, and the same
    assert all(a is g["lr"] for a, g in zip(tensors, optimiser.param_groups, strict=True))
    assert all(float(each) > one for each, one in zip(tensors, before, strict=True))
    kept = optimiser.state_dict()
    other = build_optimiser(net, **HOW | {"encoder_lr": 0.5, "graphed": True})
    one_cycle(other, 20)
    other.load_state_dict(kept)
    assert all(isinstance(group["lr"], torch.Tensor) for group in other.param_groups)
    assert [float(group["lr"]) for group in other.param_groups] == [float(x) for x in tensors]


def test_averaged_weights_are_the_weighted_mean_of_all_steps_and_batch_norm_is_in_it():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averaged, seen, decay = AveragedWeights(net, 0.9), [], 0.9
    for step in range(1, 6):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(torch.tensor(step))
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        averaged.update(step)
        weights = torch.tensor([decay ** (step - each) for each in range(1, step + 1)])
        for name, value in averaged.state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert torch.equal(value, seen[-1][name])
                continue
            stack = torch.stack([one[name] for one in seen], -1)
            torch.testing.assert_close(value, (stack * weights).sum(-1) / weights.sum())
    other = AveragedWeights(net, 0.9)
    other.load_state_dict(averaged.state_dict())
    assert all(map(torch.equal, other.state_dict().values(), averaged.state_dict().values()))
