"""One start of a study's workflow: its environment, its lock, its stop by signals, its errors."""

import logging
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil
from snakemake_interface_logger_plugins.common import LogEvent

from thyroid_lib.files import stopping
from thyroid_lib.files.paths import project_path
from thyroid_lib.study import checksums, second_copy

STOPPED = "stopped: start again and it goes on"
# Messages that come with every job; the runner prints a line for each of them.
QUIET_EVENTS = LogEvent.JOB_FINISHED, LogEvent.RESOURCES_INFO, LogEvent.JOB_ERROR
QUIET_MESSAGES = "Select jobs to execute", "Execute ", "RuleException"


class Session:
    """The process that runs a study's workflow; `project` is the folder that holds `notebooks/`.

    Steps get this machine's paths through the environment, so no record of Snakemake holds them.
    """

    def __init__(self, project: Path):
        self.lock: object = None  # of the study's folder, until this process ends
        self.running = False
        self.signals: list[int] = []  # that arrived
        library = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        library = library if str(project) in library else [str(project), *library]
        os.environ |= {
            "PYTHONPATH": os.pathsep.join(library),
            "THYROID_NOTEBOOKS": str(project / "notebooks"),
            "THYROID_PYTHON": sys.executable,
            "THYROID_RESULTS": str(project / (os.environ.get("THYROID_RESULTS") or "results")),
            "THYROID_WORKFLOW_PID": str(os.getpid()),  # whose end ends the notebooks
        }
        logging.getLogger("snakemake.logging").addFilter(_is_news)

    def open(self, study: str, budget_minutes: float = 0, *, lock: bool = True) -> Path:
        """Return the study's folder: locked and repaired, unless this start runs no steps."""
        self.study = project_path(study)
        dry_run = any(re.fullmatch(r"--dry-?run|-[a-z]*n[a-z]*", word) for word in sys.argv[1:])
        if lock and not dry_run:
            if budget_minutes:
                os.environ.setdefault("THYROID_DEADLINE", str(time.time() + 60 * budget_minutes))
            second_copy.keep_chosen()  # also brings back what an earlier session copied elsewhere
            try:
                self.lock = checksums.claim(self.study)
                checksums.mend(self.study)
                checksums.settle_times(self.study)
                self._listen()
            except BlockingIOError as error:
                self.lock = error  # matters only if steps are to run
            except OSError as error:
                _exit(error)
        return self.study

    def on_start(self) -> None:
        """Exit if another process holds the study's folder; else take signals over."""
        if isinstance(self.lock, OSError):
            _exit(self.lock)
        self.running = True
        self._listen()  # again: at SIGTERM, Snakemake's own handler waits for the runs' end

    def on_error(self, steps: list[str]) -> None:
        """Say that the workflow was stopped, or write the report of what failed."""
        if self.signals:
            print(STOPPED, file=sys.stderr)
        else:
            from thyroid_lib.study import report  # loads torch, which most starts do without

            # in this process: one of its own would outlive a kill and write into the next start
            report.main([str(self.study), "--steps", *steps])

    def _listen(self) -> None:
        for number in stopping.signals():
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame) -> None:
        """End the notebooks, each after saving its state, then the workflow."""
        if not self.running:
            print(STOPPED, file=sys.stderr, flush=True)
            os._exit(128 + number)
        self.signals.append(number)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "ipykernel_launcher" not in process.cmdline():  # its runner stops the kernel
                    process.send_signal(signal.SIGTERM)
        if len(self.signals) == 1:  # a second exception would interrupt Snakemake's own clean-up
            raise KeyboardInterrupt


def _exit(error: OSError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _is_news(record) -> bool:
    """Return whether a line of Snakemake's log goes to the terminal."""
    quiet = getattr(record, "event", None) in QUIET_EVENTS
    return not (quiet or str(record.msg).startswith(QUIET_MESSAGES))
