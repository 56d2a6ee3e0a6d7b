"""Queue, worker, PACS client and decoder of the node, each without a server of its own."""

import errno
import io
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pydicom
import pytest
import requests
from conftest import ellipse_pair
from dicoms import make_us, to_bytes

from thyroid_lib.data import dicom
from thyroid_lib.deploy import decoder, object_queue, pacs
from thyroid_lib.deploy.object_queue import MAX_DEATHS, Queue, object_name

JSON = "application/dicom+json"
NO_ROOM = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [42752]}}]}}'
LATER = {  # status, content type and body of what is no confirmation
    "a page": (200, "text/html", b"<html>"),
    "nothing": (200, JSON, b""),
    "half a line": (200, JSON, b'{"00081199": {"vr'),
    "failed, without a reason": (200, JSON, b'{"00081198": {"vr": "SQ", "Value": [{}]}}'),
    "no room": (409, JSON, NO_ROOM),
    "busy": (503, "", b""),
}


def one(index: int, **how):
    """A small frame of its own."""
    image = ellipse_pair(np.random.default_rng(index), 64, 64)[0]
    return make_us(image, uid=f"1.2.826.0.1.99.5.{index + 1}", **how)


@pytest.fixture
def serve_all(tmp_path, monkeypatch):
    """Serve objects with a PACS that answers in turn by `outcomes` of each; the order it saw."""
    monkeypatch.setattr(object_queue, "LONGEST_PAUSE", 0)
    queue, seen = Queue(tmp_path / "queue"), []

    def run(objects, outcomes, there=()) -> list[str]:
        def store_instances(datasets):
            name, answer, item = datasets[0].PatientID, pydicom.Dataset(), pydicom.Dataset()
            seen.append(name)
            outcome = outcomes[name].pop(0) if outcomes.get(name) else None
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                item.FailureReason, answer.FailedSOPSequence = outcome, [item]
            else:
                item.ReferencedSOPInstanceUID = datasets[0].SOPInstanceUID
                answer.ReferencedSOPSequence = [item]
            return answer

        def search_for_instances(study, search_filters):
            own = search_filters["SOPInstanceUID"]
            return [{"00080018": {"Value": [own]}}] if own in there else []

        def answer(dataset):
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            return [dataset]

        client = {"store_instances": store_instances, "search_for_instances": search_for_instances}
        queue.client, queue.answer = SimpleNamespace(**client), answer
        for each in objects:
            queue.put(each.PatientID, to_bytes(each))
        while not queue.waiting.empty():
            queue.serve(queue.waiting.get())
        assert not list(queue.folder.glob("*-*"))
        return seen

    return run


def test_no_object_blocks_others(tmp_path, serve_all):
    def status(code: int) -> requests.HTTPError:
        return requests.HTTPError(response=SimpleNamespace(status_code=code))

    objects = [one(i, PatientID=name) for i, name in enumerate("abcdefg")]
    outcomes = {
        "a": [status(500), 0xA700], "b": [status(400)], "c": [status(409)], "d": [status(409)],
        "e": [0x0111], "f": [0x0122],
    }  # fmt: skip
    assert serve_all(objects, outcomes, [objects[2].SOPInstanceUID]) == [*"abcdefg", "a", "a"]
    reasons = {path.stem[21:]: path for path in (tmp_path / "queue" / "failed").glob("*.txt")}
    assert set(reasons) == {"b.0", "d.0", "f.0"}
    assert reasons["b.0"].read_text() == "the PACS refuses the answer: HTTP 400\n"
    assert reasons["b.0"].with_suffix(".dcm").is_file()


def test_a_fault_of_this_machine_loses_no_object(tmp_path, monkeypatch, serve_all):
    """Neither memory, nor files, nor a folder that takes no new name for a moment."""
    read, replace = Path.read_bytes, Path.replace
    faults = [MemoryError(), OSError(errno.EMFILE, "many"), OSError(errno.EIO, "disk")]

    def failing_read(path):
        if path.suffix == ".working" and faults:
            raise faults.pop()
        return read(path)

    def failing_replace(path, target):
        if path.suffix == ".working" and len(faults) == 1:
            raise PermissionError
        return replace(path, target)

    monkeypatch.setattr(Path, "read_bytes", failing_read)
    monkeypatch.setattr(Path, "replace", failing_replace)
    assert serve_all([one(1, PatientID="a")], {}) == ["a"]
    assert not faults
    assert not list((tmp_path / "queue" / "failed").iterdir())


def test_what_ends_the_node_again_and_again_is_put_aside(tmp_path):
    for deaths in range(MAX_DEATHS):
        queue = Queue(tmp_path / "queue")
        if not deaths:
            for name in "ab":
                queue.put(name, b"")
            with pytest.raises(ValueError, match="another node has the queue"):
                Queue(tmp_path / "queue")
        current = next(path for path in queue.waiting.queue if object_name(path) == "a")
        assert current.name.endswith(f"-a.{deaths}.dcm")
        assert not deaths or queue.waiting.queue[0] != current  # others come first
        current.replace(current.with_suffix(".working"))
        (queue.folder / f"{1:020}-c.0.dcm.7.partial").write_bytes(b"half")
        (queue.folder / "a plan.partial").write_bytes(b"of somebody's own")
        queue.lock.close()
    queue = Queue(tmp_path / "queue")
    assert [object_name(path) for path in queue.waiting.queue] == ["b"]
    [reason] = (queue.folder / "failed").glob("*-a.5.txt")
    assert "5 times" in reason.read_text()
    assert [file.name for file in queue.folder.glob("*.partial")] == ["a plan.partial"]


class Call:
    """Calls a function in the process that reads it."""

    def __init__(self, function, value):
        self.how = function, (value,)

    def __reduce__(self):
        return self.how


@pytest.mark.study
def test_a_decoder_that_ended_loses_no_object(monkeypatch):
    # streamlit's tests leave their page as the main module, which a process that is spawned runs
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    tried, content = decoder.Decoder(), to_bytes(one(1))
    try:
        for pause in (0, 0.3):
            tried.process.kill()
            time.sleep(pause)
            tried.check(content)
        tried.pipe.send(Call(os._exit, 1))
        tried.process.join(60)
        tried.check(content)
        for call in (Call(os._exit, 1), Call(time.sleep, 100)):
            monkeypatch.setattr(decoder, "TIMEOUT", 5)
            with pytest.raises(dicom.Refused, match="crash the"):
                tried.check(call)
            monkeypatch.setattr(decoder, "TIMEOUT", 60)
            tried.check(content)
    finally:
        tried.process.kill()


@pytest.mark.parametrize("pages", [True, False])
def test_all_objects_of_a_study_are_found(pages):
    """Page by page, and where a PACS ignores the offset."""
    tags = pacs.SOP_CLASS, pacs.SERIES, pacs.INSTANCE
    there = [{tag: {"Value": [f"{tag}.{i}"]} for tag in tags} for i in range(7)]

    def search(study_uid, offset=None):
        return there[offset or 0 :][:3] if pages else there

    found = pacs.find_objects(SimpleNamespace(search_for_instances=search), "1.2")
    assert found == [[f"{tag}.{i}" for tag in tags] for i in range(7)]


def test_only_what_the_pacs_names_or_has_counts_as_stored(monkeypatch):
    there = []

    def send(session, request, **_):
        response = requests.Response()
        content = 200, JSON, json.dumps([{"00080018": {"vr": "UI", "Value": there}}]).encode()
        status, kind, body = LATER[case] if request.method == "POST" else content
        response.status_code, response.raw, response.request = status, io.BytesIO(body), request
        response.headers["Content-Type"], response.url = kind, request.url
        return response

    monkeypatch.setattr(requests.Session, "send", send)
    client = pacs.pacs_client("http://127.0.0.1:9")
    for case in LATER:  # noqa: B007
        with pytest.raises(requests.RequestException):
            pacs.store(client, [one(1)])
    there.append(str(one(1).SOPInstanceUID))
    case = "a page"
    pacs.store(client, [one(1)])
    with pytest.raises(pacs.NotConfirmed):
        pacs.store(client, [one(2)])
