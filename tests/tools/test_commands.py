"""Every command in README, CONTRIBUTING and docs/ exists and takes its options."""

import ast
import functools
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from thyroid_lib.study.parameters import parameter_defaults

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/README.md")]
PAGES += [ROOT / "benchmarks" / "README.md"]
TOOLS = "make|python|papermill|snakemake|pytest|streamlit"
START = re.compile(rf"[!%]?(?:[A-Z_]+=\S+ +)*({TOOLS}) ")
# Paths that stand for a reader's own; `mine` is the name of a study of theirs in all pages.
OWN = re.compile(r"<|…|\*|^(path/to|results|kaggle|/disk)/|^(DIR|release|frames|masks|out)\b|mine")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
Command = namedtuple("Command", ["page", "tool", "words"])  # the words without the tool


def code_lines(text: str) -> list[str]:
    """Return the lines of fenced and indented code, continued lines joined, and `code` in prose."""
    text = re.sub(r"<[\w ]+>", lambda hit: hit[0].replace(" ", "-"), text.replace("\\\n", " "))
    fenced = re.findall(r"(?ms)^```(?:\w*)\n(.*?)^```", text)
    rest = re.sub(r"(?ms)^```.*?^```", "", text)
    indented = re.findall(r"(?m)^(?: {4,}|\t)(.+)$", rest)
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"(?m)^    .*$", "", rest))
    lines = [line for block in fenced for line in block.splitlines()] + indented
    lines = [part.strip() for line in lines for part in re.sub(r"\s+#.*", "", line).split("&&")]
    return lines + [" ".join(code.split()) for code in inline]


def commands_of(text: str, page: str = "") -> list[Command]:
    found = [(line, start) for line in code_lines(text) if (start := START.match(line + " "))]
    words = [[word for word in shlex.split(line[at.end(1) :]) if word != "…"] for line, at in found]
    return [Command(page, at[1], tuple(own)) for (_, at), own in zip(found, words, strict=True)]


COMMANDS = sorted({c for page in PAGES for c in commands_of(page.read_text("utf-8"), page.name)})


def by_tool(*tools: str) -> list:
    found = [each for each in COMMANDS if each.tool in tools]
    return [pytest.param(each, id=f"{each.page} {' '.join(each.words)}") for each in found]


def run(*words, **more) -> subprocess.CompletedProcess:
    env = os.environ | {"PATH": PATH} | more
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@functools.cache
def help_of(*program: str) -> str:
    """Return what `--help` says; a program without a parser, which says nothing, fails here."""
    done = run(sys.executable, *program, "--help")
    assert done.stdout.startswith("usage:"), f"{' '.join(program)} has no command line"
    return done.stdout


def test_files_that_are_named_are_there():
    assert {command.tool for command in COMMANDS} >= {"make", "python", "papermill", "snakemake"}
    words = [word.partition("=")[2] or word for command in COMMANDS for word in command.words]
    files = [word for word in words if re.search(r"/\S*\.\w+$", word) and "://" not in word]
    assert [name for name in files if not OWN.search(name) and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("command", by_tool("make"))
def test_make_has_the_target_and_the_variables(command):
    names = [word.partition("=")[0] for word in command.words if "=" in word]
    unknown = [name for name in names if not re.search(rf"(?m)^{name} \?=|\$\({name}\)", MAKEFILE)]
    assert not unknown, f"the Makefile reads no {', '.join(unknown)}"
    words = [word.translate(str.maketrans("", "", "<>")) for word in command.words]
    for i, word in enumerate(words):
        if word.startswith("PARAMETERS=") and not (ROOT / word[11:]).exists():
            words[i] = "PARAMETERS=parameters/demo.yaml"  # a reader's own, see OWN
    done = run("make", "-n", "-o", ".venv/.ready", "-o", ".venv-bench/.ready", *words)
    assert done.returncode == 0 or "no model there" in done.stderr, done.stderr
    assert done.stdout or "no model there" in done.stderr  # a target that does something


@pytest.mark.study  # starts programs
@pytest.mark.parametrize("command", by_tool("python"))
def test_python_programs_have_a_command_line_with_these_options(command):
    first, *rest = command.words
    if first == "-c":
        for node in ast.walk(ast.parse(rest[0])):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
        return
    if first == "-m" and not rest[0].startswith("thyroid_lib"):
        assert importlib.util.find_spec(rest[0]), rest[0]
        return
    program = ("-m", rest.pop(0)) if first == "-m" else (first,)
    assert program[0] == "-m" or (ROOT / first).is_file(), f"there is no {first}"
    known = help_of(*program)
    options = [word.partition("=")[0] for word in rest if re.match("--?[a-z]", word)]
    if options and re.search(rf"\{{[\w,]*\b{re.escape(rest[0])}\b[\w,]*\}}", known):
        known += help_of(*program, rest[0])  # a subcommand
    assert [option for option in options if option not in known] == []


@pytest.mark.parametrize("command", by_tool("papermill"))
def test_papermill_gets_a_notebook_and_parameters_that_it_has(command):
    known = parameter_defaults(ROOT / command.words[0])
    given = [b for a, b in zip(command.words, command.words[1:], strict=False) if a in ("-p", "-r")]
    assert set(given) <= known.keys()


@pytest.mark.study
@pytest.mark.parametrize("command", by_tool("snakemake"))
def test_snakemake_plans_the_study(command, tmp_path):
    if "--profile" in command.words:
        return  # a cluster's data do not lie here
    done = run("snakemake", "-n", *command.words, THYROID_RESULTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout + done.stderr
