"""The real nnU-Net trains on an exported study, and its predictions come back as a row.

Its environment is its own: THYROID_NNUNET names the folder of its programs (docs/nnunet.md).
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_study

from thyroid_lib.compare import tables
from thyroid_lib.data import export_nnunet
from thyroid_lib.data.store import build_store, load_cases
from thyroid_lib.evaluate import imported
from thyroid_lib.train.run import score_run, train_model

PROGRAMS = Path(os.environ.get("THYROID_NNUNET") or "/nowhere")
NONE = not (PROGRAMS / "nnUNetv2_train").is_file()
WHY = "THYROID_NNUNET names no folder with nnU-Net's programs"
pytestmark = [pytest.mark.slow, pytest.mark.study, pytest.mark.skipif(NONE, reason=WHY)]
TRAINER = """import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTiny(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 4, 1
"""
DATASET = "Dataset501_Thyroid"


def test_from_the_export_to_the_row(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    project = tiny_study.copy_project(tmp_path / "project", tiny_study.TINY | {"folds": "2"})
    parameters, study = str(project / "parameters" / "tiny.yaml"), tmp_path / "results" / "tiny"
    drawn = {"sweeps": 4, "frames": 3, "seed": 0, "text": True}
    cases = load_cases("phantom", folder=study / "phantom", **drawn)
    store = build_store(cases, study / "store", size=32)
    raw = tmp_path / "raw"
    assert export_nnunet.main(["--parameters", parameters, "--out", str(raw)]) == 0

    folders = {"nnUNet_raw": raw, "nnUNet_extTrainer": tmp_path / "trainers"}
    folders |= {f"nnUNet_{name}": tmp_path / name for name in ("preprocessed", "results")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    (tmp_path / "trainers" / "nnUNetTrainerTiny.py").write_text(TRAINER)
    threads = {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])

    def nnunet(program: str, *words: str) -> str:
        done = subprocess.run(
            ["nice", "-n", "10", PROGRAMS / f"nnUNetv2_{program}", *words],
            env=os.environ | threads | {name: str(path) for name, path in folders.items()}
            | {"PATH": path, "nnUNet_compile": "f"},
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    one = ("-c", "2d", "-np", "1", "-npfp", "1")
    said = nnunet("plan_and_preprocess", "-d", "501", *one, "--verify_dataset_integrity")
    assert "verify_dataset_integrity Done" in said
    made = tmp_path / "preprocessed" / DATASET
    splits = [json.loads((f / "splits_final.json").read_text()) for f in (raw / DATASET, made)]
    assert splits[0] == splits[1]  # nnU-Net takes them over
    plans = json.loads((made / "nnUNetPlans.json").read_text())
    network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4] + [8] * (network["n_stages"] - 1)
    (made / "nnUNetPlans.json").write_text(json.dumps(plans))
    nnunet("train", "501", "2d", "0", "-tr", "nnUNetTrainerTiny", "-device", "cpu", "--npz")

    trained = tmp_path / "results" / DATASET / "nnUNetTrainerTiny__nnUNetPlans__2d" / "fold_0"
    predicted = tmp_path / "predicted" / "fold_0"
    predicted.parent.mkdir()
    predicted.symlink_to(trained / "validation")
    names = ["--names", str(raw / DATASET / "names.csv"), "--source", "nnU-Net, one short epoch"]
    given = ["--parameters", parameters, "--name", "nnunet", *names]
    assert imported.main([*given, "--predictions", str(predicted.parent)]) == 0
    run = train_model(store, out=study / "runs" / tiny_study.RUN, model="unet", width=4, folds=2,
                      epochs=1, batch_size=4, lr=2e-3, threads=1, device="cpu")  # fmt: skip
    score_run(run, store)
    results = tables.load_runs(sorted((study / "runs").iterdir()))
    table = tables.summary(results.scores, results.runs, results.calibration, resamples=200)
    assert set(table["model"]) == {"unet", "nnunet (imported)"}
    print(tables.show_summary(table).to_markdown(index=False))
