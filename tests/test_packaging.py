"""What is said twice is said alike: dependencies, parameters, targets, the order of the modules."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from thyroid_lib.study import SCHEMA, read_study

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = PROJECT["dependencies"] + [need for extra in EXTRAS.values() for need in extra]
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "snakemake": "snakemake-minimal"}
PARAMETERS = sorted((ROOT / "parameters").glob("*.yaml"))
# A module imports only from those before it.
ORDER = (
    "__init__", "frames", "cases", "folder", "tg3k", "phantom", "fingerprint", "locks", "parallel",
    "store", "splits", "copies", "audit", "labels", "models", "device", "metrics", "scores",
    "checkpoint", "predict", "augment", "stopping", "train", "run", "statistics", "mixed",
    "stability", "selection", "tables", "replication", "show", "readings", "card", "plots",
    "plots_audit", "plots_compare", "plots_replication", "safekeeping", "report", "verify", "study",
    "runner",
)  # fmt: skip


def split_need(need: str) -> tuple[str, str]:
    name, limits = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", need).groups()
    return name, limits


def test_conda_users_get_the_same():
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [line for line in content["dependencies"] if isinstance(line, str)]
    given = dict(split_need(line) for line in plain)
    assert given.pop("python").startswith(PROJECT["requires-python"])
    assert given.pop("pip") == ""
    needed = {CONDA.get(name, name): limits for name, limits in map(split_need, NEEDED)}
    assert given == needed
    assert content["dependencies"][-1] == {"pip": ["-e ."]}


def test_the_lock_pins_every_direct_dependency_within_its_range():
    from packaging.specifiers import SpecifierSet

    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", x) for x in lines if x[0] != "#")
    normal = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for name, limits in map(split_need, NEEDED):
        assert normal[name] in SpecifierSet(limits), f"{name}: {normal.get(name)} is not {limits}"
    assert not [name for name in normal if name.startswith(("nvidia", "triton"))]


def test_snakemake_stays_an_extra_and_torch_wide():
    base = dict(map(split_need, PROJECT["dependencies"]))
    assert base["torch"] == ">=2.6"  # Colab and Kaggle keep theirs
    assert not {"snakemake", "jupyterlab", "pytest"} & set(base)
    assert all("<" not in limits and "==" not in limits for limits in base.values())


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"\.PHONY: (.*)", text).group(1).split())
    rules = set(re.findall(r"(?m)^([a-z-]+):(?! override)", text))
    assert rules == phony
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"(?m)^  make ([a-z-]+) ", done.stdout))
    assert listed == phony
    assert listed >= {"help", "demo", "study", "test", "lab"}


@pytest.mark.parametrize("words", ["models=[unet, segnet]", "epochs", "=3", "lr=1=2"])
def test_make_says_what_is_no_setting(words):
    done = subprocess.run(
        ["make", "-n", "study", f"SET={words}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is no key=value; keys are those of parameters/demo.yaml" in done.stderr


def test_a_dry_run_shows_no_table():
    for options, shows in (("", True), ("-n", False), ("--until preprocess", False)):
        done = subprocess.run(
            ["make", "-n", "study", f"OPTIONS={options}"], cwd=ROOT, capture_output=True, text=True
        )
        assert ("summary.md" in done.stdout) == shows


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.stem)
def test_every_study_has_every_key_with_its_comment(path):
    assert list(read_study([path])) == list(SCHEMA)
    lines = path.read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\w+:", line):
            assert "  # " in line or before.startswith("# "), f"{line} needs its meaning"


def test_only_the_replication_selects_on_the_test_set():
    tested = [path.stem for path in PARAMETERS if "reported" in read_study([path])["protocols"]]
    assert sorted(tested) == ["replication", "tg3k-sample"]  # the second is the first, reduced


def test_the_reduced_replication_differs_in_size_alone():
    full, reduced = (
        read_study([ROOT / f"parameters/{x}.yaml"]) for x in ("replication", "tg3k-sample")
    )
    differing = {key for key in full if full[key] != reduced[key]}
    assert differing == {
        "study", "data", "size", "width", "folds", "run_folds", "seeds", "epochs", "batch_size",
        "lr", "threads", "device", "precision",
    }  # fmt: skip


def test_modules_import_only_from_those_before():
    modules = {path.stem: path for path in (ROOT / "thyroid_lib").glob("*.py")}
    assert set(modules) == set(ORDER)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("thyroid_lib"):
                inside = node.module.partition(".")[2]
                found = [inside] if inside else [alias.name for alias in node.names]
                for other in set(found) & set(ORDER):
                    assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


def tracked_files() -> list[Path]:
    """What is, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_large_file():
    assert [path.name for path in tracked_files() if path.stat().st_size > 1_500_000] == []


def test_no_machines_own_paths_or_hosts():
    own = re.compile(r"/(?:work|farm|root|home|Users)/(?!ing\b)|(?:pypi|pythonhosted)[.]org")
    found = []
    for path in tracked_files():
        if path.parent.name == "tests":  # which name such paths in order to look for them
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        # a figure's base64 may hold any letters
        text = re.sub(r'"image/png": "[^"]*"', "", text)
        found += [f"{path.name}: {hit}" for hit in own.findall(text)]
    assert found == []


def test_the_lint_that_ci_runs_is_the_committed_one():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pins = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for tool in ("ruff", "nbstripout"):
        used = set(re.findall(rf"\[({tool}==[\d.]+)\]", hooks))
        assert used == {pin for pin in pins if pin.startswith(f"{tool}==")}
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert run == ["#!/usr/bin/env bash", "set -e", "make test"]
