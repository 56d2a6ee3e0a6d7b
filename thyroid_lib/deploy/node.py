"""A DICOM node: takes ultrasound from a PACS and gives it segmentation and report back.

    python -m thyroid_lib.deploy.node serve --model results/demo/deploy --aet THYROID \\
        --port 11112 --caller ORTHANC --pacs http://127.0.0.1:8042/dicom-web --queue queue
    python -m thyroid_lib.deploy.node study --model results/demo/deploy --study-uid UID \\
        --pacs http://127.0.0.1:8042/dicom-web --out areas.csv

`serve` answers a C-STORE with success only when the object, decoded once, lies whole in the queue's
folder; it leaves that when the PACS has confirmed SEG and SR (STOW-RS), whose UIDs follow from the
object's: what comes twice has one answer. `study` measures what is in the PACS (QIDO-RS, WADO-RS).
The log names an object by 12 digits of the SHA-256 of its SOP Instance UID and quotes nothing of
it. THYROID_PACS_USER and THYROID_PACS_PASSWORD are for a PACS that asks for them.
"""

import argparse
import csv
import hashlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

import pynetdicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset, validate_file_meta
from pynetdicom import evt

from thyroid_lib.deploy import dicom
from thyroid_lib.deploy.predictor import OPTIONS, ROW, Predictor, open_asked, table_csv
from thyroid_lib.files import locks
from thyroid_lib.files.writing import write_file

VERIFICATION = "1.2.840.10008.1.1"
SOP_CLASSES = dicom.SINGLE + dicom.SEVERAL
PDU = 1 << 17  # bytes
SILENT = 10  # seconds: until a connection asks for something, and for a PDU to come
DEATHS = 5  # of the node over one object, before it is given up
LONGEST, GRACE, PATIENCE = 60.0, 8.0, 300.0  # seconds: between two tries, at SIGTERM, to decode
COLUMNS = (
    "study", "instance", "model", "frame", "frames", "height", "width", *ROW, "stored", "problem",
)  # fmt: skip
TAGS = ("00080016", "0020000E", "00080018")  # SOP class, series, SOP instance, as QIDO-RS has them
log = logging.getLogger("thyroid_lib.node")


def tag_of(found: dict, tag: str) -> str:
    """Return the value of a tag as QIDO-RS has it; "" where it has none."""
    return (found.get(tag, {}).get("Value") or [""])[0]


def pacs_client(url: str) -> DICOMwebClient:
    """Return one HTTP session with a PACS, which fails at once: patience is the queue's."""
    session = requests.Session()
    if user := os.environ.get("THYROID_PACS_USER"):
        session.auth = (user, os.environ.get("THYROID_PACS_PASSWORD", ""))
    client = DICOMwebClient(url, session=session, timeout=(5, 120))
    client.set_http_retry_params(retry=False)
    return client


def http_answer(error: requests.RequestException) -> str:
    """Say with what status the PACS answered; "" where it did not answer."""
    status = getattr(error.response, "status_code", None)
    return f"the PACS answers HTTP {status}" if status else ""


class NotConfirmed(requests.RequestException):
    """The PACS does not say that it has the object, and may have it later."""


def stow(client: DICOMwebClient, objects) -> None:
    """Store objects, one by one; stored is what the PACS names as stored, or has when asked.

    No status is enough: a proxy's page and the list behind a redirection come with 200, too.

    Raises:
        Refused: the PACS does not want one of them, and will not want it later.
        requests.RequestException: it does not answer, or not now.
    """
    for each in objects:
        each.preamble = bytes(128)
        each.file_meta.FileMetaInformationGroupLength = 0  # which writing puts right
        validate_file_meta(each.file_meta, enforce_standard=True)  # and adds what is missing
        each.save_as(BytesIO())  # what fails here is not the PACS's answer
        told, problem, own = Dataset(), "", each.SOPInstanceUID
        try:
            told = client.store_instances([each])
        except requests.HTTPError as error:
            if error.response.status_code not in (400, 406, 409, 413, 415, 422):
                raise
            problem = f"HTTP {error.response.status_code}"
            with suppress(Exception):  # its body may say why
                told = Dataset.from_json(error.response.text)
        except requests.RequestException:
            raise
        except Exception:  # an answer that cannot be read
            log.debug("the PACS's answer is no DICOM")
        named = told.get("ReferencedSOPSequence") or []
        stored = own in [one.get("ReferencedSOPInstanceUID") for one in named]
        for one in told.get("FailedSOPSequence") or []:
            reason = one.get("FailureReason")
            if not isinstance(reason, int) or reason >> 8 == dicom.TOO_LARGE >> 8:
                raise NotConfirmed  # it has no room, and may have some later
            stored, problem = reason == 0x0111, f"0x{reason:04X}"  # 0x0111: is there
        if not stored and problem in ("", "HTTP 409"):  # which it may say of what it has
            found = client.search_for_instances(
                each.StudyInstanceUID, search_filters={"SOPInstanceUID": own}
            )
            stored = own in [tag_of(one, "00080018") for one in found]
        if not stored and problem:
            raise dicom.Refused(f"the PACS refuses the answer: {problem}")
        if not stored:
            raise NotConfirmed


class Queue:
    """Objects that wait for their answer, each a file: what has been put here survives a kill.

    A file is called <arrival>-<name>.<deaths>.dcm, and .working while it is being answered.

    Raises:
        ValueError: another process has this folder.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.arrived = Path(folder), threading.Condition()
        (self.folder / "failed").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.lock = locks.take(self.folder / "lock")
        if self.lock is None:
            raise ValueError(
                f"another node has the queue {folder}: stop it, or give another folder"
            )
        for left in self.files("new", r"new\.\d+\.partial"):
            left.unlink()  # whose senders were not told of success
        for left in self.files("working"):  # a node died over it: others come first now
            name, deaths = self.name(left), int(left.stem.rpartition(".")[2]) + 1
            left = left.replace(self._path(name, deaths))
            if deaths >= DEATHS:
                self.give_up(left, f"the node ended {deaths} times while it was at it")
        self.waiting = deque(self.files("dcm"))

    def files(self, *endings: str) -> list[Path]:
        """Return the queue's own files of these endings, the oldest first."""
        own = re.compile(rf"\d{{20}}-[^.]+\.\d+\.({'|'.join(endings)})")
        return sorted(file for file in self.folder.iterdir() if own.fullmatch(file.name))

    def _path(self, name: str, deaths: int = 0) -> Path:
        return self.folder / f"{time.time_ns():020d}-{name}.{deaths}.dcm"

    @staticmethod
    def name(path: Path) -> str:
        """Return what the log calls the object in this file."""
        return path.stem.partition("-")[2].partition(".")[0]

    def write(self, name: str, content: bytes) -> Path:
        """Write an object to the disk, where it does not count yet. OSError: no room for it."""
        return write_file(self._path(name).with_suffix(".new"), content)

    def put(self, path: Path) -> None:
        """Take what `write` wrote; when this returns, it outlives a loss of power, too."""
        path = path.replace(path.with_suffix(".dcm"))
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(self.folder, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
        with self.arrived:
            self.waiting.append(path)
            self.arrived.notify()

    def give_up(self, path: Path, reason: str) -> None:
        """Move an object out of the way of others, with the reason beside it."""
        log.error("object %s: given up, kept in failed/: %s", self.name(path), reason)
        path.replace(kept := self.folder / "failed" / f"{path.stem}.dcm")
        with suppress(OSError):  # the disk may be full
            write_file(kept.with_suffix(".txt"), reason + "\n")


class Worker(threading.Thread):
    """Answers the objects of a queue, one after the other, until it is told to stop."""

    def __init__(self, queue: Queue, client: DICOMwebClient, answer):
        super().__init__(daemon=True)
        self.queue, self.client, self.answer = queue, client, answer
        self.stopping, self.failures = threading.Event(), 0

    def run(self):
        while not self.stopping.is_set():
            with self.queue.arrived:
                while not (self.queue.waiting or self.stopping.is_set()):
                    self.queue.arrived.wait()
                path = self.queue.waiting.popleft() if self.queue.waiting else None
            if path and not self.stopping.is_set():
                try:
                    self.serve(path)
                except OSError as error:  # of the queue's own disk
                    self.later(path, type(error).__name__)

    def stop(self):
        """Finish the object at work, and no other."""
        self.stopping.set()
        with self.queue.arrived:
            self.queue.arrived.notify()

    def serve(self, path: Path) -> None:
        """Answer one object, and only then forget it; where that is not possible now, wait."""
        name, began, why = self.queue.name(path), time.monotonic(), ""
        working = path.with_suffix(".working")
        try:
            if not working.exists():
                path.replace(working)
            answers = self.answer(dicom.read_file(working))
            computed = time.monotonic()
            stow(self.client, answers)
            working.unlink()
        except requests.RequestException as error:
            why = http_answer(error) or type(error).__name__
        except dicom.Refused as error:
            self.queue.give_up(working, str(error))
        except (OSError, MemoryError) as error:  # of this machine
            why = type(error).__name__
        except Exception as error:  # whose words might quote the object
            self.queue.give_up(working, f"{type(error).__name__} while it was being answered")
        else:
            self.failures = 0
            took = computed - began, time.monotonic() - computed
            log.info("object %s: answered, computed in %.3f s, stored in %.3f s", name, *took)
        if why:
            self.later(path, why)

    def later(self, path: Path, why: str) -> None:
        """Put an object at the end, and wait, the longer the more often nothing went well."""
        working = path.with_suffix(".working")
        with suppress(OSError):  # else it stays so, and is found so
            working.replace(path)
        if path.exists() or working.exists():
            self.queue.waiting.append(path)
        pause = min(0.5 * 2 ** min(self.failures, 10), LONGEST)
        self.failures += 1
        name = self.queue.name(path)
        log.warning("object %s: not answered yet: %s; next try in %.1f s", name, why, pause)
        self.stopping.wait(pause)


def why_not(source) -> tuple[str, int] | None:
    """Return reason and status why an object, bytes or path, is refused; None if it is not."""
    try:
        for _ in dicom.read_frames(dicom.read_file(source)):
            pass
    except dicom.Refused as error:
        return str(error), error.status
    except Exception as error:  # whose words might quote the object
        status = dicom.TOO_LARGE if isinstance(error, (OSError, MemoryError)) else dicom.BROKEN
        return f"{type(error).__name__} while it was being decoded", status


def decode_for(pipe) -> None:
    """Answer `why_not` until the other end is closed, or the node is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError):  # where there is none, there are no cores
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # they would hold patients' pixels
    with suppress(EOFError, OSError):
        while True:
            pipe.send(why_not(pipe.recv()))


class Decoder:
    """Tries in a process of its own whether an object can be decoded: gdcm's errors may end it."""

    def __init__(self):
        self.lock, self.process = threading.Lock(), None
        self.start()

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=decode_for, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def check(self, source) -> None:
        """Decode all frames of an object, bytes or path. Refused: that did not go well."""
        for _ in "12":  # it may have died of something else
            with self.lock:
                try:
                    self.pipe.send(source)
                    if not self.pipe.poll(PATIENCE):
                        raise TimeoutError
                    refused = self.pipe.recv()
                    break
                except (EOFError, OSError) as error:
                    refused = "its pixels bring the decoder down, or to no end", dicom.BROKEN
                    self.process.kill()
                    self.process.join()
                    self.start()
                    if isinstance(error, TimeoutError):
                        break
        if refused:
            raise dicom.Refused(*refused)


class Discard(BytesIO):
    """Takes the rest of an object that is too large."""

    def write(self, data):
        return len(data)


def bound(event, limit: int) -> None:
    """Hold a connection to limits that pynetdicom does not know: size of PDU and object, pace."""
    assoc, connection = event.assoc, event.assoc.dul.socket.socket
    connection.settimeout(SILENT)
    if len(assoc.ae.active_associations) > 4 * assoc.ae.maximum_associations:  # asked or silent
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    current, began, got = None, 0.0, 0  # the message at hand: since when, and bytes

    def recv(count: int) -> bytearray:
        nonlocal current, began, got
        message, data, now = assoc.dimse.message, bytearray(), time.monotonic()
        if message is not current:
            current, began, got = message, now, 0
        if message and now - began > SILENT * (2 + got / PDU):
            raise OSError("slower than a PDU's bytes in that time")
        got, until = got + count, now + SILENT
        if count > PDU or (message and message.encoded_command_set.tell() > PDU):
            raise OSError("a longer PDU or command than was agreed on")
        if message and message.data_set.tell() > limit:
            message.data_set = Discard()
        while len(data) < count:  # within SILENT in all: a byte now and then is silence, too
            connection.settimeout(max(0.001, until - time.monotonic()))
            if not (part := connection.recv(count - len(data))):
                break
            data += part
        connection.settimeout(SILENT)  # as it was, for what is sent
        return data

    event.assoc.dul.socket.recv = recv


def receive(event, queue: Queue, decoder: Decoder) -> int:
    """Answer a C-STORE; 0x0000 when the object can be decoded and lies in the queue."""
    request = event.request
    announced = request.AffectedSOPClassUID, request.AffectedSOPInstanceUID
    name = hashlib.sha256(str(announced[1]).encode()).hexdigest()[:12]
    path = None
    try:
        if isinstance(request.DataSet, Discard):
            raise dicom.Refused("larger than --max-mib", dicom.TOO_LARGE)
        if announced[0] not in SOP_CLASSES:
            raise dicom.Refused("announced as another class than ultrasound", dicom.NO_SUCH_CLASS)
        content = event.encoded_dataset()
        dataset = dicom.read_file(content)
        if (dataset.get("SOPClassUID"), dataset.get("SOPInstanceUID")) != announced:
            raise dicom.Refused("holds another object than was announced", dicom.NOT_FITTING)
        dicom.check(dataset)
        path, size = queue.write(name, content), len(content)
        del content, dataset  # there may be a queue before the decoder
        decoder.check(path)
        queue.put(path)
    except dicom.Refused as error:
        status, why = error.status, str(error)
    except (OSError, MemoryError) as error:
        code = getattr(error, "errno", None)  # its own words are for a person at a terminal
        status, why = dicom.TOO_LARGE, os.strerror(code) if code else type(error).__name__
    except Exception as error:  # whose words might quote the object
        status, why = dicom.BROKEN, f"{type(error).__name__} while it was being read"
    else:
        log.info("object %s: received, %d bytes", name, size)
        return 0x0000
    if path:
        path.unlink(missing_ok=True)
    log.error("object %s: refused with 0x%04X: %s", name, status, why)
    return status


def serve(asked, predictor: Predictor):
    """Receive and answer until SIGTERM or Ctrl-C, which end the process."""
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    if asked.max_mib < 1 or asked.associations < 1:
        raise ValueError("--max-mib and --associations: need 1 or more")
    queue = Queue(asked.queue)
    decoder = Decoder()
    worker = Worker(queue, pacs_client(asked.pacs), partial(dicom.answer, predictor=predictor))
    ae = pynetdicom.AE(ae_title=asked.aet)
    ae.require_called_aet, ae.require_calling_aet = True, asked.caller
    ae.maximum_associations, ae.maximum_pdu_size = asked.associations, PDU
    ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = SILENT, 60, 60
    ae.add_supported_context(VERIFICATION)
    for sop_class in SOP_CLASSES:
        ae.add_supported_context(sop_class, list(dicom.SYNTAXES))
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    handlers = [
        (evt.EVT_CONN_OPEN, bound, [asked.max_mib << 20]),
        (evt.EVT_REJECTED, lambda event: log.warning("association rejected: caller or called AET")),
        (evt.EVT_C_STORE, receive, [queue, decoder]),
    ]
    where = f"{asked.host}:{asked.port}"
    try:
        ae.start_server((asked.host, asked.port), block=False, evt_handlers=handlers)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {where} ({error}): give --host or --port") from error
    log.info("%s listens on %s, %d objects wait", asked.aet, where, len(queue.waiting))
    worker.start()
    stop.wait()
    closing = threading.Thread(target=ae.shutdown, daemon=True)  # waits for who does not answer
    closing.start()
    worker.stop()
    worker.join(GRACE)
    closing.join(1)
    for left in queue.files("working"):  # begun anew next time, and no death
        with suppress(FileNotFoundError):
            left.replace(left.with_suffix(".dcm"))
    log.info("stopped, %d objects wait", len(queue.files("dcm")))
    os._exit(0)  # threads of pynetdicom would hold on for who is silent


def finished(out: Path) -> dict[tuple, list[dict]]:
    """Return the rows of what an earlier run has measured to the end, by instance and model.

    Raises:
        ValueError: the table is not one of this command.
    """
    rows, text = {}, out.read_text("utf-8") if out.is_file() else ""
    if text and text.partition("\n")[0] != ",".join(COLUMNS):
        raise ValueError(f"{out} is another table than this command writes: give another --out")
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):  # whole lines
        rows.setdefault((row["instance"], row["model"]), []).append(row)
    return {key: own for key, own in rows.items() if len(own) == int(own[0]["frames"])}


def measure(content: bytes, predictor: Predictor, decoder: Decoder) -> tuple[list[dict], tuple]:
    """Return a row of areas for each frame of an object, and SEG and SR."""
    decoder.check(content)
    dataset, told = dicom.read_file(content), []
    answers = dicom.answer(dataset, predictor, told=told)
    size = {"height": dataset.Rows, "width": dataset.Columns}
    return [size | {"frame": n} | each.row() for n, each in enumerate(told, 1)], answers


def find_objects(client: DICOMwebClient, study_uid: str) -> list[list[str]]:
    """Return SOP class, series and SOP instance of each object of a study, page by page."""
    found = {}
    while True:
        page = client.search_for_instances(study_uid, offset=len(found) or None)
        if not all(isinstance(each, dict) for each in page):
            raise requests.exceptions.ContentDecodingError
        page = {tag_of(each, TAGS[-1]): [tag_of(each, tag) for tag in TAGS] for each in page}
        if not page.keys() - found:  # an old PACS has but one page, whatever is asked for
            return list(found.values())
        found |= page


def study(asked, predictor: Predictor) -> int:
    """Write the areas of all ultrasound of some studies; what is in the table is not done again.

    Returns:
        1 if a study has no ultrasound, or an object could not be measured: its row has a `problem`.
    """
    client, decoder, out, failed = pacs_client(asked.pacs), Decoder(), Path(asked.out), 0
    uids = [uid for each in asked.study_uid if (uid := each.strip())]
    model = predictor.about.get("run_id", predictor.about["model"])
    model += "" if asked.precision == "fp32" else f" {asked.precision}"
    done = {
        key: own for key, own in finished(out).items()
        if own[0]["study"] not in uids
        or not (own[0]["problem"] or (asked.store and not own[0]["stored"]))
    }  # fmt: skip
    lines = [table_csv(own).partition("\n")[2] for own in done.values()]
    write_file(out, ",".join(COLUMNS) + "\n" + "".join(lines))  # less what was half written
    for uid in uids:
        try:
            found = [each for each in find_objects(client, uid) if each[0] in SOP_CLASSES]
        except requests.HTTPError as error:
            if error.response.status_code not in (400, 404):
                raise
            failed += 1
            print(f"{http_answer(error)} when asked for study {uid}", file=sys.stderr)
            continue
        if not found:
            failed += 1
            print(f"no ultrasound in study {uid}", file=sys.stderr)
        for _, series, instance in found:
            if (instance, model) in done:
                continue
            rows, problem, content = [{}], "", BytesIO()
            try:
                client.retrieve_instance(uid, series, instance).save_as(content)
                rows, answers = measure(content.getvalue(), predictor, decoder)
                if asked.store:
                    stow(client, answers)
            except dicom.Refused as error:
                problem = str(error)
            except requests.HTTPError as error:
                problem = http_answer(error)
            except requests.RequestException:
                raise
            except Exception as error:  # whose words might quote the object
                problem = f"{type(error).__name__} while it was being measured"
            failed += bool(problem)
            same = {"study": uid, "instance": instance, "model": model, "problem": problem}
            same["stored"] = "yes" if asked.store and not problem else ""
            rows = [dict.fromkeys(COLUMNS, "") | row | same | {"frames": len(rows)} for row in rows]
            with open(out, "a", encoding="utf-8") as file:
                file.write(table_csv(rows).partition("\n")[2])
            done[instance, model] = rows
    print(f"areas are in {out}" + (f", {failed} problems" if failed else ""))
    return int(failed > 0)


SHARED = OPTIONS | {"--pacs": {"required": True, "help": "its DICOMweb address"}}
COMMANDS = {
    serve: {
        "--aet": {"default": "THYROID", "help": "AE title that callers must call"},
        "--host": {"default": "127.0.0.1", "help": "address to listen on"},
        "--port": {"default": 11112, "type": int},
        "--caller": {"required": True, "nargs": "+", "help": "AE titles that may call"},
        "--queue": {"required": True, "help": "folder for what waits for its answer"},
        "--max-mib": {"default": dicom.MAX_BYTES >> 20, "type": int, "help": "of one object"},
        "--associations": {"default": 8, "type": int, "help": "at a time"},
    },
    study: {
        "--study-uid": {"required": True, "nargs": "+", "help": "or @file, one a line"},
        "--out": {"default": "areas.csv", "help": "table, a row per frame"},
        "--store": {"action": "store_true", "help": "store SEG and SR, too"},
    },
}


def main() -> int:
    """Run the node, or measure studies; exit 1 if something could not be measured, 2 on errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for run, options in COMMANDS.items():
        words = {"fromfile_prefix_chars": "@", "help": run.__doc__.partition("\n")[0]}
        command = commands.add_parser(run.__name__, **words)
        for option, how in (SHARED | options).items():
            command.add_argument(option, **how)
        command.set_defaults(run=run)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's quote values, and so do the logs of others
    logging.getLogger().addHandler(logging.NullHandler())
    log.addHandler(said := logging.StreamHandler())
    said.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    threading.excepthook = lambda told: log.error("a thread ended by %s", told.exc_type.__name__)
    try:
        return asked.run(asked, open_asked(asked))
    except requests.RequestException as error:
        what = http_answer(error) or f"the PACS does not answer ({type(error).__name__})"
        print(f"error: {what}: look at --pacs, start it again", file=sys.stderr)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
