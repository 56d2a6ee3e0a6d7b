"""The networks are what their papers say, and what is shared between them is shared."""

import contextlib
import math

import pytest
import torch
from torch import nn

from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.models import (
    MODELS,
    ReportedResidualUnit,
    ResidualUnit,
    SegNetReported,
    SegNetReportedNoReLU,
    build_model,
    count_parameters,
    initialise,
    multiply_adds,
)

FAITHFUL = ["unet", "segnet", "resunet"]
# parameters; multiply-adds of one frame, in all at width 64 and 256 px, at width 8 and 64 px;
# sizes must be multiples of the last number
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


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@every_model
def test_parameters_and_multiply_adds_are_the_known_ones(name):
    """The multiply-adds were counted layer by layer before torch's FlopCounterMode did it."""
    parameters, full_size, reduced, _ = FACTS[name]
    with torch.device("meta"):
        model = build_model(name)
        assert count_parameters(build_model(name, width=0)) == parameters
    assert count_parameters(model) == parameters
    assert multiply_adds(model, 256) == full_size
    assert multiply_adds(small(name, width=8), 64) == reduced


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
    with pytest.raises(ValueError, match=f"multiples of {step}, got 100x{step}") as error:
        small(name)(noise(1, 1, 100, step))
    assert f"{math.ceil(100 / step) * step}x{step}: change `size`" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 32, 32), (32, 32), (1, 3, 32, 32), (1, 1, 1, 32, 32)])
def test_wrong_dimensions_or_channels_say_what_is_needed(shape):
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\), got \("):
        small("unet")(noise(*shape))
    with pytest.raises(ValueError, match="multiples of"):
        small("unet")(noise(1, 1, 0, 32))


@every_model
def test_memory_format_changes_no_gradient(name):
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = small(name).to(memory_format=layout)
        model(noise(2, 1, 64, 64).to(memory_format=layout)).square().mean().backward()
        gradients.append([conv.weight.grad for conv in convolutions(model)])
    for plain, last in zip(*gradients, strict=True):
        # rounding flips a few ReLUs and pools; wrong memory would be wrong altogether
        assert (plain - last).norm() <= 0.05 * plain.norm()


@pytest.mark.parametrize("wrong", [-1, 2.0, "16", True])
@pytest.mark.parametrize("name", ["width", "in_channels", "out_channels"])
def test_a_count_below_one_or_an_unknown_name_is_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        build_model("unet", **{name: wrong})
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


@pytest.mark.parametrize(("name", "joins"), [("unet", 4), ("resunet", 3), ("resunet_reported", 3)])
def test_the_u_shaped_concatenate_once_a_level(name, joins, monkeypatch):
    cat, calls = torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda parts, dim: calls.append(dim) or cat(parts, dim))
    small(name).eval()(noise(1, 1, 16, 16))
    assert calls == [1] * joins


def test_segnet_mirrors_the_13_convolutions_of_vgg16():
    channels = [(c.in_channels, c.out_channels) for c in convolutions(small("segnet", width=1))]
    vgg16 = [1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8]
    assert [after for _, after in channels[:13]] == vgg16
    assert [before for before, _ in channels[13:]] == vgg16[::-1]
    assert len(channels) == 26


@pytest.mark.parametrize("name", FAITHFUL)
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
    for layer in unit.residual:
        if isinstance(layer, nn.Conv2d):
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
    widths = [conv.in_channels for conv in convolutions(units[4])]
    assert widths == [4 * 12, 4 * 4, 4 * 12]  # 768 -> 256 at the paper's width


def test_reported_residual_unit_rectifies_the_sum():
    images = noise(1, 4, 8, 8) - 0.5
    unit = shortcut_alone(ReportedResidualUnit(4, 4).eval())
    assert torch.equal(unit(images), images.clamp(min=0))
    assert isinstance(ReportedResidualUnit(4, 8).shortcut, nn.Conv2d)


def test_the_reported_segnet_cannot_go_below_one_half_and_without_its_last_relu_it_can():
    clipped, free = SegNetReported(width=8), SegNetReportedNoReLU(width=8)
    for model in (clipped, free):
        initialise(model, 3)
    images = noise(4, 1, 32, 32)
    logits = free(images)
    assert logits.min() < -0.1
    assert torch.equal(clipped(images), logits.clamp(min=0))
    prob = torch.sigmoid(clipped(images))
    assert (prob == 0.5).float().mean() > 0.2  # so `>=` would call these foreground
    assert (prob > 0.5).any()


@every_model
def test_initialise_repeats_and_leaves_the_global_random_state_alone(name):
    first, second, other = small(name), build_model(name, width=4), small(name, seed=1)
    for layer in second.modules():  # a used model: everything that training moves is moved
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.weight, 5)
            layer.running_mean.fill_(7)
            layer.num_batches_tracked.fill_(9)
    before = torch.get_rng_state()
    initialise(second, 0)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert not torch.equal(convolutions(first)[0].weight, convolutions(other)[0].weight)


@every_model
def test_all_models_start_within_pytorchs_default_bounds_with_the_same_first_weights(name):
    assert torch.equal(convolutions(small(name))[0].weight, convolutions(small("unet"))[0].weight)
    for conv in convolutions(small(name, width=16)):
        # PyTorch counts a transposed convolution's fan_in by its output channels
        channels = conv.weight.shape[1]
        bound = 1 / math.sqrt(channels * math.prod(conv.kernel_size))
        assert conv.weight.abs().max() <= bound
        assert conv.bias.abs().max() <= bound
        spread = conv.weight.std() * math.sqrt(3) / bound  # 1 for a uniform draw
        assert abs(spread - 1) < 4 / math.sqrt(2 * conv.weight.numel())


def test_multiply_adds_of_one_layer_by_hand():
    def cost(layer, size, channels=1):
        layer.in_channels = channels
        return multiply_adds(layer, size)

    # 5x5 output of a 3x3 convolution with stride 2 and padding 1 on 9x9; 1 -> 6 channels
    assert cost(nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1)), 9) == 25 * 9 * 6
    # each of 9x9 input pixels is spread over 2x2 outputs in 6 channels
    assert cost(nn.Sequential(nn.ConvTranspose2d(1, 6, 2, stride=2)), 9) == 81 * 4 * 6
    # two groups: each of 6 outputs sees one of the 2 channels
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 6, 3, padding=1, groups=2))
    assert cost(layers, 4) == 16 * 2 + 16 * 9 * 6
    # 4 to 5 features at each pixel of a row of 4
    assert cost(nn.Sequential(nn.Linear(4, 5)), 4, channels=3) == 3 * 4 * 4 * 5


def test_multiply_adds_leave_the_model_alone_and_refuse_a_wrong_size():
    model = small("unet").train()  # at 16 px its bottom is one pixel, too few for batch statistics
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert 4 * multiply_adds(model, 16) == multiply_adds(model, 32)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="128x128"):
        multiply_adds(small("segnet"), 100)


def four_frames():
    """Four bright smooth ellipses over a slow wave: images and masks float32 (4, 1, 32, 32)."""
    k = torch.arange(4.0).view(4, 1, 1, 1)
    row, column = torch.arange(32.0).view(32, 1), torch.arange(32.0)
    level = ((row - 11 - 3 * k) / (6 + k)) ** 2 + ((column - 21 + 3 * k) / (9 - k / 2)) ** 2
    wave = 0.1 * torch.sin(0.3 * column + k) * torch.cos(0.2 * row)
    return 0.2 + 0.5 * torch.sigmoid(3 * (1 - level)) + wave, (level < 1).float()


@pytest.mark.study
@pytest.mark.parametrize("name", FAITHFUL)
def test_a_faithful_model_learns_four_frames_by_heart(name):
    image, mask = four_frames()
    model = small(name, width=8)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1, 301):
        loss = nn.functional.binary_cross_entropy_with_logits(model.train()(image), mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            with torch.no_grad():
                pred = model.eval()(image) > 0
            if dice(pred.numpy(), mask.bool().numpy()) > 0.98:
                return
    pytest.fail("its Dice stayed at 0.98 or below")
