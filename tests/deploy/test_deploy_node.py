"""The DICOM node beside a real Orthanc: routed, answered, refused, killed."""

import errno
import http.server
import io
import json
import logging
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ellipse_pair

pydicom = pytest.importorskip("pydicom")
pynetdicom = pytest.importorskip("pynetdicom")
pytest.importorskip("dicomweb_client")
pytest.importorskip("gdcm")
import requests  # noqa: E402
from dicoms import SYNTAXES, make_us, to_bytes  # noqa: E402
from pacs import PASSWORD, Pacs, free_port, node_environment, wait_for  # noqa: E402
from pydicom.filereader import dcmread  # noqa: E402
from pynetdicom.dimse_primitives import C_STORE  # noqa: E402
from test_deploy_dicom import mutate, painted  # noqa: E402

from thyroid_lib.deploy import dicom, node  # noqa: E402
from thyroid_lib.deploy.predictor import Predictor  # noqa: E402

US, CINE, CT = (
    "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.2",
)
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33"


class Node:
    """The node as a process, as a site runs it; `log` is all that it says."""

    def __init__(self, folder: Path, release: Path, *, port: int, pacs: str, more=(), limit=0):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.queue, self.port = folder, folder / "queue", port
        self.command = [
            sys.executable, "-m", "thyroid_lib.deploy.node", "serve", "--model", release,
            "--port", str(port), "--caller", "ORTHANC", "--pacs", pacs, "--queue", self.queue,
            *more,
        ]  # fmt: skip
        self.limit, self.process = limit, None

    def start(self):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))

        said = self.log.count(" listens on ")
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env=node_environment(),
                preexec_fn=limited if self.limit else None,
            )
        wait_for(lambda: self.log.count(" listens on ") > said or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.is_file() else ""

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log[-2000:]

    def call(
        self, *, syntax="explicit", caller="ORTHANC", called="THYROID", classes=(US, CINE),
        seconds=30,
    ):  # fmt: skip
        """An association with the node."""
        ae = pynetdicom.AE(caller)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = seconds
        for each in classes:
            ae.add_requested_context(each, SYNTAXES[syntax])
        return ae.associate("127.0.0.1", self.port, ae_title=called)


def send(association, content: bytes, *, uid: str, sop: str = US, context: int = 0) -> int | None:
    """C-STORE the bytes of a data set as they are; the status, None where there is no answer."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop, uid
    request.DataSet = io.BytesIO(content)
    contexts = {each.abstract_syntax: each.context_id for each in association.accepted_contexts}
    association._reactor_checkpoint.clear()  # as its own send_c_store does
    association.dimse.send_msg(request, context or contexts[sop])
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return answer.Status if answer is not None and answer.Status is not None else None


def data_set(dataset) -> bytes:
    """The bytes that C-STORE sends of an object: without file meta information."""
    content = to_bytes(dataset)
    file = io.BytesIO(content)
    pydicom.filereader.read_preamble(file, False)
    pydicom.filereader._read_file_meta_info(file)
    return content[file.tell() :]


def one(index: int, **how):
    """A small frame of its own."""
    image = ellipse_pair(np.random.default_rng(index), 64, 64)[0]
    return make_us(image, uid=f"1.2.826.0.1.99.5.{index + 1}", **how)


def stored(pacs: Pacs, sop: str) -> list:
    """All objects of a class that Orthanc has, each fetched."""
    query = {"Level": "Instance", "Query": {"SOPClassUID": sop}}
    found = pacs.session.post(f"{pacs.url}/tools/find", json=query, timeout=60).json()
    return [dcmread(io.BytesIO(pacs.get(f"/instances/{each}/file").content)) for each in found]


def count(pacs: Pacs, sop: str) -> int:
    query = {"Level": "Instance", "Query": {"SOPClassUID": sop}}
    return len(pacs.session.post(f"{pacs.url}/tools/find", json=query, timeout=60).json())


def source_of(answer) -> str:
    """SOP Instance UID of what a SEG or SR is about."""
    if answer.SOPClassUID == SEG:
        return (
            answer.ReferencedSeriesSequence[0]
            .ReferencedInstanceSequence[0]
            .ReferencedSOPInstanceUID
        )
    series = answer.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    return series[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID


@pytest.fixture(scope="module")
def beside(tmp_path_factory, release):
    """Orthanc that routes to a node, and that node."""
    folder, port = tmp_path_factory.mktemp("beside"), free_port()
    with (
        Pacs(folder / "orthanc", port) as pacs,
        Node(folder / "node", release, port=port, pacs=pacs.web) as served,
    ):
        yield SimpleNamespace(pacs=pacs, node=served, release=release)


KINDS = [
    (syntax, photometric)
    for syntax in ("implicit", "explicit", "rle", "jpeg", "lossless", "lossless14")
    for photometric in ("MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")
    if photometric != "YBR_FULL_422" or syntax in ("explicit", "jpeg")
]


def come_back(beside, tmp_path, chosen):
    """Upload to Orthanc what is chosen of (frames, number of kind); look at all that comes back."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed: make packages")
    hd = pytest.importorskip("highdicom")
    rng, sent = np.random.default_rng(3), {}
    cine = np.stack([ellipse_pair(rng, 60, 72)[0] for _ in range(60)])
    for count, number in chosen:
        syntax, photometric = KINDS[number]
        uid = f"1.2.826.0.1.{count}.{number + 1}.1"
        frames = cine if count == 60 else cine[number]
        images = frames if photometric == "MONOCHROME2" else painted(frames)
        sent[uid] = to_bytes(make_us(images, syntax=syntax, photometric=photometric, uid=uid))
        beside.pacs.upload(sent[uid])
    wait_for(lambda: set(sent) <= set(map(source_of, stored(beside.pacs, SR))), 240, 1)
    segmentations, reports = (
        [each for each in stored(beside.pacs, sop) if source_of(each) in sent] for sop in (SEG, SR)
    )
    assert Counter(map(source_of, segmentations)) == Counter(list(sent))
    assert Counter(map(source_of, reports)) == Counter(list(sent))
    predictor = Predictor.open(beside.release)
    for seg in segmentations:
        frames = dicom.read_frames(dicom.read_file(sent[source_of(seg)]))
        wanted = np.stack([predictor.predict(each).mask for each in frames])
        assert wanted.any()
        assert (seg.pixel_array.reshape(wanted.shape) == wanted).all()
        read = hd.seg.Segmentation.from_dataset(seg)
        assert read.NumberOfFrames == len(wanted) in (1, 60)
        if len(wanted) > 1:
            numbers = list(range(1, 61))
            got = read.get_pixels_by_source_frame(source_of(seg), numbers)
        else:
            got = read.get_pixels_by_source_instance([source_of(seg)])
        assert (got[..., 0].astype(bool) == wanted).all()
    for number, answer in enumerate([*segmentations, *reports]):
        path = tmp_path / f"{number}.dcm"
        answer.save_as(path)
        ran = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        said = ran.stdout + ran.stderr
        assert "Error" not in said, said
        assert "Warning" not in said, said
    assert not list((beside.node.queue / "failed").iterdir())


def test_orthanc_routes_and_gets_segmentation_and_report_back(beside, tmp_path):
    """One frame in every syntax and colour, and a cine of 60 in every syntax."""
    cines = {syntax: number for number, (syntax, _) in enumerate(KINDS)}  # in its last colour
    cines["explicit"], cines["lossless"] = (
        KINDS.index(("explicit", "MONOCHROME2")),
        KINDS.index(("lossless", "RGB")),
    )
    chosen = [(60, number) for number in cines.values()]
    come_back(beside, tmp_path, [*((1, number) for number in range(len(KINDS))), *chosen])


@pytest.mark.slow
def test_orthanc_gets_every_cine_back(beside, tmp_path):
    come_back(beside, tmp_path, [(60, number) for number in range(len(KINDS))])


def test_only_known_callers_and_ultrasound_come_in(beside):
    with_ct = {"classes": (CT, SEG)}
    for how in ({"caller": "STRANGER"}, {"called": "SOMEBODY"}, {"caller": "orthanc"}):
        association = beside.node.call(**how)
        assert association.is_rejected, how
    refused = beside.node.call(**with_ct)
    assert not refused.accepted_contexts
    association = beside.node.call(classes=(US, "1.2.840.10008.1.1"))
    assert association.send_c_echo().Status == 0x0000
    context = next(x.context_id for x in association.accepted_contexts if x.abstract_syntax == US)
    ct = data_set(one(900, SOPClassUID=CT))
    uid = one(900).SOPInstanceUID
    assert send(association, ct, uid=uid, sop=CT, context=context) == 0x0122
    assert send(association, ct, uid=uid) == 0xA900
    assert send(association, data_set(one(901)), uid=uid) == 0xA900
    assert send(association, b"\x00" * 3000, uid=uid) in (0xC000, 0xA900)
    cut = data_set(one(900))
    assert send(association, cut[: len(cut) // 2 * 2 - 500], uid=uid) == 0xC000
    assert send(association, cut, uid=uid) == 0x0000
    association.release()
    wait_for(lambda: uid in map(source_of, stored(beside.pacs, SEG)))
    association = beside.node.call(seconds=2)
    assert send(association, b"", uid=uid) is None  # aborted: there is no data set
    association.abort()
    assert "rejected" in beside.node.log


def fuzz(beside, seeds):
    """Send broken objects; each success has its segmentation in the end."""
    syntaxes, statuses, accepted = list(SYNTAXES), Counter(), set()
    for seed in seeds:
        syntax = syntaxes[seed % len(syntaxes)]
        rng = np.random.default_rng(seed)
        dataset = one(seed + 1000, syntax=syntax, photometric=["MONOCHROME2", "RGB"][seed % 2])
        whole, part = to_bytes(dataset), data_set(dataset)
        data = mutate(whole, rng)
        if seed % 3 == 0 and syntax not in ("implicit", "explicit", "big"):
            data = bytearray(whole)  # in the pixels, where decoders are written in C
            for _ in range(rng.integers(1, 6)):
                data[-rng.integers(10, len(part) // 2)] = rng.integers(256)
        association = beside.node.call(syntax=syntax)
        content = bytes(data)[len(whole) - len(part) :] or b"\0"  # none at all is no C-STORE
        status = send(association, content, uid=dataset.SOPInstanceUID)
        association.release()
        statuses[status] += 1
        if status == 0:
            accepted.add(dataset.SOPInstanceUID)
    assert beside.node.process.poll() is None
    assert set(statuses) <= {0x0000, 0xC000, 0xA900, 0xA700, 0x0122}, statuses
    assert statuses[0] > len(seeds) // 20
    assert statuses[0] < len(seeds) * 0.8
    wait_for(lambda: not list(beside.node.queue.glob("*-*")), 120, 0.2)
    assert accepted <= set(map(source_of, stored(beside.pacs, SEG)))
    assert not list((beside.node.queue / "failed").iterdir())
    for word in ("Traceback", "PHANTOM", "Phantom^", "1.2.826", PASSWORD):
        assert word not in beside.node.log, word


def test_fuzzed_objects_do_not_harm_the_node(beside):
    fuzz(beside, range(100))


@pytest.mark.slow
def test_500_fuzzed_objects_do_not_harm_the_node(beside):
    fuzz(beside, range(2000, 2500))


def test_a_study_is_measured_where_it_lies(beside, tmp_path):
    """And again, which asks for nothing anew; with half a line, which a kill leaves."""
    images = np.stack([ellipse_pair(np.random.default_rng(i), 60, 72)[0] for i in range(5)])
    sent = [make_us(images, uid="1.2.826.7.1.3.1"), make_us(images[0], uid="1.2.826.7.1.3.2")]
    for each in sent:
        beside.pacs.upload(to_bytes(each))
    out = tmp_path / "areas.csv"
    command = [
        sys.executable, "-m", "thyroid_lib.deploy.node", "study", "--pacs", beside.pacs.web,
        "--model", beside.release, "--out", out, "--store", "--study-uid", sent[0].StudyInstanceUID,
    ]  # fmt: skip
    unstored = [word for word in command if word != "--store"]
    subprocess.run(unstored, check=True, capture_output=True, env=node_environment())
    first = out.read_text()
    subprocess.run(command, check=True, capture_output=True, env=node_environment())
    whole = out.read_text()
    assert whole == first.replace(",,\n", ",yes,\n")
    predictor, rows = Predictor.open(beside.release), whole.splitlines()
    wanted = [predictor.predict(each, spacing_mm=(0.08, 0.08)) for each in images]
    assert len(rows) == 1 + 5 + 1
    for row, each in zip(
        [x for x in rows if f",{sent[0].SOPInstanceUID}," in x], wanted, strict=True
    ):
        assert f",60,72,{each.area_px},{round(each.area_mm2, 4)}," in row
    out.write_text(whole[: whole.rindex("\n", 0, -1) - 4])
    again = subprocess.run(
        command, check=True, capture_output=True, text=True, env=node_environment()
    )
    assert sorted(out.read_text().splitlines()) == sorted(rows), again.stderr
    sources = Counter(map(source_of, stored(beside.pacs, SEG)))
    assert sources[sent[0].SOPInstanceUID] == sources[sent[1].SOPInstanceUID] == 1
    absent = subprocess.run(
        [*command[:-1], "1.2.3.4"], capture_output=True, text=True, env=node_environment()
    )
    stranger = subprocess.run(command, capture_output=True, text=True)
    assert (stranger.returncode, "answers HTTP 401" in stranger.stderr) == (2, True)
    assert absent.returncode == 1
    assert "no ultrasound in study 1.2.3.4" in absent.stderr
    out.write_text("name,area\n")
    foreign = subprocess.run(command, capture_output=True, text=True, env=node_environment())
    assert foreign.returncode == 2
    assert "is another table than this command writes" in foreign.stderr


def test_what_has_no_room_is_refused_and_leaves_nothing(release, tmp_path):
    """Larger than allowed, and on a disk that takes no more (here: no longer files)."""
    port = free_port()
    large = make_us(np.random.default_rng(0).integers(0, 255, (1100, 1000), np.uint8))
    node = Node(
        tmp_path, release, port=port, pacs="http://127.0.0.1:9", more=["--max-mib", "1"],
        limit=60_000,
    )  # fmt: skip
    with node:
        association = node.call()
        uid = large.SOPInstanceUID
        assert send(association, data_set(large), uid=uid) == 0xA700
        full = make_us(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8), uid=uid)
        assert send(association, data_set(full), uid=uid) == 0xA700
        assert not list(node.queue.glob("*-*"))
        assert send(association, data_set(one(1)), uid=one(1).SOPInstanceUID) == 0
        association.release()
        wait_for(lambda: "not answered yet: ConnectionError" in node.log)
        second = subprocess.run(node.command, capture_output=True, text=True)
        assert second.returncode == 2
        assert "another node has the queue" in second.stderr
    [left] = node.queue.glob("*-*")  # SIGTERM: put back, without a mark
    assert left.name.endswith(".0.dcm")


def one_after_the_other(queue, objects, outcomes, there=()):
    """Serve with a client that answers in turn by `outcomes` of each object; the order it saw."""
    seen, done = [], threading.Event()

    class Client:
        def store_instances(self, datasets):
            name = datasets[0].PatientID
            seen.append(name)
            outcome = outcomes[name].pop(0) if outcomes.get(name) else None
            if isinstance(outcome, int):
                failed = pydicom.Dataset()
                failed.FailureReason = outcome
                outcome = pydicom.Dataset()
                outcome.FailedSOPSequence = [failed]
                return outcome
            if outcome is not None:
                raise outcome
            if len(set(seen)) == len(objects) and not any(outcomes.values()):
                done.set()
            named, answer = pydicom.Dataset(), pydicom.Dataset()
            named.ReferencedSOPInstanceUID = datasets[0].SOPInstanceUID
            answer.ReferencedSOPSequence = [named]
            return answer

        def search_for_instances(self, study, search_filters):
            own = search_filters["SOPInstanceUID"]
            return [{"00080018": {"Value": [own]}}] if own in there else []

    def answer(dataset):
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        return [dataset]

    worker = node.Worker(queue, Client(), answer)
    for each in objects:
        queue.put(queue.write(each.PatientID, to_bytes(each)))
    worker.start()
    assert done.wait(20)
    wait_for(lambda: not list(queue.folder.glob("*-*")))
    worker.stop()
    worker.join(5)
    assert not worker.is_alive()
    return seen


def http_error(status: int) -> requests.HTTPError:
    return requests.HTTPError(response=SimpleNamespace(status_code=status))


def test_no_object_stands_in_the_way_of_others(tmp_path):
    queue = node.Queue(tmp_path / "queue")
    objects = [one(i, PatientID=name) for i, name in enumerate("abcdefg")]
    outcomes = {
        "a": [http_error(500), 0xA700], "b": [http_error(400)], "c": [http_error(409)],
        "d": [http_error(409)], "e": [0x0111], "f": [0x0122],
    }  # fmt: skip
    seen = one_after_the_other(queue, objects, outcomes, there=[objects[2].SOPInstanceUID])
    assert seen == [*"abcdefg", "a", "a"]
    reasons = [path.stem for path in (tmp_path / "queue" / "failed").glob("*.txt")]
    assert sorted(reason.split("-")[1] for reason in reasons) == ["b.0", "d.0", "f.0"]
    [reason] = (tmp_path / "queue" / "failed").glob("*-b.0.txt")
    assert reason.read_text() == "the PACS refuses the answer: HTTP 400\n"
    assert reason.with_suffix(".dcm").is_file()


def test_a_fault_of_this_machine_costs_no_object(tmp_path, monkeypatch):
    """Neither memory, nor files, nor a folder that takes no new name for a moment."""
    queue, real = node.Queue(tmp_path / "queue"), Path.read_bytes
    faults = [MemoryError(), OSError(errno.EMFILE, "many"), OSError(errno.EIO, "disk")]

    def read_bytes(path):
        if path.suffix == ".working" and faults:
            raise faults.pop()
        return real(path)

    def rename(path, target):
        if path.suffix == ".working" and len(faults) == 1:
            raise PermissionError
        return replace(path, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(Path, "replace", rename)
    assert one_after_the_other(queue, [one(1, PatientID="a")], {}) == ["a"]
    assert not faults
    assert not list((queue.folder / "failed").iterdir())


def test_a_decoder_that_died_takes_no_object_with_it(monkeypatch):
    # streamlit's tests leave their page as the main module, which a process that is spawned runs
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    decoder, content = node.Decoder(), to_bytes(one(1))
    try:
        for pause in (0, 0.3):
            decoder.process.kill()
            time.sleep(pause)
            decoder.check(content)
        decoder.pipe.send(Call(os._exit, 1))
        decoder.process.join(10)
        decoder.check(content)
        with pytest.raises(dicom.Refused, match="bring the decoder down"):
            decoder.check(Call(os._exit, 1))
        decoder.check(content)
        with monkeypatch.context() as patch:
            patch.setattr(node, "PATIENCE", 0.5)
            with pytest.raises(dicom.Refused, match="or to no end"):
                decoder.check(Call(time.sleep, 100))
        decoder.check(content)
    finally:
        decoder.process.kill()


class Call:
    """Calls a function in the process that reads it."""

    def __init__(self, function, value):
        self.how = function, (value,)

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("most", [3, 100])
@pytest.mark.parametrize("pages", [True, False])
def test_all_objects_of_a_study_are_found(most, pages):
    """By the page, and where a PACS knows of no pages."""
    there = [{tag: {"Value": [f"{tag}.{i}"]} for tag in node.TAGS} for i in range(7)]

    def search(study_uid, offset=None):
        assert study_uid == "1.2"
        return there[offset or 0 :][:most] if pages else there

    found = node.find_objects(SimpleNamespace(search_for_instances=search), "1.2")
    assert found == [[f"{tag}.{i}" for tag in node.TAGS] for i in range(7)]
    with pytest.raises(requests.RequestException):
        node.find_objects(SimpleNamespace(search_for_instances=lambda *_, **__: {"a": 1}), "1.2")


JSON = "application/dicom+json"
LATER = {  # status, content type and body of what is no confirmation
    "a page": (200, "text/html", b"<html>"),
    "nothing": (200, JSON, b""),
    "no names": (200, JSON, b"{}"),
    "a list": (200, JSON, b"[{}]"),
    "half a line": (200, JSON, b'{"00081199": {"vr'),
    "half an element": (200, "application/dicom+xml", b"<NativeDicom"),
    "no type": (200, "", b"stored"),
    "elsewhere": (301, "", b""),
    "failed, without a reason": (200, JSON, b'{"00081198": {"vr": "SQ", "Value": [{}]}}'),
    "no room": (
        409,
        JSON,
        b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [42752]}}]}}',
    ),
    "failed, in a type of its own": (202, f"{JSON};charset=utf-8", b'{"00081198": {"vr": "SQ"}}'),
    "busy": (503, "", b""),
    "no password": (401, "", b""),
}


def test_only_what_the_pacs_names_or_has_counts_as_stored():
    has = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, JSON, json.dumps([{"00080018": {"vr": "UI", "Value": has}}]).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(*LATER[kind])

        def answer(self, status, content_type, body):
            self.send_response(status)
            headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
            for each in headers.items():
                if each[1]:
                    self.send_header(*each)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = node.pacs_client(f"http://127.0.0.1:{server.server_port}")
        for kind in LATER:  # noqa: B007
            with pytest.raises(requests.RequestException):
                node.stow(client, [one(1)])
        has.append(str(one(1).SOPInstanceUID))
        kind = "a page"
        node.stow(client, [one(1)])
        with pytest.raises(node.NotConfirmed):
            node.stow(client, [one(2)])
        server.shutdown()


def test_what_kills_the_node_again_and_again_is_put_aside(tmp_path):
    for deaths in range(node.DEATHS):
        queue = node.Queue(tmp_path / "queue")
        if not deaths:
            for name in "ab":
                queue.put(queue.write(name, b""))
        at_work = next(path for path in queue.waiting if queue.name(path) == "a")
        assert at_work.name.endswith(f"-a.{deaths}.dcm")
        assert not deaths or queue.waiting[0] != at_work  # others come first
        at_work.replace(at_work.with_suffix(".working"))
        (queue.folder / f"{1:020}-c.0.new").write_bytes(b"half")
        (queue.folder / "a plan.new").write_bytes(b"of somebody's own")
        queue.lock.close()
    queue = node.Queue(tmp_path / "queue")
    assert [queue.name(path) for path in queue.waiting] == ["b"]
    [reason] = (queue.folder / "failed").glob("*-a.5.txt")
    assert "5 times" in reason.read_text()
    assert [file.name for file in queue.folder.glob("*.new")] == ["a plan.new"]


def survive(folder, release, *, objects: int, node_kills: int, pacs_kills: int, seconds: float):
    """Send objects while node and PACS are killed; each must have one SEG and one SR in the end."""
    port = free_port()
    pacs = Pacs(folder / "orthanc", port, route=False).start()
    served = Node(folder / "node", release, port=port, pacs=pacs.web).start()
    sent, end = Counter(), time.monotonic() + seconds

    def sender():
        """As a PACS: what is not confirmed is sent again."""
        left = list(range(objects))
        while left and time.monotonic() < end:
            association = served.call(seconds=10)
            while association.is_established and left:
                dataset = one(left[0])
                try:
                    status = send(association, data_set(dataset), uid=dataset.SOPInstanceUID)
                except Exception:
                    break
                if status is None:  # no answer: the node is no more
                    association.abort()
                    break
                if status == 0:
                    sent[left.pop(0)] += 1
            if association.is_established:
                association.release()
            elif left:
                time.sleep(0.2)

    sending = threading.Thread(target=sender, daemon=True)
    sending.start()
    try:
        kills = sorted(
            [((i + 1) / (node_kills + 1), "node") for i in range(node_kills)]
            + [((i + 0.6) / (pacs_kills + 0.2), "pacs") for i in range(pacs_kills)]
        )
        for share, which in kills:
            goal = int(share * objects)
            wait_for(lambda goal=goal: count(pacs, SEG) >= goal, end - time.monotonic(), 0.05)
            if which == "node":
                served.kill()
                served.start()
            else:
                pacs.kill()
                time.sleep(1)
                pacs.start()
        wait_for(lambda: not sending.is_alive(), end - time.monotonic(), 0.1)
        empty = lambda: not list(served.queue.glob("*-*"))  # noqa: E731
        wait_for(empty, end - time.monotonic(), 0.1)
        wanted = Counter(one(i).SOPInstanceUID for i in range(objects))
        assert len(sent) == objects
        assert Counter(map(source_of, stored(pacs, SEG))) == wanted
        assert Counter(map(source_of, stored(pacs, SR))) == wanted
        assert not list((served.queue / "failed").iterdir())
        assert "Traceback" not in served.log
    finally:
        served.process.terminate()
        served.process.wait(20)
        pacs.stop()


def test_nothing_is_lost_by_kills(release, tmp_path):
    survive(tmp_path, release, objects=60, node_kills=2, pacs_kills=1, seconds=150)


@pytest.mark.slow
def test_1000_objects_outlive_seven_kills(release, tmp_path):
    survive(tmp_path, release, objects=1000, node_kills=5, pacs_kills=2, seconds=480)


WRONG = {
    "--port=80000": "cannot listen on 127.0.0.1:80000",
    "--host=192.0.2.1": "cannot listen on 192.0.2.1:",
    "--pacs=nonsense": "Malformed URL: nonsense",
    "--model=nothing": "no model at nothing",
    "--max-mib=0": "need 1 or more",
    "--caller=LONGER_THAN_A_TITLE": "must not exceed 16 characters",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_answered_by_a_sentence(release, tmp_path, capsys, monkeypatch, wrong):
    command = [
        "node", "serve", f"--model={release}", f"--port={free_port()}", "--caller=ORTHANC",
        "--pacs=http://127.0.0.1:9", f"--queue={tmp_path / 'queue'}", wrong,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(node, "Decoder", lambda: None)
    monkeypatch.setattr(node.signal, "signal", lambda *_: None)
    for of, what in (  # which are put back
        (threading, "excepthook"), (node.log, "propagate"), (node.log, "handlers"),
        (logging.getLogger(), "handlers"),
    ):  # fmt: skip
        value = getattr(of, what)
        monkeypatch.setattr(of, what, list(value) if what == "handlers" else value)
    assert node.main() == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert WRONG[wrong] in said
    assert "\n" not in said


RAW = {
    "noise": b"\x00\xff" * 300,
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "4 GiB to come": b"\x01\x00\xff\xff\xff\xff" + bytes(1000),
    "4 GiB of data": b"\x04\x00\xff\xff\xff\xff" + bytes(1000),
    "half a request": b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00" + b"THYROID         ",
    "nothing": b"",
}


def test_what_is_no_dicom_at_all_does_not_harm_the_node(beside):
    """Connections that say nonsense, some left open, one byte by byte; a caller is served then."""
    opened = []
    for content in RAW.values():
        for close in (True, False):
            opened.append(socket.create_connection(("127.0.0.1", beside.node.port), 5))
            opened[-1].sendall(content)
            if close:
                opened.pop().close()
    dripping = socket.create_connection(("127.0.0.1", beside.node.port), 5)
    dripping.sendall(RAW["half a request"][:6])

    def drip(content=b"\0"):
        for _ in range(80):
            dripping.sendall(content)
            time.sleep(0.5)

    with pytest.raises(ConnectionError):  # the node hangs up before 40 s are over
        drip()
    opened.append(dripping)
    association = wait_for(lambda: (got := beside.node.call()).is_established and got, 40, 0.5)
    whole = b"\x04\0\0\0\0\x07\0\0\0\x03\x01\x01\0"  # a PDU of one byte of a command
    dripping = association.dul.socket.socket
    with pytest.raises(ConnectionError):
        drip(whole)
    association.abort()
    status = Path(f"/proc/{beside.node.process.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 1_000_000  # kB
    # those left open count as associations for ten seconds, and then no more
    association = wait_for(lambda: (got := beside.node.call()).is_established and got, 40, 0.5)
    dataset = one(5_000)
    assert send(association, data_set(dataset), uid=dataset.SOPInstanceUID) == 0x0000
    association.release()
    wait_for(lambda: dataset.SOPInstanceUID in map(source_of, stored(beside.pacs, SEG)))
    assert "Traceback" not in beside.node.log
    for each in opened:
        each.close()


def test_sigterm_waits_for_nobody(release, tmp_path):
    served = Node(tmp_path, release, port=free_port(), pacs="http://127.0.0.1:9")
    with served:
        silent = [socket.create_connection(("127.0.0.1", served.port), 5) for _ in range(3)]
        silent[0].sendall(b"\x01\x00\x00\x00\x00\xcd\x00\x01")
        association = served.call()
        assert send(association, data_set(one(1)), uid=one(1).SOPInstanceUID) == 0x0000
        began = time.monotonic()
        served.process.terminate()
        assert served.process.wait(20) == 0
        assert time.monotonic() - began < 6
    assert len(list(served.queue.glob("*.0.dcm"))) == 1
    for each in silent:
        each.close()


def test_containers_listen_on_this_machine_alone():
    folder = Path(__file__).parents[2] / "deploy"
    services = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]
    assert set(services) == {"pacs", "node", "app"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    assert "ports" not in services["node"]
    stages = (folder / "Containerfile").read_text("utf-8").split("\nFROM ")
    assert stages[0].startswith("# Not built here")
    for stage in stages[2:]:
        assert re.search(r"\nUSER (thyroid|orthanc)\n", stage)
        assert "HEALTHCHECK" in stage
        assert "torch" not in stage


def test_the_node_needs_no_torch():
    code = "import sys, thyroid_lib.deploy.node; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
