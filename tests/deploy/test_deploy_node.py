"""The DICOM node beside a real Orthanc: routed, answered, refused, killed."""

import csv
import io
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynetdicom
import pytest
import yaml
from conftest import ellipse_pair
from dicoms import SYNTAXES, make_us, mutate, painted, to_bytes
from pacs import PASSWORD, Pacs, free_port, node_environment
from pydicom.filereader import dcmread
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from test_deploy_queue import one
from tiny_study import wait_until

from thyroid_lib.data import dicom
from thyroid_lib.deploy.predictor import Predictor

pytestmark = pytest.mark.study
US, CINE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("6.1", "3.1"))
CT, SEG, SR = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "66.4", "88.33"))
NODE = [sys.executable, "-m", "thyroid_lib.deploy.node"]
KINDS = [  # syntax, colour, frames
    ("implicit", "YBR_FULL", 1), ("explicit", "MONOCHROME2", 60), ("explicit", "YBR_FULL_422", 1),
    ("rle", "RGB", 1), ("jpeg", "YBR_FULL_422", 60), ("lossless", "RGB", 60),
    ("lossless14", "MONOCHROME2", 1),
]  # fmt: skip
RAW = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "4 GiB to come": b"\x01\x00\xff\xff\xff\xff" + bytes(1000),
    "half a request": b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00" + b"THYROID         ",
    "nothing": b"",
}


class Node:
    """The node as a process, as a site runs it; `log` is all that it prints."""

    def __init__(self, folder: Path, release: Path, *more, port=0, pacs="http://127.0.0.1:9"):
        folder.mkdir(parents=True, exist_ok=True)
        self.queue, self.port, self.path = folder / "queue", port or free_port(), folder / "log"
        self.path.touch()
        self.command = [
            *NODE, "serve", "--model", release, "--port", str(self.port), "--caller", "ORTHANC",
            "--pacs", pacs, "--queue", self.queue, *more,
        ]  # fmt: skip

    def start(self, limit: int = 0):
        """Start it, perhaps so that no file may be longer than a limit."""
        started = self.log.count(" listens on ")
        ulimit = ["prlimit", f"--fsize={limit}"] if limit else []
        with open(self.path, "ab") as log:
            how = {"stdout": log, "stderr": log, "env": node_environment()}
            self.process = subprocess.Popen([*ulimit, *self.command], **how)
        ended = lambda: self.process.poll() is not None  # noqa: E731
        wait_until(lambda: self.log.count(" listens on ") > started or ended())
        assert not ended(), self.log
        return self

    @property
    def log(self) -> str:
        return self.path.read_text()

    def waiting(self) -> list[Path]:
        return list(self.queue.glob("*-*"))

    def failed(self) -> list[Path]:
        return list((self.queue / "failed").iterdir())

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log[-2000:]

    def call(self, *, syntax="explicit", caller="ORTHANC", called="THYROID", also=CINE, seconds=30):
        """An association with the node, for ultrasound and another class."""
        ae = pynetdicom.AE(caller)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = seconds
        for each in (US, also):
            ae.add_requested_context(each, SYNTAXES[syntax])
        return ae.associate("127.0.0.1", self.port, ae_title=called)


def send(association, dataset, *, content=None, sop: str = US, context: int = 0) -> int | None:
    """C-STORE an object, or other bytes under its name; the status, None if there is no answer."""
    request, content = C_STORE(), data_set(dataset) if content is None else content
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop, dataset.SOPInstanceUID
    request.DataSet = io.BytesIO(content)
    contexts = {each.abstract_syntax: each.context_id for each in association.accepted_contexts}
    association._reactor_checkpoint.clear()  # as its own send_c_store does
    association.dimse.send_msg(request, context or contexts[sop])
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return answer.Status if answer is not None else None


def data_set(dataset) -> bytes:
    """The bytes that C-STORE sends of an object: without file meta information."""
    syntax = dataset.file_meta.TransferSyntaxUID
    return encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian)


def instances(pacs: Pacs, sop: str) -> list[str]:
    """The numbers in Orthanc of all objects of a class."""
    query = {"Level": "Instance", "Query": {"SOPClassUID": sop}}
    return pacs.session.post(f"{pacs.url}/tools/find", json=query, timeout=60).json()


def stored(pacs: Pacs, sop: str) -> list:
    """All objects of a class that Orthanc has, each fetched."""
    files = [pacs.get(f"/instances/{each}/file").content for each in instances(pacs, sop)]
    return [dcmread(io.BytesIO(each)) for each in files]


def source_of(answer) -> str:
    """SOP Instance UID of the object that a SEG or SR refers to."""
    if answer.SOPClassUID == SEG:
        sources = answer.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        return sources[0].ReferencedSOPInstanceUID
    series = answer.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    return series[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID


def sources(pacs: Pacs, sop: str = SEG) -> Counter:
    return Counter(map(source_of, stored(pacs, sop)))


@pytest.fixture(scope="module")
def beside(tmp_path_factory, release):
    """Orthanc that routes to a node, and that node."""
    folder, port = tmp_path_factory.mktemp("beside"), free_port()
    with Pacs(folder / "orthanc", port) as pacs:
        node = Node(folder / "node", release, port=port, pacs=pacs.web)
        with node.start():
            yield SimpleNamespace(pacs=pacs, node=node, release=release)


def test_orthanc_routes_and_gets_segmentation_and_report_back(beside):
    rng, sent = np.random.default_rng(3), {}
    cine = np.stack([ellipse_pair(rng, 60, 72)[0] for _ in range(60)])
    for number, (syntax, photometric, count) in enumerate(KINDS, 1):
        frames = cine if count == 60 else cine[number]
        images = frames if photometric == "MONOCHROME2" else painted(frames)
        uid = f"1.2.826.0.1.{count}.{number}.1"
        sent[uid] = to_bytes(make_us(images, syntax=syntax, photometric=photometric, uid=uid))
        beside.pacs.upload(sent[uid])
    wait_until(lambda: set(sent) <= set(sources(beside.pacs, SR)), seconds=600)
    predictor, answers = Predictor.open(beside.release), stored(beside.pacs, SEG)
    answers = {source_of(each): each for each in answers}
    for uid, content in sent.items():
        frames = dicom.read_frames(dicom.read_file(content))
        masks = np.stack([predictor.predict(each).mask for each in frames])
        assert masks.any()
        assert (answers[uid].pixel_array.reshape(masks.shape) == masks).all()
    assert not beside.node.failed()


def test_only_known_callers_and_ultrasound_are_accepted(beside):
    for how in ({"caller": "STRANGER"}, {"called": "SOMEBODY"}):
        assert beside.node.call(**how).is_rejected
    association = beside.node.call(also=CT)
    [context] = [each.context_id for each in association.accepted_contexts]  # none for CT
    ct, whole = data_set(one(900, SOPClassUID=CT)), data_set(one(900))
    for content, how, statuses in (
        (ct, {"sop": CT, "context": context}, {0x0122}),
        (ct, {}, {0xA900}),
        (data_set(one(901)), {}, {0xA900}),
        (b"\x00" * 3000, {}, {0xC000, 0xA900}),
        (whole[: len(whole) // 2 * 2 - 500], {}, {0xC000}),
        (whole, {}, {0x0000}),
    ):
        assert send(association, one(900), content=content, **how) in statuses
    association.release()
    wait_until(lambda: one(900).SOPInstanceUID in sources(beside.pacs))
    association = beside.node.call(also="1.2.840.10008.1.1")
    assert association.send_c_echo().Status == 0x0000
    association.release()
    assert "rejected" in beside.node.log


def test_mutated_objects_do_not_harm_the_node(beside):
    """Each success has its segmentation in the end, and the log quotes no object."""
    syntaxes, statuses, accepted = list(SYNTAXES), Counter(), set()
    for seed in range(60):
        syntax = syntaxes[seed % len(syntaxes)]
        dataset = one(seed + 1000, syntax=syntax, photometric=["MONOCHROME2", "RGB"][seed % 2])
        whole, part = to_bytes(dataset), data_set(dataset)
        data = mutate(whole, np.random.default_rng(seed))[len(whole) - len(part) :]
        association = beside.node.call(syntax=syntax)
        status = send(association, dataset, content=data or b"\0")  # none at all is no C-STORE
        association.release()
        statuses[status] += 1
        if status == 0:
            accepted.add(dataset.SOPInstanceUID)
    assert beside.node.process.poll() is None
    assert set(statuses) <= {0x0000, 0xC000, 0xA900, 0xA700, 0x0122}, statuses
    assert 0 < statuses[0] < 60
    wait_until(lambda: not beside.node.waiting(), seconds=600)
    assert accepted <= set(sources(beside.pacs))
    assert not beside.node.failed()
    for word in ("Traceback", "PHANTOM", "Phantom^", "1.2.826", PASSWORD):
        assert word not in beside.node.log, word


def test_a_study_is_measured_in_the_pacs(beside, tmp_path):
    """And again, which measures nothing anew; with half a line, which a kill leaves."""
    images = np.stack([ellipse_pair(np.random.default_rng(i), 60, 72)[0] for i in range(5)])
    sent = [make_us(images, uid="1.2.826.7.1.3.1"), make_us(images[0], uid="1.2.826.7.1.3.2")]
    for each in sent:
        beside.pacs.upload(to_bytes(each))
    out, study_uid = tmp_path / "areas.csv", sent[0].StudyInstanceUID

    def run(*more, uid=study_uid, env=None):
        command = [*NODE, "study", "--pacs", beside.pacs.web, "--model", beside.release]
        command += ["--out", out, *more, "--study-uid", uid]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    env = node_environment()
    assert run(env=env).returncode == 0
    first = out.read_text()
    assert run("--store", env=env).returncode == 0
    whole = out.read_text()
    assert whole == first.replace(",,\n", ",yes,\n")
    predictor, rows = Predictor.open(beside.release), whole.splitlines()
    of_cine = [row for row in rows if f",{sent[0].SOPInstanceUID}," in row]
    for row, image in zip(of_cine, images, strict=True):
        found = predictor.predict(image, spacing_mm=(0.08, 0.08))
        assert f",60,72,{found.area_px},{round(found.area_mm2, 4)}," in row
    out.write_text(whole[: whole.rindex("\n", 0, -1) - 4])
    assert run("--store", env=env).returncode == 0
    assert sorted(out.read_text().splitlines()) == sorted(rows)
    assert all(sources(beside.pacs)[each.SOPInstanceUID] == 1 for each in sent)
    assert "no ultrasound in study 1.2.3.4" in run(uid="1.2.3.4", env=env).stderr
    assert "answers HTTP 401" in (stranger := run()).stderr
    assert stranger.returncode == 2
    out.write_text("name,area\n")
    assert "is another table than this command writes" in run(env=env).stderr


def test_several_classes_reach_the_pacs_and_the_table(class_release, tmp_path):
    images = np.stack([ellipse_pair(np.random.default_rng(i), 60, 72)[0] for i in range(3)])
    predict, port = Predictor.open(class_release).predict, free_port()
    found = [each for image in images for each in predict(image).classes]
    sent, out = make_us(images, uid="1.2.826.7.1.9.1"), tmp_path / "areas.csv"
    node = Node(tmp_path / "node", class_release, port=port)
    with Pacs(tmp_path / "orthanc", port) as pacs:
        node.command += ["--pacs", pacs.web]  # the last one counts
        with node.start():
            pacs.upload(to_bytes(sent))
            [seg] = wait_until(lambda: stored(pacs, SEG))
            wait_until(lambda: stored(pacs, SR))
        assert (seg.pixel_array == np.stack([each.mask for each in found])).all()
        assert len(seg.SegmentSequence) == 2
        command = [*NODE, "study", "--pacs", pacs.web, "--model", class_release, "--out", out]
        command += ["--study-uid", sent.StudyInstanceUID]
        subprocess.run(command, check=True, env=node_environment())
        text = out.read_text()
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["class"] for row in rows] == ["gland", "nodule"] * 3
        assert [int(row["area_px"]) for row in rows] == [each.area_px for each in found]
        out.write_text(text[: text.rindex("\n", 0, -1) + 1])  # a class of the last frame is gone
        subprocess.run(command, check=True, env=node_environment())
        assert out.read_text() == text


def test_connections_that_are_no_dicom_and_what_has_no_room_do_not_harm_the_node(release, tmp_path):
    """Some connections stay open; the disk takes no long files; the PACS does not answer."""
    noise, left_open = np.random.default_rng(0).integers(0, 255, (1100, 1000), np.uint8), []
    with Node(tmp_path, release, "--max-mib", "1").start(limit=60_000) as served:
        for content in RAW.values():
            for close in (True, False):
                connection = socket.create_connection(("127.0.0.1", served.port), 60)
                connection.sendall(content)
                connection.close() if close else left_open.append(connection)
        association = wait_until(lambda: (got := served.call()).is_established and got, seconds=240)
        for large in (make_us(noise), make_us(noise[:300, :300])):
            assert send(association, large) == 0xA700
        assert send(association, one(1)) == 0
        association.release()
        wait_until(lambda: "not answered yet: ConnectionError" in served.log)
        assert "Traceback" not in served.log
    [left] = served.waiting()  # put back, without a mark
    assert left.name.endswith(".0.dcm")
    for each in left_open:
        each.close()


@pytest.mark.parametrize(
    ("objects", "node_kills", "pacs_kills"),
    [(60, 2, 1), pytest.param(1000, 5, 2, marks=pytest.mark.slow)],
)
def test_no_object_is_lost_by_kills(release, tmp_path, objects, node_kills, pacs_kills):
    """Objects are sent while node and PACS are killed; each has one SEG and one SR in the end."""
    sent, end = Counter(), time.monotonic() + 900

    def sender(served: Node):
        """As a PACS: what is not confirmed is sent again."""
        left = list(range(objects))
        while left and time.monotonic() < end:
            association = served.call(seconds=10)
            while association.is_established and left:
                try:
                    status = send(association, one(left[0]))
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

    kills = [((i + 1) / (node_kills + 1), "node") for i in range(node_kills)]
    kills += [((i + 0.6) / (pacs_kills + 0.2), "pacs") for i in range(pacs_kills)]
    with Pacs(tmp_path / "orthanc", free_port(), route=False) as pacs:
        with Node(tmp_path / "node", release, pacs=pacs.web).start() as served:
            sending = threading.Thread(target=sender, args=(served,), daemon=True)
            sending.start()
            for share, name in sorted(kills):
                goal = int(share * objects)
                wait_until(lambda goal=goal: len(instances(pacs, SEG)) >= goal, seconds=900)
                victim = {"node": served, "pacs": pacs}[name]
                victim.kill()
                time.sleep(victim is pacs)
                victim.start()
            wait_until(lambda: not sending.is_alive() and not served.waiting(), seconds=900)
        expected = Counter(one(i).SOPInstanceUID for i in range(objects))
        assert len(sent) == objects
        assert sources(pacs, SEG) == sources(pacs, SR) == expected
    assert not served.failed()
    assert "Traceback" not in served.log


def test_a_wrong_setting_is_answered_by_a_sentence(release, tmp_path):
    command = Node(tmp_path, release, "--port=80000").command
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.fullmatch("error: cannot listen on 127.0.0.1:80000[^\n]*\n", done.stderr)
    assert done.returncode == 2


def test_containers_listen_on_this_machine_alone():
    folder = Path(__file__).parents[2] / "deploy"
    services = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]
    assert set(services) == {"pacs", "node", "app"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "ports" not in services["node"]
    for stage in (folder / "Containerfile").read_text("utf-8").split("\nFROM ")[2:]:
        assert re.search(r"\nUSER (thyroid|orthanc)\n", stage)
