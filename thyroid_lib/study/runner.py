"""Between YAML and notebook: check every setting, run one notebook through papermill, tidy it.

    python -m thyroid_lib.study.runner check parameters/demo.yaml
    python -m thyroid_lib.study.runner notebook notebooks/3-train.ipynb out.ipynb --parameters JSON
    python -m thyroid_lib.study.runner env parameters/demo.yaml

papermill alone only warns of an unknown parameter and takes a notebook that stopped half-way for
a finished one; here both are errors. `env` prints the variables that a study's trainings run under:
its threads, and, if it pins them, those that make one x86-64 processor compute as another does.
Exit codes:

    0  done                3  a cell raised an error
    2  wrong parameters    4  not every cell ran, the kernel died, or the disk took no more
    5  stopped at the end of its time; 130, 143: told to stop (Ctrl-C, SIGTERM): what was trained is
       kept, and the next start goes on

Importing this module loads neither torch nor papermill: the workflow reads it at every start.
"""

import argparse
import ast
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

from thyroid_lib.files.locks import claim_gpu, claim_path
from thyroid_lib.files.stopping import deadline, signals
from thyroid_lib.files.writing import (
    NOTE,
    no_grammars,
    print_note,
    project_path,
    remove_file,
    write_error,
    write_file,
)
from thyroid_lib.settings import clashes, misfit, mistyped, read_parameters, read_study, unknown
from thyroid_lib.study import second_copy
from thyroid_lib.study.checksums import record

DONE, BAD_PARAMETERS, CELL_RAISED, INCOMPLETE, OUT_OF_TIME = 0, 2, 3, 4, 5
STOPPED = (OUT_OF_TIME, 128 + 1, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # 1: SIGHUP
PATIENCE = 60  # seconds that a kernel has to keep its state once it is told to stop

# AVX2 wherever there is more, before torch loads: other instructions round to other bits. MKL
# keeps its promise on processors of every maker in its COMPATIBLE mode alone.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}


def parameter_defaults(notebook: str | Path) -> dict:
    """Read names and defaults from the notebook's cell that is tagged `parameters`.

    Raises:
        ValueError: no such notebook, no such cell, or a line that is no `name = literal`.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tags_of = [cell.get("metadata", {}).get("tags", []) for cell in cells]
        tagged = [
            "".join(cell["source"])
            for cell, tags in zip(cells, tags_of, strict=True)
            if "parameters" in tags
        ]
    except OSError as error:
        raise ValueError(f"{notebook}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{notebook}: is no notebook (format 4)") from None
    if not tagged:
        raise ValueError(f"{notebook}: no cell has the tag `parameters`")
    try:
        lines = ast.parse(tagged[0]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{notebook}: the parameters cell is no Python: {error}") from None
    defaults = {}
    for node in lines:
        try:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            defaults[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):
            text = ast.unparse(node).splitlines()[0]
            raise ValueError(
                f"{notebook}: `{text}` in the parameters cell is no `name = value`"
            ) from None
    return defaults


def check_parameters(parameters: dict, defaults: dict) -> None:
    """Hold parameters against a notebook's defaults; what is left out keeps its default.

    Raises:
        ValueError: an unknown name, a value of another type or one that no notebook of the study
            takes, or values that do not go together; all of them, one a line.
    """
    problems = []
    for name, value in parameters.items():
        if name not in defaults:
            problems.append(unknown(name, defaults))
        elif wrong := mistyped(value, defaults[name]) or misfit(name, value):
            problems.append(f"{name}: {wrong}")
    if problems := problems or clashes(defaults | parameters):
        raise ValueError("\n".join(problems))


def run_notebook(
    notebook: str | Path,
    out: str | Path,
    parameters: dict,
    *,
    log: str | Path | None = None,
    pin: bool = False,
    checksums: str | Path | None = None,
    writes: Iterable[str | Path] = (),
) -> int:
    """Execute a notebook with these parameters; once all of it ran, write it, tidied, to `out`.

    Args:
        log: where the notebook can be watched while it runs, times included; it stays there.
            Without it, it runs as `<out>.failed.ipynb` and stays only if it fails. If it fails,
            the reason stands beside it, in `<log>.failed.txt`.
        pin: set the variables of `PINNED`.
        checksums: where to write down those of the files that the notebook `writes`, see
            `thyroid_lib.study.checksums.record`.

    Returns:
        The exit code that the module's docstring lists.
    """
    notebook, out = Path(notebook), Path(out)
    running = Path(log) if log else out.with_suffix(".failed.ipynb")
    reason = running.with_suffix(".failed.txt") if log else None
    try:
        defaults = parameter_defaults(notebook)
        check_parameters(parameters, defaults)
        deadline()  # of the environment: junk is told here
    except ValueError as error:
        return _fail(BAD_PARAMETERS, f"{notebook.name}: {error}", reason)
    with claim_path(out, out.stem):
        try:
            for old in filter(None, (reason, checksums)):
                Path(old).unlink(missing_ok=True)
            code, message = _run(notebook, out, running, parameters, defaults, pin)
            if code == DONE and checksums:
                record(checksums, writes)
        except OSError as error:
            told = write_error(error, error.filename or running)
            code, message = INCOMPLETE, f"{told.strerror}: {told.filename}"
        if code != DONE:
            return _fail(code, f"{out.stem}: {message}", reason)
        if not log:
            remove_file(running)
    print(f"{out.stem}: {message}", flush=True)
    return DONE


def _run(
    notebook: Path, out: Path, running: Path, parameters: dict, defaults: dict, pin: bool
) -> tuple[int, str]:
    """Execute and tidy a notebook; return an exit code and what there is to say."""
    if time.time() >= deadline():
        return OUT_OF_TIME, "not begun, as the time budget is used up; start again and it goes on"
    os.environ |= _threads((defaults | parameters).get("threads", 0)) | (PINNED if pin else {})
    # The kernel is this interpreter's, not one of the same name in the user's home.
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    on_gpu = (defaults | parameters).get("device") in ("auto", "cuda")
    began = time.perf_counter()
    for path in (running, out):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (claim_gpu(out.stem) if on_gpu else None) or nullcontext():
            code, message = _execute(notebook.absolute(), running.absolute(), parameters)
        for line in _notes(running):
            print_note(f"{out.stem}: {line}")
        if code != DONE:
            return code, f"{message}\n  the notebook up to there: {running}"
        write_file(out, tidy_notebook(running, ids=_has_ids(notebook)))
    finally:
        with suppress(OSError, ValueError):  # none there, or cut off by a full disk: it stays so
            write_file(running, hide_places(running.read_text(encoding="utf-8")))
    return DONE, f"done in {time.perf_counter() - began:.0f} s"


def _threads(count: int) -> dict[str, str]:
    """Return the variables that hold every library to so many threads; none for 0, which is all."""
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"
    return dict.fromkeys(names, str(count)) if count else {}


def _execute(notebook: Path, running: Path, parameters: dict) -> tuple[int, str]:
    """Run papermill; return an exit code and, if it is not 0, what happened."""
    import logging

    with no_grammars():
        import nbformat
        import papermill
        from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it is told below
    source, target = (str(p).replace("{", "{{").replace("}", "}}") for p in (notebook, running))
    begun: list[bool] = []

    def begin(*_, **__) -> None:
        begun.append(True)
        _obey()

    for again in (True, False):
        try:
            papermill.execute_notebook(
                source,
                target,
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=project_path(""),
                extra_arguments=["--log-level=CRITICAL"],  # of the kernel
                on_cell_start=begin,
            )
            break
        except papermill.PapermillExecutionError as error:
            if error.ename in ("Stopped", "KeyboardInterrupt"):
                code = OUT_OF_TIME if error.ename == "Stopped" else 128 + signal.SIGINT
                return (128 + _told[0] if _told else code), error.evalue or "told to stop"
            lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
            where = "\n".join(f"  | {line}" for line in lines[-8:-1])
            return CELL_RAISED, f"In [{error.exec_count}] {error.ename}: {error.evalue}\n{where}"
        except (DeadKernelError, RuntimeError) as error:
            if _told:
                return 128 + _told[0], "told to stop"
            # two kernels that start at once may have drawn the same port
            if begun or not again:
                return INCOMPLETE, f"the kernel died (out of memory? killed?): {error}"
            print_note(f"{notebook.stem}: its kernel did not start ({error}): once more")
    cells = nbformat.read(running, as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    ran = [cell for cell in cells if cell.execution_count]
    stopped = any(output.output_type == "error" for cell in cells for output in cell.outputs)
    if stopped or len(ran) < len(cells):
        return INCOMPLETE, f"only {len(ran)} of {len(cells)} cells ran: is there an exit() in one?"
    return DONE, ""


_told: list[int] = []  # signals that came


def _on_signal(number: int, frame) -> None:
    """Let the kernel keep its state and end, as a notebook's stop button does; else end at once."""
    if _told:
        return
    import psutil

    _told.append(number)
    kernels = psutil.Process().children()
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.send_signal(signal.SIGINT)
    signal.signal(signal.SIGALRM, _obey)
    signal.alarm(PATIENCE if kernels else 1)
    if not kernels:
        _obey()


def _obey(*_, **__) -> None:
    """End, and the kernel with it, if a signal said so; also called before each cell."""
    if _told:
        raise SystemExit(128 + _told[0])


def _end_with_workflow() -> None:
    """Stop when the workflow that started this is gone: killed outright, it tells nobody."""
    import psutil

    try:
        workflow = psutil.Process(int(os.environ["THYROID_WORKFLOW_PID"]))
    except (KeyError, ValueError):
        return
    except psutil.NoSuchProcess:
        workflow = None

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while workflow and workflow.is_running() and workflow.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _notes(running: Path) -> list[str]:
    """Return what the cells of a notebook told through `thyroid_lib.files.writing.print_note`."""
    try:
        cells = json.loads(running.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        return []
    streams = [o for cell in cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
    lines = "".join(line for stream in streams for line in stream["text"]).splitlines()
    return [line.removeprefix(NOTE) for line in lines if line.startswith(NOTE)]


def _has_ids(notebook: Path) -> bool:
    return all("id" in cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"])


def tidy_notebook(path: str | Path, *, ids: bool = True) -> str:
    """Return a notebook's JSON without times, paths, versions and random names.

    Two runs that compute the same give the same bytes. Outputs stay as they are, except that the
    pieces in which a stream happened to arrive are joined.

    Args:
        ids: keep the cells' ids; False where the source had none and they are random.
    """
    with no_grammars():
        import nbformat

    nb = nbformat.read(path, as_version=4)
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags")
        for key in ("papermill", "execution", *(() if tags else ("tags",))):
            cell.metadata.pop(key, None)
        if not ids:
            cell.id = f"cell-{number}"
        if tags and "injected-parameters" in tags:
            cell.id = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    text = nbformat.writes(nb) + "\n"
    shown = json.dumps([cell.get("outputs") for cell in nb.cells])  # parameters are the user's own
    for folder in {str(project_path("")).rstrip("/"), os.path.expanduser("~")} - {"", "/"}:
        if re.search(re.escape(folder) + r"(?![\w -])", shown):
            print(f"warning: {path.name} shows a path of this machine: {folder}", file=sys.stderr)
    return hide_places(text)


def hide_places(text: str) -> str:
    """Return a text, or a notebook's JSON, without the folders that tell whose machine this is.

    The project is `.`, the folder of the results `results` and the home `~`, which `project_path`
    leads back to where they are; Python's folder is `python`, that of temporary files `$TMPDIR`.
    """
    names = {
        os.environ.get("THYROID_RESULTS", ""): "results",
        str(project_path("")): ".",
        os.path.expanduser("~"): "~",
        sys.prefix: "python",
        sys.base_prefix: "python",
        tempfile.gettempdir(): "$TMPDIR",
    }
    shown = {}
    for folder, name in names.items():
        for path in {os.path.abspath(folder), os.path.realpath(folder)} if folder else ():
            if path not in ("/", "/usr", "/usr/local", "/tmp", "/var/tmp"):  # everybody's
                for form in (path, *(json.dumps(path, ensure_ascii=x)[1:-1] for x in (0, 1))):
                    shown.setdefault(form, name)
    longest = sorted(shown, key=len, reverse=True)
    places = "|".join(map(re.escape, longest))
    # not where the name goes on (`…/ab`, `…/a-b`, `…/a.b` for `…/a`); a full stop may follow
    # `/a` is no part of `/mnt/a`, but it may follow a line break (`\n`) or a colour (`m`)
    before = r"(?:(?<![\w.~-])|(?<=\\n)|(?<=\\t)|(?<=\\r)|(?<=\dm))"
    part = re.compile(rf"{before}(?:{places})(?![\w-]|\.\w)")
    return part.sub(lambda hit: shown[hit[0]], text) if shown else text


def _join_streams(outputs: list) -> list:
    """Join the pieces of a stream, and leave out the notes to the terminal."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            lines = output.text.splitlines(keepends=True)
            output.text = "".join(line for line in lines if not line.startswith(NOTE))
            if not output.text:
                continue
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _fail(code: int, message: str, reason: Path | None = None) -> int:
    """Tell what happened, also in the file `reason`, for the report."""
    what = "stopped" if code in STOPPED else "error"
    print(f"{what}: {message}", file=sys.stderr, flush=True)
    if reason:
        with suppress(OSError):
            write_file(reason, hide_places(f"{what}: {message}\n"))
    return code


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="thyroid_lib.study.runner", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("notebook", help="check parameters, execute, tidy")
    run.add_argument("notebook")
    run.add_argument("out")
    run.add_argument("--parameters", default="{}", help="a JSON object, or a file that holds one")
    run.add_argument("--log", help="where the notebook can be watched, and stays, times and all")
    run.add_argument("--pin-instructions", action="store_true", help="AVX2 on every x86-64")
    run.add_argument("--checksums", help="file for the checksums of what the notebook writes")
    run.add_argument("--writes", nargs="*", default=[], help="those files")
    check = commands.add_parser("check", help="check the parameters of a study")
    check.add_argument("files", nargs="+")
    env = commands.add_parser("env", help="print the variables that a study's trainings run under")
    env.add_argument("files", nargs="+")
    args = parser.parse_args()
    try:
        if args.command == "env":
            study = read_study(args.files)
            variables = _threads(study["threads"]) | (PINNED if study["pin_instructions"] else {})
            print(" ".join(f"{name}={value}" for name, value in variables.items()))
            return DONE
        if args.command == "check":
            print(f"ok: study {read_study(args.files)['study']}")
            return DONE
        parameters = read_parameters(args.parameters)
    except ValueError as error:
        return _fail(BAD_PARAMETERS, str(error))
    for number in signals():
        signal.signal(number, _on_signal)
    _end_with_workflow()
    second_copy.keep_chosen()
    return run_notebook(
        args.notebook, args.out, parameters, log=args.log, pin=args.pin_instructions,
        checksums=args.checksums, writes=args.writes,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
