"""DICOM node: receives ultrasound from a PACS and stores segmentation and report there.

    python -m thyroid_lib.deploy.node serve --model results/demo/deploy --aet THYROID \\
        --port 11112 --caller ORTHANC --pacs http://127.0.0.1:8042/dicom-web --queue queue
    python -m thyroid_lib.deploy.node study --model results/demo/deploy --study-uid UID \\
        --pacs http://127.0.0.1:8042/dicom-web --out areas.csv

`serve` confirms a C-STORE once the object was decoded and lies in the queue on disk. `study`
measures what is in the PACS already (QIDO-RS, WADO-RS). The log names an object by 12 digits of the
SHA-256 of its SOP Instance UID. THYROID_PACS_USER and THYROID_PACS_PASSWORD log in to the PACS.
"""

import argparse
import csv
import hashlib
import logging
import os
import signal
import sys
import threading
import warnings
from functools import partial
from io import BytesIO
from pathlib import Path

from thyroid_lib.deploy.predict_folder import OPTIONS, open_model, table_csv
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.files.packages import packages
from thyroid_lib.files.writing import write_file

with packages("dicomweb_client", "highdicom", "pydicom", "pynetdicom", module=__name__):
    import pynetdicom
    import requests
    from pynetdicom import evt

    from thyroid_lib.data import dicom
    from thyroid_lib.deploy import pacs
    from thyroid_lib.deploy.decoder import Decoder
    from thyroid_lib.deploy.object_queue import Queue
    from thyroid_lib.deploy.structured_report import answer

SOP_CLASSES = dicom.SINGLE + dicom.SEVERAL
PDU = 1 << 17  # bytes
SILENCE = 10  # seconds until a first request, and between bytes of a PDU
OBJECT = ("study", "instance", "model", "frame", "frames", "height", "width")
log = logging.getLogger("thyroid_lib.node")


class Discard(BytesIO):  # in place of the rest of an object that is too large
    def write(self, data):
        return len(data)


def limit_connection(event) -> None:
    """Add limits that pynetdicom lacks: on silence, and on the length of a PDU."""
    connection = event.assoc.dul.socket
    usual = connection.recv

    def recv(count: int) -> bytearray:
        if count > PDU:
            raise OSError("a longer PDU than was agreed on")
        return usual(count)

    connection.socket.settimeout(SILENCE)
    connection.recv = recv


def limit_object(event, max_bytes: int) -> None:
    """Keep no more of an object than its limit, after each PDU."""
    message = event.assoc.dimse.message
    if message and message.data_set.tell() > max_bytes:
        message.data_set = Discard()


def receive(event, queue: Queue, decoder: Decoder) -> int:
    """Handle a C-STORE; 0x0000 when the object can be decoded and is in the queue."""
    request = event.request
    announced = request.AffectedSOPClassUID, request.AffectedSOPInstanceUID
    name = hashlib.sha256(str(announced[1]).encode()).hexdigest()[:12]
    try:
        if isinstance(request.DataSet, Discard):
            raise dicom.Refused("larger than --max-mib", dicom.TOO_LARGE)
        if announced[0] not in SOP_CLASSES:
            raise dicom.Refused("announced as another class than ultrasound", dicom.NO_SUCH_CLASS)
        content, request.DataSet = event.encoded_dataset(), None  # one copy waits for the decoder
        dataset = dicom.read_file(content)
        if (dataset.get("SOPClassUID"), dataset.get("SOPInstanceUID")) != announced:
            raise dicom.Refused("holds another object than was announced", dicom.NOT_FITTING)
        del dataset
        decoder.check(content)
        queue.put(name, content)
    except Exception as error:
        refused = dicom.as_refusal(error)
        log.error("object %s: refused with 0x%04X: %s", name, refused.status, refused)
        return refused.status
    log.info("object %s: received, %d bytes", name, len(content))
    return 0x0000


def serve(arguments, predictor: Predictor):
    """Receive and answer until SIGTERM or Ctrl-C, which end the process."""
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    client, answering = pacs.pacs_client(arguments.pacs), partial(answer, predictor=predictor)
    queue, decoder = Queue(arguments.queue, client, answering), Decoder()
    ae = pynetdicom.AE(ae_title=arguments.aet)
    ae.require_called_aet, ae.require_calling_aet = True, arguments.caller
    ae.maximum_associations, ae.maximum_pdu_size = arguments.associations, PDU
    ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = SILENCE, 60, 60
    ae.add_supported_context("1.2.840.10008.1.1")  # Verification
    for sop_class in SOP_CLASSES:
        ae.add_supported_context(sop_class, list(dicom.SYNTAXES))
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    handlers = [
        (evt.EVT_CONN_OPEN, limit_connection),
        (evt.EVT_PDU_RECV, limit_object, [arguments.max_mib << 20]),
        (evt.EVT_REJECTED, lambda event: log.warning("association rejected: caller or called AET")),
        (evt.EVT_C_STORE, receive, [queue, decoder]),
    ]
    where = f"{arguments.host}:{arguments.port}"
    try:
        ae.start_server((arguments.host, arguments.port), block=False, evt_handlers=handlers)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {where} ({error}): give --host or --port") from error
    log.info("%s listens on %s, %d objects wait", arguments.aet, where, queue.waiting.qsize())
    queue.start()
    stop.wait()
    queue.stop(8.0)  # seconds for the current object
    log.info("stopped, %d objects wait", len(queue.files("dcm")))
    os._exit(0)  # ends pynetdicom's threads, which would wait for silent callers


def read_finished(table: Path, columns: tuple[str, ...]) -> dict[tuple, list[dict]]:
    """Return the rows of objects that were measured whole, by instance and model."""
    rows, text = {}, table.read_text("utf-8") if table.is_file() else ""
    if text and text.partition("\n")[0] != ",".join(columns):
        raise ValueError(f"{table} is another table than this command writes: give another --out")
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):  # whole lines
        rows.setdefault((row["instance"], row["model"]), []).append(row)
    count = lambda row: int(row["frames"]) * int(row.get("classes") or 1)  # noqa: E731
    return {key: own for key, own in rows.items() if len(own) == count(own[0])}


def measure(client, found: tuple, predictor: Predictor, decoder: Decoder, store: bool) -> list:
    """Measure an object, by study, series and instance UID: a row per frame and class, or one."""
    content, measured, rows, problem = BytesIO(), [], [{"frames": 1}], ""
    try:
        client.retrieve_instance(*found).save_as(content)
        decoder.check(content.getvalue())
        dataset = dicom.read_file(content.getvalue())
        answers = answer(dataset, predictor, measured=measured)
        size = {"height": dataset.Rows, "width": dataset.Columns, "frames": len(measured)}
        size |= {"classes": len(predictor.classes)} if len(predictor.classes) > 1 else {}
        numbered = enumerate(measured, 1)
        rows = [size | {"frame": n} | row for n, each in numbered for row in each.rows()]
        if store:
            pacs.store(client, answers)
    except Exception as error:
        problem = pacs.http_status(error)
        if isinstance(error, requests.RequestException) and not problem:
            raise
        problem = problem or str(dicom.as_refusal(error))
    same = {"problem": problem, "stored": "yes" * (store and not problem)}
    return [row | same for row in rows]


def study(arguments, predictor: Predictor) -> int:
    """Write the areas of all ultrasound of some studies; rows in the table are kept."""
    several = ("classes",) * (len(predictor.classes) > 1)
    columns = (*OBJECT, *several, *predictor.columns, "stored", "problem")
    client, decoder, out = pacs.pacs_client(arguments.pacs), Decoder(), Path(arguments.out)
    uids, problems = {uid for each in arguments.study_uid if (uid := each.strip())}, 0
    model = predictor.about.get("run_id", predictor.name)
    model += "" if arguments.precision == "fp32" else f" {arguments.precision}"
    done = {
        key: own for key, own in read_finished(out, columns).items()
        if own[0]["study"] not in uids
        or not (own[0]["problem"] or (arguments.store and not own[0]["stored"]))
    }  # fmt: skip
    kept = [row for own in done.values() for row in own]
    write_file(out, table_csv(kept, columns))  # without half-written objects
    for uid in sorted(uids):
        found = [each for each in pacs.find_objects(client, uid) if each[0] in SOP_CLASSES]
        if not found:
            problems += 1
            print(f"no ultrasound in study {uid}", file=sys.stderr)
        for _, series, instance in found:
            if (instance, model) in done:
                continue
            rows = measure(client, (uid, series, instance), predictor, decoder, arguments.store)
            problems += bool(rows[0]["problem"])
            same = {"study": uid, "instance": instance, "model": model}
            with open(out, "a", encoding="utf-8") as file:
                file.write(table_csv([row | same for row in rows], columns, header=False))
    print(f"areas are in {out}" + (f", {problems} problems" if problems else ""))
    return int(problems > 0)


SHARED = OPTIONS | {"--pacs": {"required": True, "help": "its DICOMweb address"}}
COMMANDS = {
    serve: {
        "--aet": {"default": "THYROID", "help": "AE title of this node"},
        "--host": {"default": "127.0.0.1", "help": "address to listen on"},
        "--port": {"default": 11112, "type": int},
        "--caller": {"required": True, "nargs": "+", "help": "AE titles that may call"},
        "--queue": {"required": True, "help": "folder of objects that wait for their answer"},
        "--max-mib": {"default": dicom.MAX_BYTES >> 20, "type": int, "help": "of one object"},
        "--associations": {"default": 8, "type": int, "help": "at a time"},
    },
    study: {
        "--study-uid": {"required": True, "nargs": "+", "help": "or @file, one per line"},
        "--out": {"default": "areas.csv", "help": "table, a row per frame"},
        "--store": {"action": "store_true", "help": "also store segmentation and report"},
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
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # warnings and logs of libraries quote values
    logging.getLogger().addHandler(logging.NullHandler())
    log.addHandler(handler := logging.StreamHandler())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    threading.excepthook = lambda of: log.error("a thread ended by %s", of.exc_type.__name__)
    try:
        return arguments.run(arguments, open_model(arguments))
    except requests.RequestException as error:
        reason = pacs.http_status(error) or f"the PACS does not answer ({type(error).__name__})"
        print(f"error: {reason}: check --pacs, then start again", file=sys.stderr)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
