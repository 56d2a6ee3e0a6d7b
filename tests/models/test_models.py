"""The networks are what their papers say, and what is shared between them is shared."""

import contextlib
import math

import pytest
import torch
from torch import nn

from thyroid_lib.models import (
    MODELS,
    ReportedResidualUnit,
    ResidualUnit,
    build_model,
    count_parameters,
    initialise,
    multiply_adds,
)

# parameters; multiply-adds of one frame, in all at width 64 and 256 px, at width 8 and 64 px,
# counted layer by layer before torch's FlopCounterMode did it; sizes must be multiples of the last
FACTS = {
    "unet": (31_042_369, 48_091_889_664, 47_251_456, 16),
    "segnet": (29_442_433, 39_938_162_688, 39_518_208, 32),
    "resunet": (8_219_713, 45_143_293_952, 44_400_640, 8),
    "segnet_reported": (740_355, 4_907_335_680, 5_308_416, 8),
    "resunet_reported": (8_047_361, 38_700_843_008, 38_109_184, 8),
    "segnet_reported_no_relu": (740_355, 4_907_335_680, 5_308_416, 8),
}
every_model = pytest.mark.parametrize("name", list(MODELS))


def small(name, width=4, seed=0):
    model = build_model(name, width=width)
    initialise(model, seed)
    return model


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@every_model
def test_parameters_and_multiply_adds_are_the_known_ones(name):
    parameters, full_size, reduced, _ = FACTS[name]
    with torch.device("meta"):
        model = build_model(name)
        assert count_parameters(build_model(name, width=0)) == parameters
    assert count_parameters(model) == parameters
    assert multiply_adds(model, 256) == full_size
    assert multiply_adds(small(name, width=8), 64) == reduced


def test_multiply_adds_by_hand_leave_the_model_alone():
    layer = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1))
    layer.in_channels = 1
    assert multiply_adds(layer, 9) == 25 * 9 * 6  # 5x5 outputs of 3x3 to 6 channels
    model = small("unet").train()  # at 16 px its bottom is one pixel, too few for batch statistics
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert 4 * multiply_adds(model, 16) == multiply_adds(model, 32)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every_model
def test_width_scales_every_channel_count_and_every_convolution_has_a_bias(name):
    narrow, wide = convolutions(small(name, width=4)), convolutions(small(name, width=12))
    for a, b in zip(narrow, wide, strict=True):
        assert b.in_channels == (1 if a.in_channels == 1 else 3 * a.in_channels)
        assert b.out_channels == (1 if a.out_channels == 1 else 3 * a.out_channels)
        assert a.bias is not None
    model = build_model(name, in_channels=3, out_channels=2, width=2)
    assert model(noise(2, 3, 32, 64)).shape == (2, 2, 32, 64)


@every_model
def test_divisor_is_the_smallest_step_in_size(name):
    model, step = small(name).eval(), FACTS[name][-1]
    assert model.divisor == step
    assert model(noise(1, 1, step, 3 * step)).shape == (1, 1, step, 3 * step)
    model.check = lambda images: None  # half a step really does not fit, or it halves unevenly
    with contextlib.suppress(RuntimeError, ValueError):
        assert model(noise(1, 1, 3 * step // 2, step)).shape != (1, 1, 3 * step // 2, step)
    padded = math.ceil(100 / step) * step
    said = rf"multiples of {step}, got 100x{step};.*{padded}x{step}: change `size`"
    with pytest.raises(ValueError, match=said):
        small(name)(noise(1, 1, 100, step))


def test_wrong_shapes_counts_and_names_say_what_is_needed():
    for shape in ((1, 32, 32), (1, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"\(N, 1, H, W\), got \("):
            small("unet")(noise(*shape))
    for wrong in (-1, 2.0, "16", True):
        with pytest.raises(ValueError, match="width must be a whole number of at least 1"):
            build_model("unet", width=wrong)
    with pytest.raises(ValueError, match=f"unknown model 'UNet'; .*{', '.join(MODELS)}"):
        build_model("UNet")


@pytest.mark.parametrize(("name", "pools"), [("segnet", 5), ("segnet_reported", 3)])
def test_segnet_passes_indices_and_never_concatenates(name, pools, monkeypatch):
    for function in ("cat", "concat", "concatenate", "add", "stack"):
        monkeypatch.setattr(torch, function, None)
    model, pooled, unpooled = small(name).eval(), [], []
    model.pool.register_forward_hook(lambda _, __, output: pooled.append(output[1]))
    model.unpool.register_forward_hook(lambda _, inputs, __: unpooled.append(inputs[1]))
    model(noise(1, 1, 64, 64))
    assert len(pooled) == pools
    assert all(a is b for a, b in zip(reversed(pooled), unpooled, strict=True))


@pytest.mark.parametrize("name", ["unet", "segnet", "resunet"])
def test_the_last_layer_of_a_faithful_model_is_a_linear_convolution(name):
    model = small(name)
    assert list(model.modules())[-1] is model.head
    logits = model(noise(2, 1, 32, 32))
    model.head.weight.data.neg_()
    model.head.bias.data.neg_()
    # batch statistics do not depend on the head: negated weights negate the logits
    assert torch.equal(model(noise(2, 1, 32, 32)), -logits)
    assert logits.any()


def shortcut_alone(unit):
    for layer in convolutions(unit.residual):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unit


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_residual_unit_without_its_convolutions_is_its_shortcut(first, stride):
    unit, images = ResidualUnit(3, 5, stride=stride, first=first).train(), noise(2, 3, 8, 8)
    one_by_one = unit.shortcut
    shortcut = nn.functional.conv2d(images, one_by_one.weight, one_by_one.bias, stride=stride)
    assert not torch.allclose(unit(images), shortcut, atol=1e-3)
    torch.testing.assert_close(shortcut_alone(unit)(images), shortcut)


def test_residual_units_are_pre_activated_except_that_the_first_starts_with_its_convolution():
    units = [m for m in small("resunet").modules() if isinstance(m, ResidualUnit)]
    kinds = [[type(layer).__name__ for layer in unit.residual] for unit in units]
    full = ["BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert kinds == [full[2:]] + [full] * 6
    assert [convolutions(unit)[0].stride[0] for unit in units] == [1, 2, 2, 2, 1, 1, 1]
    assert all(unit.shortcut.kernel_size == (1, 1) for unit in units)


def test_the_reported_networks_rectify_their_sums_and_the_segnet_its_logits():
    images = noise(1, 4, 8, 8) - 0.5
    unit = shortcut_alone(ReportedResidualUnit(4, 4).eval())
    assert torch.equal(unit(images), images.clamp(min=0))
    assert isinstance(ReportedResidualUnit(4, 8).shortcut, nn.Conv2d)
    clipped, free = (
        small(f"segnet_reported{x}", 8, 3)(noise(4, 1, 32, 32)) for x in ("", "_no_relu")
    )
    assert free.min() < -0.1
    assert torch.equal(clipped, free.clamp(min=0))
    assert (torch.sigmoid(clipped) == 0.5).float().mean() > 0.2  # `>=` would call it foreground


@every_model
def test_initialise_repeats_and_leaves_the_global_random_state_alone(name):
    first, second, other = small(name), build_model(name, width=4), small(name, seed=1)
    for value in second.state_dict().values():  # a used model
        value.fill_(7)
    before = torch.get_rng_state()
    initialise(second, 0)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert not torch.equal(convolutions(first)[0].weight, convolutions(other)[0].weight)
