"""Run a trained network over the frames of a store: logits, probabilities, masks, scores."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thyroid_lib.data import frames
from thyroid_lib.data.classes import class_names
from thyroid_lib.data.label_maps import class_probs, foreground, restore_labels
from thyroid_lib.data.store import Store
from thyroid_lib.evaluate.confidence import expected_dice
from thyroid_lib.evaluate.imported import segment_imported
from thyroid_lib.evaluate.scores import Scores, score_maps
from thyroid_lib.models import arithmetic, build_model, checkpoint, to_input, user_networks
from thyroid_lib.models.ensemble import Ensemble


@torch.inference_mode()
def predict_logits(
    model: torch.nn.Module,
    images: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    precision: str = "fp32",
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Run the network over rows (None: all) of stored images, uint8 (N,S,S), batch by batch.

    Yields rows (B,) and logits, float32 (B,1,S,S) on the device.
    """
    device = torch.device(device)
    model = model.to(device).eval()
    rows = np.arange(len(images)) if rows is None else rows
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = torch.from_numpy(np.asarray(images[part])).to(device)  # (B,S,S)
        with arithmetic(precision, device):
            logits = model(to_input(batch))  # (B,1,S,S)
        yield part, logits.float()


def predict_prob(model: torch.nn.Module, images: np.ndarray, **how) -> np.ndarray:
    """Return `to_prob` of these images' logits, float32 (N,S,S); `how`: see `predict_logits`."""
    return np.concatenate([to_prob(logits) for _, logits in predict_logits(model, images, **how)])


def to_prob(logits: Tensor) -> np.ndarray:
    """Turn logits (B,1,S,S) into probabilities, NumPy (B,S,S); of K classes into (B,K,S,S)."""
    if logits.shape[1] == 1:
        return logits.sigmoid()[:, 0].cpu().numpy()
    return class_probs(logits.cpu().numpy())


def label_tensor(logits: Tensor) -> Tensor:
    """Turn logits (B,C,S,S) into label maps, uint8 (B,S,S), as `label_maps.to_labels` does."""
    if logits.shape[1] == 1:
        return frames.threshold_prob(logits.sigmoid(), 0.5)[:, 0].byte()
    prob = logits.softmax(1)[:, 1:]
    return ((prob.argmax(1) + 1) * frames.threshold_prob(prob.sum(1), 0.5)).byte()


def count_outputs(classes: Sequence[str]) -> int:
    """Return how many logits a pixel has: one for one class, K+1 for K."""
    return len(classes) + 1 if len(classes) > 1 else 1


def restore_model(
    name: str, width: int, weights: dict, *, flip: bool = False, members: Sequence[dict] = (),
    outputs: int = 1,
) -> torch.nn.Module:  # fmt: skip
    """Build a trained network for prediction, on the CPU.

    `flip` is a run's `flip_test`; `members` are those of an ensemble: model and width of each;
    `outputs`: see `count_outputs`.
    """
    if members:
        parts = [build_model(x["model"], out_channels=outputs, width=x["width"]) for x in members]
        model = Ensemble(parts, flip=flip)
        model.load_state_dict(weights)
    else:
        model = build_model(name, out_channels=outputs, width=width)
        model.load_state_dict(weights)
        model = Ensemble([model], flip=True) if flip else model
    # another memory layout changes the last bits of the scores
    return model.to(memory_format=torch.channels_last).eval()


def load_model(path: str | Path, device: str = "cpu") -> tuple[torch.nn.Module, dict]:
    """Read a finished run's `model.pt`: the model in evaluation mode, and its metadata.

    FileNotFoundError, ValueError: nothing there, not a model of this project, or its file in
    architectures/ has changed or is gone.
    """
    path, need = Path(path), "give the model.pt of a finished run"
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}: {need}")
    try:
        state = checkpoint.read(path)
        weights, meta = state["weights"], state["meta"]
        for key in ("model", "width", "size", "resize", "threshold"):
            meta[key]
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("its weights are no finite numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a model of this project ({error}): {need}") from error
    members = meta.get("members", ())
    for each in members or [meta]:
        name, trained = each["model"], each.get("architecture_fingerprint", "")
        if trained and user_networks.fingerprint(name) not in (trained, ""):
            what = f"{path.name} was trained with another architectures/{name}.py"
            raise ValueError(f"{what}: put that file back, or train again")
    how = {"flip": meta.get("flip_test", False), "members": members}
    how["outputs"] = count_outputs(class_names(meta))
    return restore_model(meta["model"], meta["width"], weights, **how).to(device), meta


def segment_case(run: str | Path, store: Store, case_id: str) -> np.ndarray:
    """Return a finished run's mask of one case of a store, bool (H,W), or its label map."""
    if (Path(run) / "imported.json").is_file():
        return segment_imported(Path(run), case_id)
    model, meta = load_model(Path(run) / "model.pt")
    row = store.index["case_id"].tolist().index(case_id)
    [prob] = predict_prob(model, store.images[[row]])
    height, width = (int(store.index[side][row]) for side in ("height", "width"))
    how = {"resize": store.settings["resize"], "threshold": meta["threshold"]}
    restore = frames.restore_mask if prob.ndim == 2 else restore_labels
    return restore(prob, height, width, **how)[1]


def score_rows(
    model, store: Store, rows: np.ndarray, *, device: str = "cpu", batch_size: int = 16,
    threshold: float = 0.5, temperature: float | None = None, **how,
) -> Scores:  # fmt: skip
    """Predict these rows of a store and score them; `how`: see `scores.score_maps`.

    The cases' column `confidence` is the app's before its line: `expected_dice` of the stored
    square, its logits divided by the temperature (None: 1).
    """
    confidences: list[float] = []
    annotated = store.annotated  # read once: it parses the index

    def predict() -> Iterator[tuple[np.ndarray, list[np.ndarray], np.ndarray]]:
        running = {"rows": rows, "device": device, "batch_size": batch_size}
        for part, logits in predict_logits(model, store.images, **running):
            prob = to_prob(logits)
            tempered = foreground(to_prob(logits / temperature) if temperature else prob)
            masks = frames.threshold_prob(foreground(prob), threshold)
            confidences.extend(map(expected_dice, tempered, masks))
            yield prob, [store.reference(row) for row in part], annotated[part]

    how |= {"resize": store.settings["resize"], "threshold": threshold}
    how |= {"task": store.task, "classes": store.classes}
    scored = score_maps(store.index.iloc[rows], predict(), **how)
    return replace(scored, cases=scored.cases.assign(confidence=confidences))
