"""Run one notebook through papermill: check its parameters, execute it, tidy what it gives.

    python -m thyroid_lib.study.runner check parameters/demo.yaml
    python -m thyroid_lib.study.runner notebook notebooks/3-train.ipynb out.ipynb --parameters JSON
    python -m thyroid_lib.study.runner env parameters/demo.yaml

Exit codes (papermill by itself takes a notebook that stopped half-way for a finished one):

    0  done                3  a cell raised an error
    2  wrong parameters    4  not every cell ran, the kernel died, or the disk took no more
    5  stopped at the end of the time budget; 130, 143: stopped by Ctrl-C, SIGTERM. What was trained
       is kept, and the next start goes on

Importing this module loads neither torch nor papermill: the workflow reads it at every start.
"""

import argparse
import io
import json
import logging
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
from unittest.mock import patch

import psutil

from thyroid_lib.files import writing
from thyroid_lib.files.locks import claim_gpu, claim_path
from thyroid_lib.files.packages import missing_packages
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.stopping import deadline, signals
from thyroid_lib.files.writing import print_note, write_file
from thyroid_lib.settings import read_study
from thyroid_lib.study import second_copy
from thyroid_lib.study.checksums import record
from thyroid_lib.study.parameters import (
    check,
    check_variants,
    parameter_defaults,
    read_parameters,
)
from thyroid_lib.study.tidy import hide_places, tidy_notebook

DONE, BAD_PARAMETERS, CELL_RAISED, INCOMPLETE, OUT_OF_TIME = 0, 2, 3, 4, 5
STOPPED = (OUT_OF_TIME, 128 + 1, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # 1: SIGHUP
PATIENCE = 60  # seconds that a kernel has to keep its state once it is told to stop

# AVX2 wherever there is more, before torch loads: other instructions round to other bits. MKL
# repeats on processors of every maker in its COMPATIBLE mode alone.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
# What a user's environment would change in a notebook's outputs: where figures go and how they
# look, code run at every start, warnings, hashing, encodings, another kernel of the same name.
REMOVED = (
    "MPLBACKEND", "MPLCONFIGDIR", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONOPTIMIZE",
    "PYTHONHASHSEED", "PYTHONINSPECT", "PYTHONIOENCODING", "JUPYTER_PATH", "JUPYTER_DATA_DIR",
    "JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "COLUMNS", "LINES",
)  # fmt: skip
SET = {"MATPLOTLIBRC": os.devnull, "PYTHONUTF8": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
SET["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"


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
    """Execute a notebook; once all of it ran, write it, tidied, to `out`; return an exit code.

    `log` is the notebook while it runs, and afterwards with its times; if it fails, the reason is
    in `<log>.failed.txt`. Default: `<out>.failed.ipynb`, which stays if it fails. `pin` sets the
    variables of `PINNED`, `checksums` is the file for those of what the notebook `writes`.
    """
    reason = Path(log).with_suffix(".failed.txt") if log else None
    try:
        if "://" in f"{notebook} {out}":  # papermill would fetch or send it
            got = f"got {notebook} and {out}"
            raise ValueError(f"{got}, need files on this machine, and no address")
        defaults = parameter_defaults(notebook)
        check(parameters, defaults)
        if problem := missing_packages("nbconvert"):  # before an hour's work, not after it
            raise ValueError(problem)
        end = deadline()
    except ValueError as error:
        return _fail(BAD_PARAMETERS, f"{Path(notebook).name}: {error}", reason)
    notebook, out, values = Path(notebook), Path(out), defaults | parameters
    running = Path(log) if log else out.with_suffix(".failed.ipynb")
    code, message = OUT_OF_TIME, "not begun, as the time budget is used up; start again"
    with claim_path(out, out.stem):
        began = time.perf_counter()
        try:
            for path in (running, out):
                path.parent.mkdir(parents=True, exist_ok=True)
            for old in filter(None, (reason, checksums)):
                Path(old).unlink(missing_ok=True)
            if time.time() < end:
                gpu = claim_gpu(out.stem) if values.get("device") in ("auto", "cuda") else None
                with gpu or nullcontext(), patch.dict(os.environ):  # which it restores
                    os.environ |= variables(values.get("threads", 0), pin)
                    code, message = _execute(notebook, running, parameters, notes := io.StringIO())
                for note in re.findall(f"(?m)^{writing.NOTE}(.*)", notes.getvalue()):
                    print_note(f"{out.stem}: {note}")
            if code == DONE:
                write_file(out, tidy_notebook(running, source=notebook))
                if checksums:
                    record(checksums, writes)
        except OSError as error:
            full = writing.write_error(error, error.filename or running)
            code, message = INCOMPLETE, f"{full.strerror}: {full.filename}"
        finally:
            with suppress(OSError, ValueError):  # it is not there, or a full disk cut it off
                write_file(running, hide_places(running.read_text(encoding="utf-8")))
        if code != DONE:
            return _fail(code, f"{out.stem}: {message}", reason)
        if not log:
            writing.remove_file(running)
    print(f"{out.stem}: done in {time.perf_counter() - began:.0f} s", flush=True)
    return DONE


def variables(threads: int, pin: bool) -> dict[str, str]:
    """Return the environment's variables for so many threads (0: all), pinned or not."""
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"
    return SET | (dict.fromkeys(names, str(threads)) if threads else {}) | (PINNED if pin else {})


def _execute(notebook: Path, running: Path, parameters: dict, stderr) -> tuple[int, str]:
    """Run papermill; return an exit code and, unless it is 0, what happened."""
    # nbformat's schema checker would compile 38 grammars of addresses, which takes a second
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # errors are printed here
    for name in REMOVED:
        os.environ.pop(name, None)
    paths = [str(p.absolute()).replace("{", "{{").replace("}", "}}") for p in (notebook, running)]
    up_to = f"\n  the notebook up to there: {running}"
    begun: list[bool] = []

    def begin(*_, **__) -> None:
        begun.append(True)
        _end_if_signalled()

    how = {"kernel_name": "python3", "language": "python", "cwd": project_path("")}
    how |= {"progress_bar": False, "on_cell_start": begin, "stderr_file": stderr}
    how["extra_arguments"] = ["--log-level=CRITICAL"]  # of the kernel
    for again in (True, False):
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                os.environ["IPYTHONDIR"] = folder
                papermill.execute_notebook(*paths, parameters, **how)
            break
        except papermill.PapermillExecutionError as error:
            if error.ename in ("Stopped", "KeyboardInterrupt"):
                by_itself = OUT_OF_TIME if error.ename == "Stopped" else 128 + signal.SIGINT
                code = 128 + _signals[0] if _signals else by_itself
                return code, (error.evalue or "stopped by a signal") + up_to
            lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
            where = "".join(f"\n  | {line}" for line in lines[-8:-1])
            said = f"In [{error.exec_count}] {error.ename}: {error.evalue}"
            return CELL_RAISED, said + where + up_to
        except RuntimeError as error:  # the kernel's
            if _signals:
                return 128 + _signals[0], "stopped by a signal"
            if begun or not again:
                return INCOMPLETE, f"the kernel died (out of memory? killed?): {error}{up_to}"
            # two kernels that start at once may have drawn the same port
            print_note(f"{notebook.stem}: its kernel did not start ({error}): once more")
    cells = json.loads(running.read_text(encoding="utf-8"))["cells"]
    code = [x for x in cells if x["cell_type"] == "code" and "".join(x["source"]).strip()]
    ran = [x for x in code if x["execution_count"]]
    if len(ran) < len(code) or any(y["output_type"] == "error" for x in code for y in x["outputs"]):
        said = f"only {len(ran)} of {len(code)} cells ran: is there an exit() in one?"
        return INCOMPLETE, said + up_to
    return DONE, ""


_signals: list[int] = []  # that arrived


def _on_signal(number: int, frame) -> None:
    """Interrupt the kernel, which keeps its state and ends; without a kernel, end at once."""
    if _signals:
        return
    _signals.append(number)
    kernels = psutil.Process().children()
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.send_signal(signal.SIGINT)
    signal.signal(signal.SIGALRM, _end_if_signalled)
    signal.alarm(PATIENCE if kernels else 1)
    if not kernels:
        _end_if_signalled()


def _end_if_signalled(*_, **__) -> None:
    """End this process, and with it the kernel; also called before each cell."""
    if _signals:
        raise SystemExit(128 + _signals[0])


def _end_with(workflow: int) -> None:
    """Stop once the workflow that started this process is gone, even if it was killed."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(workflow)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _fail(code: int, message: str, reason: Path | None = None) -> int:
    """Print what happened, and write it to the file `reason`, for the report; return the code."""
    message = f"{'stopped' if code in STOPPED else 'error'}: {message}"
    print(message, file=sys.stderr, flush=True)
    if reason:
        with suppress(OSError):
            write_file(reason, hide_places(f"{message}\n"))
    return code


def main() -> int:
    """Run the command line."""
    name, first_line = "thyroid_lib.study.runner", (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog=name, description=first_line)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("notebook", help="check parameters, execute, tidy")
    run.add_argument("notebook")
    run.add_argument("out")
    run.add_argument("--parameters", default="{}", help="a JSON object")
    run.add_argument("--log", help="where the notebook can be watched, and stays, times and all")
    run.add_argument("--pin-instructions", dest="pin", action="store_true", help="use AVX2")
    run.add_argument("--checksums", help="file for the checksums of what the notebook writes")
    run.add_argument("--writes", nargs="*", default=[], help="those files")
    helps = {"check": "check the settings of a study", "env": "print arguments of the command env"}
    for name, help in helps.items():
        commands.add_parser(name, help=help).add_argument("files", nargs="+")
    args = vars(parser.parse_args())
    command = args.pop("command")
    try:
        if command == "notebook":
            args["parameters"] = read_parameters(args["parameters"])
        else:
            study = read_study(args["files"])
            check_variants(study)
    except ValueError as error:
        return _fail(BAD_PARAMETERS, str(error))
    if command == "check":
        print(f"ok: study {study['study']}")
        return DONE
    if command == "env":
        values = variables(study["threads"], study["pin_instructions"]).items()
        print(*(f"-u {name}" for name in REMOVED), *(f"{name}={value}" for name, value in values))
        return DONE
    for number in signals():
        signal.signal(number, _on_signal)
    if workflow := os.environ.get("THYROID_WORKFLOW_PID"):
        threading.Thread(target=_end_with, args=[int(workflow)], daemon=True).start()
    second_copy.keep_chosen()
    return run_notebook(**args)


if __name__ == "__main__":
    sys.exit(main())
