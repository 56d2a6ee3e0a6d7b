"""Dependencies, locks, parameters, make targets, and what is committed."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from thyroid_lib.settings import read_study

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = PROJECT["dependencies"] + [
    need for name, extra in EXTRAS.items() if name != "pretrained" for need in extra
]  # conda's
LOCKED = PROJECT["dependencies"] + [
    need for name, extra in EXTRAS.items() if name != "encoders" for need in extra
]
CONDA = {
    "matplotlib": "matplotlib-base", "playwright": "playwright-python",
    "snakemake": "snakemake-minimal", "torch": "pytorch",
}  # fmt: skip
PARAMETERS = {path.stem: path for path in sorted((ROOT / "parameters").glob("*.yaml"))}
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
ENTRY = (
    r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(?: ; ([^\\\n]+?))?"  # name, version, marker
    r"((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)
RESULTS = ".ipynb", ".json", ".md", ".csv"
PLACES = re.compile(
    r"(?<![\w.])/(?:home|root|Users|work|tmp|var|private|mnt|media|scratch|data|kaggle|content)\b/"
    r"|[A-Z]:\\\\|site-packages|file://|\w@[\w-]+\.[a-z]"
    r"|(?i:token|passwd|password|secret|api.?key)\b"
)


def limits_of(needs: list[str]) -> dict[str, str]:
    return dict(re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", need).groups() for need in needs)


def make(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, **options)


def test_conda_has_the_same_dependencies():
    *plain, pip = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    given = limits_of(plain)
    assert given.pop("python").startswith(PROJECT["requires-python"])
    assert given.pop("pip") == ""
    assert given == {CONDA.get(name, name): limits for name, limits in limits_of(NEEDED).items()}
    assert pip == {"pip": ["-e .[pretrained]"]}


def test_what_every_user_needs_is_wide():
    base = limits_of(PROJECT["dependencies"])
    assert base["torch"] == ">=2.6"  # Colab and Kaggle keep theirs
    assert all("<" not in limits and "==" not in limits for limits in base.values())


def entries_of(lock: str) -> list[tuple[str, str, str, list[str]]]:
    """The entries (name, version, marker, hashes) of a lock; any other line is an error."""
    text = re.sub(r"(?m)^#.*\n", "", lock)
    assert not re.sub(ENTRY, "", text), "a line is not pinned, hashed and free of addresses"
    return [(*rest, re.findall("[0-9a-f]{64}", all_)) for *rest, all_ in re.findall(ENTRY, text)]


LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PINS = {f"{name}=={version}" for name, version, *_ in entries_of(LOCK)}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-tools.lock"])
def test_every_line_of_a_lock_is_pinned_and_hashed(name):
    text = (ROOT / name).read_text("utf-8")
    entries = entries_of(text)
    # hashes of all files of a release
    assert sum(len(hashes) for *_, hashes in entries) > 2 * len(entries) > 40
    header = "".join(re.findall(r"(?m)^#.*\n", text))
    assert not re.search(r"://|index-url|find-links|\w\.(?:org|com)\b", header)


def test_the_lock_has_every_need_of_the_project():
    """pip is not allowed to resolve any; what these need in turn, `make env` checks."""
    used = [entry for entry in entries_of(LOCK) if not entry[2] or Marker(entry[2]).evaluate()]
    versions = {name: version for name, version, *_ in used}
    assert len(versions) == len(used), "two versions of a package for one machine"
    for need in map(Requirement, [*LOCKED, *PYPROJECT["build-system"]["requires"]]):
        version = versions.get(canonicalize_name(need.name))
        assert version, f"{need} is not locked"
        assert version in need.specifier, f"{need}: locked is {version}"


def test_make_env_leaves_cuda_out_where_torch_has_none():
    """The Makefile's own command, run on the lock."""
    script = re.search(r"awk -v cpu=.*?' requirements\.lock", MAKEFILE, re.S).group()
    script = script.replace("\\\n", "\n").replace("$$", "$")
    cuda = {pin for pin in PINS if pin.startswith(("cuda-", "nvidia-", "triton"))}
    cpu = "torch==2.13.0+cpu"
    for torch, left in (("", PINS), (cpu, PINS - cuda - {"torch==2.13.0"} | {cpu})):
        done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=os.environ | {"torch": torch},
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert set(re.findall(r"(?m)^[a-z0-9-]+==[^ ]+", done.stdout)) == left


def test_help_lists_every_target():
    phony = set(re.search(r"\.PHONY: (.*)", MAKEFILE).group(1).split())
    assert set(re.findall(r"(?m)^([a-z-]+):(?! override)", MAKEFILE)) == phony
    listed = set(re.findall(r"(?m)^  make ([a-z-]+) ", make("help", check=True).stdout))
    assert listed == phony


@pytest.mark.parametrize("words", ["models=[unet, segnet]", "epochs"])
def test_make_names_a_word_that_is_no_setting(words):
    done = make("-n", "study", f"SET={words}")
    assert "is no key=value; keys are those of parameters/demo.yaml" in done.stderr


@pytest.mark.parametrize("word", ["a'; touch PWNED; '", "a-*", "(a)"])
def test_make_passes_words_on_unexpanded(word):
    options = "-n", "--no-print-directory", "-o", ".venv/.ready"
    for given, words in (
        (("badges", f"REPO={word}"), ["--", word]),
        (("gather", f"FROM=b {word}", "SET=lr=1"), ["--set", "lr=1", "--", "b", *word.split()]),
    ):
        done = make(*options, *given, check=True)
        assert shlex.split(done.stdout.replace("\\\n", " "))[-len(words) :] == words


def test_only_the_replication_selects_on_the_test_set():
    """It does so twice: the second study is the first, reduced in size alone."""
    studies = {name: read_study([path]) for name, path in PARAMETERS.items()}
    tested = [name for name, study in studies.items() if "reported" in study["protocols"]]
    assert tested == ["replication", "tg3k-sample"]
    full, reduced = (studies[name] for name in tested)
    same = {"protocols", "models", "selection", "mend", "augment", "resize", "threshold", "delta"}
    assert all(full[key] == reduced[key] for key in same)


def test_what_is_committed_is_small_and_names_no_path_or_host_of_a_machine():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    own = re.compile(r"/(?:work|farm|root|home|Users)/(?!ing\b)|(?:pypi|pythonhosted)[.]org")
    found = []
    for path in (ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()):
        if path.stat().st_size > 2_000_000:
            found.append(f"{path.name}: large")
        if path.relative_to(ROOT).parts[0] != "tests":  # they name such paths to look for them
            text = path.read_bytes().decode("utf-8", errors="ignore")
            text = re.sub(r'"image/png": "[^"]*"', "", text)  # base64 may hold any letters
            found += [f"{path.name}: {hit}" for hit in own.findall(text)]
            result = path.is_relative_to(ROOT / "results/reference") and path.suffix in RESULTS
            if result:  # nor a user
                found += [f"{path.name}: {hit}" for hit in PLACES.findall(text)]
    assert found == []


def test_the_lint_that_ci_runs_is_the_committed_one():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    for tool in ("ruff", "nbstripout"):
        used = set(re.findall(rf"\[({tool}==[\d.]+)\]", hooks))
        assert used == {pin for pin in PINS if pin.startswith(f"{tool}==")}
