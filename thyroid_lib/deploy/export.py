"""From trained runs to a release folder that needs no torch: ONNX, model card, checksums.

python -m thyroid_lib.deploy.export --study results/demo --out results/demo/deploy

out/<model>.onnx        one for every faithful model; each describes itself in its metadata
out/release.json        which one was selected, which files there are, their SHA-256
"""

import argparse
import hashlib
import io
import json
from pathlib import Path

import onnx
import torch

from thyroid_lib import write_file
from thyroid_lib.deploy.predictor import METADATA, describe_frames
from thyroid_lib.predict import load_model
from thyroid_lib.splits import split_cases
from thyroid_lib.store import open_store

OPSET = 18


def to_onnx(model: torch.nn.Module, about: dict) -> bytes:
    """Export a network by torch's dynamo exporter; its metadata holds `about` and nothing else."""
    size = about["size"]
    program = torch.onnx.export(
        model.to(memory_format=torch.contiguous_format).eval(),
        (torch.zeros(2, 1, size, size),),
        input_names=["image"], output_names=["logits"], opset_version=OPSET, dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
    )  # fmt: skip
    file = io.BytesIO()
    program.save(file)
    proto = onnx.load_from_string(file.getvalue())
    del proto.metadata_props[:]
    for node in proto.graph.node:  # the exporter notes where the code lay
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(about, sort_keys=True)})
    onnx.checker.check_model(proto)
    return proto.SerializeToString(deterministic=True)


def release(study: Path, out: Path) -> None:
    selected = json.loads((study / "compare" / "selected.json").read_text("utf-8"))
    store = open_store(study / "store")
    files, sums = {}, {}
    for folder in sorted((study / "runs").glob(f"*-{selected['protocol']}-fold0-seed0")):
        model, meta = load_model(folder / "model.pt")
        run = json.loads((folder / "run.json").read_text("utf-8"))
        labels = split_cases(
            store.index, **{key: meta[key] for key in ("protocol", "fold", "folds", "val_share")}
        )
        about = {
            key: meta[key] for key in ("model", "width", "size", "resize", "threshold", "run_id")
        }
        about |= {"temperature": run["temperature"], "confidence_low": 0.5, "precision": "fp32"}
        about["quality"] = describe_frames(
            store.images[labels == "train"], store.images[labels == "val"]
        )
        content = to_onnx(model, about)
        name = f"{about['model']}.onnx"
        write_file(out / name, content)
        files[about["model"]] = {"fp32": name}
        sums[name] = hashlib.sha256(content).hexdigest()
    about = {"selected": selected["model"], "models": files, "files": sums}
    write_file(out / "release.json", json.dumps(about, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--study", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    release(asked.study, asked.out)
