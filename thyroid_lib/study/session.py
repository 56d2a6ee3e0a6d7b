"""One start of a study's workflow: locking its folder, stopping it by signal, its end after errors.

Only workflow/Snakefile uses this module, and nothing here decides a result.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from snakemake_interface_logger_plugins.common import LogEvent

from thyroid_lib.files import stopping
from thyroid_lib.study import checksums, second_copy

STOPPED = "stopped: start again and it goes on"
# Messages that come with every job; the runner prints a line for each of them.
QUIET_EVENTS = LogEvent.JOB_FINISHED, LogEvent.RESOURCES_INFO, LogEvent.JOB_ERROR
QUIET_MESSAGES = "Select jobs to execute", "Execute ", "RuleException"


class Session:
    """The process that runs a study's workflow.

    Args:
        study: the study's folder.
    """

    def __init__(self, study: str | Path):
        self.study = Path(study)
        self.dry_run = any(
            re.fullmatch(r"--dry-?run|-[a-z]*n[a-z]*", word) for word in sys.argv[1:]
        )
        self.lock: object = None  # held until this process ends
        self.refusal: OSError | None = None
        self.running = False
        self.signals: list[int] = []  # that arrived
        os.environ["THYROID_WORKFLOW_PID"] = str(os.getpid())  # the runners watch this process

    def begin(self, budget_minutes: float = 0) -> None:
        """Lock the study's folder, repair it and listen to signals; before Snakemake looks at it.

        A folder that another workflow holds is an error only when steps are to run (`on_start`).
        """
        if budget_minutes:
            os.environ.setdefault("THYROID_DEADLINE", str(time.time() + 60 * budget_minutes))
        second_copy.keep_chosen()  # also brings back what an earlier session copied elsewhere
        try:
            self.lock = checksums.claim(self.study)
            checksums.mend(self.study)
            checksums.settle_times(self.study)
        except BlockingIOError as error:
            self.refusal = error
            return
        except OSError as error:
            self._refuse(error)
        self._listen()

    def on_start(self) -> None:
        """Refuse to run steps in a folder that is not locked by this process."""
        if self.refusal:
            self._refuse(self.refusal)
        self.running = True
        self._listen()  # again: at SIGTERM, Snakemake's own handler waits for the runs' end

    def on_error(self, steps: list[str], runs: list[str]) -> None:
        """Say that it was stopped, or write the report of what failed."""
        if self.signals:
            print(STOPPED, file=sys.stderr)
        else:
            command = [sys.executable, "-m", "thyroid_lib.study.report", str(self.study)]
            subprocess.run([*command, "--runs", *runs, "--steps", *steps])

    def _refuse(self, error: OSError) -> None:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

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


def is_news(log_record) -> bool:
    """Return whether a line of Snakemake's log goes to the terminal; a filter for `logging`."""
    quiet = getattr(log_record, "event", None) in QUIET_EVENTS
    return not quiet and not str(log_record.msg).startswith(QUIET_MESSAGES)
