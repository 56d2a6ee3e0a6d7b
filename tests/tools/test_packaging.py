"""Dependencies, locks, parameters, make targets, the order of the wings, and what is committed."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from thyroid_lib.settings import Study, read_study

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = PROJECT["dependencies"] + [need for extra in EXTRAS.values() for need in extra]
CONDA = {
    "matplotlib": "matplotlib-base", "playwright": "playwright-python",
    "snakemake": "snakemake-minimal", "torch": "pytorch",
}  # fmt: skip
PARAMETERS = sorted((ROOT / "parameters").glob("*.yaml"))
LOCKS = ("requirements.lock", "requirements-tools.lock")
ENTRY = (
    r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(?: ; ([^\\\n]+?))?"  # name, version, marker
    r"((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def split_need(need: str) -> tuple[str, str]:
    return re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", need).groups()


def test_conda_has_the_same_dependencies():
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [line for line in content["dependencies"] if isinstance(line, str)]
    given = dict(split_need(line) for line in plain)
    assert given.pop("python").startswith(PROJECT["requires-python"])
    assert given.pop("pip") == ""
    needed = {CONDA.get(name, name): limits for name, limits in map(split_need, NEEDED)}
    assert given == needed
    assert content["dependencies"][-1] == {"pip": ["-e ."]}


def read_lock(name: str) -> list[tuple]:
    """The entries (name, version, marker, hashes) of a lock; any other line is an error."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))
    assert not re.sub(ENTRY, "", text), "a line is not pinned, hashed and free of addresses"
    found = re.findall(ENTRY, text)
    return [(*rest, re.findall(r"[0-9a-f]{64}", hashes)) for *rest, hashes in found]


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_is_pinned_and_hashed(name):
    entries = read_lock(name)
    assert len(entries) > 20
    # hashes of all files of a release
    assert sum(len(hashes) for *_, hashes in entries) > 2 * len(entries)
    header = (ROOT / name).read_text(encoding="utf-8").split("\n" + entries[0][0])[0]
    assert not re.search(r"://|index-url|find-links|\w\.(?:org|com)\b", header)


@pytest.mark.parametrize(
    "spoilt",
    [
        "six>=1.17.0", "six==1.17.0", "--find-links /opt/x", "six @ https://example.org/six.whl",
        "six==1.17.0 \\\n    --hash=md5:0", "-e .",
    ],
)  # fmt: skip
def test_a_line_without_a_hash_is_found(spoilt, tmp_path, monkeypatch):
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (tmp_path / "requirements.lock").write_text(f"{text}{spoilt}\n", encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="not pinned, hashed"):
        read_lock("requirements.lock")


def test_the_lock_is_complete():
    """It holds every requirement of this machine, because pip is not allowed to resolve any."""
    from importlib import metadata

    from packaging.markers import Marker
    from packaging.requirements import Requirement

    pins = {}
    for name, version, marker, _ in read_lock("requirements.lock"):
        if not marker or Marker(marker).evaluate():
            assert name not in pins, f"two versions of {name} for one machine"
            pins[name] = version
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]
    todo, seen = [(need, "") for need in [*NEEDED, *build["requires"]]], set()
    while todo:
        text, extra = todo.pop()
        need = Requirement(text)
        if (text, extra) in seen or (need.marker and not need.marker.evaluate({"extra": extra})):
            continue
        seen.add((text, extra))
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        assert name in pins, f"{name} is not locked"
        assert pins[name] in need.specifier, f"{name}: {pins[name]} is not {need.specifier}"
        try:
            inner = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # CUDA's, beside a CPU-only torch
            continue
        todo += [(line, extra) for line in inner for extra in ("", *need.extras)]
    assert len(seen) > len(pins)


def test_make_env_leaves_cuda_out_where_torch_has_none():
    """The Makefile's own command, run on the lock."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    script = re.search(r"awk -v cpu=.*?' requirements\.lock", text, re.S).group()
    script = script.replace("\\\n", "\n").replace("$$", "$")
    left = {}
    for torch in ("", "torch==2.13.0+cpu"):
        done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=os.environ | {"torch": torch},
                              capture_output=True, text=True, check=True)  # fmt: skip
        left[torch] = set(re.findall(r"(?m)^[a-z0-9-]+==[^ ]+", done.stdout))
    everything = {f"{name}=={version}" for name, version, *_ in read_lock("requirements.lock")}
    assert left[""] == everything
    cuda = {pin for pin in everything if pin.startswith(("cuda-", "nvidia-", "triton"))}
    assert len(cuda) > 10
    cpu = everything - cuda - {"torch==2.13.0"} | {"torch==2.13.0+cpu"}
    assert left["torch==2.13.0+cpu"] == cpu


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
def test_make_names_a_word_that_is_no_setting(words):
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
    assert list(read_study([path])) == list(Study.model_fields)
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
        "lr", "threads", "device", "precision", "deploy",
    }  # fmt: skip


def tracked_files() -> list[Path]:
    """All files that are committed, or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_large_file():
    assert [path.name for path in tracked_files() if path.stat().st_size > 2_000_000] == []


def test_no_file_names_paths_or_hosts_of_a_machine():
    own = re.compile(r"/(?:work|farm|root|home|Users)/(?!ing\b)|(?:pypi|pythonhosted)[.]org")
    found = []
    for path in tracked_files():
        if path.relative_to(ROOT).parts[0] != "tests":  # they name such paths to look for them
            text = path.read_bytes().decode("utf-8", errors="ignore")
            text = re.sub(r'"image/png": "[^"]*"', "", text)  # base64 may hold any letters
            found += [f"{path.name}: {hit}" for hit in own.findall(text)]
    assert found == []


def test_the_lint_that_ci_runs_is_the_committed_one():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pins = [f"{name}=={version}" for name, version, *_ in read_lock("requirements.lock")]
    for tool in ("ruff", "nbstripout"):
        used = set(re.findall(rf"\[({tool}==[\d.]+)\]", hooks))
        assert used == {pin for pin in pins if pin.startswith(f"{tool}==")}
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert run == ["#!/usr/bin/env bash", "set -e", "make test"]
