"""Between YAML and notebook: check every setting, run one notebook through papermill, tidy it.

    python -m thyroid_lib.runner check parameters/demo.yaml
    python -m thyroid_lib.runner notebook notebooks/3-train.ipynb out.ipynb --parameters JSON
    python -m thyroid_lib.runner env

papermill alone only warns of an unknown parameter and takes a notebook that stopped half-way for
a finished one; here both are errors. `env` prints the variables that make one x86-64 processor
compute the same bits as another. Exit codes:

    0  done                    3  a cell raised an error
    2  wrong parameters        4  not every cell ran, or the kernel died

Importing this module loads neither torch nor papermill: the workflow reads it at every start.
"""

import argparse
import ast
import glob
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from thyroid_lib import no_grammars, place, write_file
from thyroid_lib.study import clashes, misfit, mistyped, read_parameters, read_study, unknown

DONE, BAD_PARAMETERS, CELL_RAISED, INCOMPLETE = 0, 2, 3, 4

# AVX2 wherever there is more, before torch loads: other instructions round to other bits. MKL
# keeps its promise on processors of every maker in its COMPATIBLE mode alone.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use; found without loading CUDA."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [name for name in asked.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def _lock(name: str, *, wait: bool = False):
    """Lock this name on this machine, or return None; held until the returned file is closed."""
    import fcntl

    name = f"thyroid-{os.getuid()}-{name}.lock".replace("/", "-")
    lock = open(Path(tempfile.gettempdir()) / name, "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        lock.close()
        return None
    return lock


def _claim_gpu(out: Path):
    """Take a GPU that no other run holds, or wait for one; held until the returned file is closed.

    Snakemake deals out as many runs as there are GPUs; a second study beside it knows nothing of
    the first. Two runs on one GPU would take turns, or run out of its memory.
    """
    gpus, told = visible_gpus(), False
    job = os.environ.get("SLURM_JOB_ID", "")  # each job may see a GPU of its own as number 0
    while gpus:
        for gpu in gpus:
            if lock := _lock(f"gpu-{job}{gpu}"):
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return lock
        if not told:
            told = True
            print(f"{out.stem}: other runs hold GPU {', '.join(gpus)}; waiting …", flush=True)
        time.sleep(1)
    return None


def _claim_output(out: Path):
    """Wait until no other process makes this notebook.

    A workflow that was killed outright leaves its runs going on; whoever starts it again must not
    write beside them, and finds their weights when they are done.
    """
    name = "out-" + hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    lock = _lock(name)
    if lock is None:
        print(f"{out.stem}: another process is at it; waiting for its end …", flush=True)
        lock = _lock(name, wait=True)
    return lock


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
) -> int:
    """Execute a notebook with these parameters; once all of it ran, write it, tidied, to `out`.

    Args:
        log: where the notebook can be watched while it runs, times included; it stays there.
            Without it, it runs as `<out>.failed.ipynb` and stays only if it fails.
        pin: set the variables of `PINNED`.

    Returns:
        The exit code that the module's docstring lists.
    """
    notebook, out = Path(notebook), Path(out)
    try:
        defaults = parameter_defaults(notebook)
        check_parameters(parameters, defaults)
    except ValueError as error:
        return _fail(BAD_PARAMETERS, f"{notebook.name}: {error}")
    threads = (defaults | parameters).get("threads", 0)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS") if threads else ():
        os.environ[name] = str(threads)
    os.environ |= PINNED if pin else {}
    # The kernel is this interpreter's, not one of the same name in the user's home.
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    on_gpu = (defaults | parameters).get("device") in ("auto", "cuda")
    locks = [_claim_output(out), _claim_gpu(out) if on_gpu else None]
    began = time.perf_counter()
    running = Path(log) if log else out.with_suffix(".failed.ipynb")
    for path in (running, out):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        code, message = _execute(notebook.absolute(), running.absolute(), parameters)
    finally:
        for lock in filter(None, locks):
            lock.close()
    if code != DONE:
        return _fail(code, f"{out.stem}: {message}\n  the notebook up to there: {running}")
    write_file(out, tidy_notebook(running, ids=_has_ids(notebook)))
    if not log:
        running.unlink()
    print(f"{out.stem}: done in {time.perf_counter() - began:.0f} s", flush=True)
    return DONE


def _execute(notebook: Path, running: Path, parameters: dict) -> tuple[int, str]:
    """Run papermill; return an exit code and, if it is not 0, what happened."""
    import logging

    with no_grammars():
        import nbformat
        import papermill
        from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it is told below
    source, target = (str(p).replace("{", "{{").replace("}", "}}") for p in (notebook, running))
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=place(""),
            extra_arguments=["--log-level=CRITICAL"],  # of the kernel
        )
    except papermill.PapermillExecutionError as error:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        where = "\n".join(f"  | {line}" for line in lines[-8:-1])
        return CELL_RAISED, f"In [{error.exec_count}] {error.ename}: {error.evalue}\n{where}"
    except (DeadKernelError, RuntimeError) as error:
        return INCOMPLETE, f"the kernel died (out of memory? killed?): {error}"
    cells = nbformat.read(running, as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    ran = [cell for cell in cells if cell.execution_count]
    stopped = any(output.output_type == "error" for cell in cells for output in cell.outputs)
    if stopped or len(ran) < len(cells):
        return INCOMPLETE, f"only {len(ran)} of {len(cells)} cells ran: is there an exit() in one?"
    return DONE, ""


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
    for folder in {str(place("")).rstrip("/"), str(Path.home())} - {"", "/"}:
        if re.search(re.escape(folder) + r"(?![\w -])", shown):
            print(f"warning: {path.name} shows a path of this machine: {folder}", file=sys.stderr)
    return text


def _join_streams(outputs: list) -> list:
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="thyroid_lib.runner", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("notebook", help="check parameters, execute, tidy")
    run.add_argument("notebook")
    run.add_argument("out")
    run.add_argument("--parameters", default="{}", help="a JSON object, or a file that holds one")
    run.add_argument("--log", help="where the notebook can be watched, and stays, times and all")
    run.add_argument("--pin-instructions", action="store_true", help="AVX2 on every x86-64")
    check = commands.add_parser("check", help="check the parameters of a study")
    check.add_argument("files", nargs="+")
    commands.add_parser("env", help="print the variables that pin the instructions")
    args = parser.parse_args()
    if args.command == "env":
        print(" ".join(f"{name}={value}" for name, value in PINNED.items()))
        return DONE
    try:
        if args.command == "check":
            print(f"ok: study {read_study(args.files)['study']}")
            return DONE
        parameters = read_parameters(args.parameters)
    except ValueError as error:
        return _fail(BAD_PARAMETERS, str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the kernel too
    try:
        return run_notebook(
            args.notebook, args.out, parameters, log=args.log, pin=args.pin_instructions
        )
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
