"""DICOMweb client of a PACS: store objects until it confirms them, find the objects of a study."""

import os
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset, validate_file_meta

from thyroid_lib.data.dicom import TOO_LARGE, Refused

SOP_CLASS, SERIES, INSTANCE = "00080016", "0020000E", "00080018"  # tags in QIDO-RS answers
REFUSING = (400, 406, 409, 413, 415, 422)  # HTTP statuses that another try does not change


class NotConfirmed(requests.RequestException):
    """The PACS does not confirm that it has the object; a later try may succeed."""


def pacs_client(url: str) -> DICOMwebClient:
    """Return a client without retries of its own: the queue retries."""
    session = requests.Session()
    if user := os.environ.get("THYROID_PACS_USER"):
        session.auth = (user, os.environ.get("THYROID_PACS_PASSWORD", ""))
    client = DICOMwebClient(url, session=session, timeout=(5, 120))
    client.set_http_retry_params(retry=False)
    return client


def tag_value(found: dict, tag: str) -> str:
    return (found.get(tag, {}).get("Value") or [""])[0]


def http_status(error: Exception) -> str:
    """Return the HTTP status as a sentence; "" if the PACS did not answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"the PACS answers HTTP {status}" if status else ""


def store(client: DICOMwebClient, objects: Iterable[Dataset]) -> None:
    """Store each object by STOW-RS, and check that the answer names it or a search finds it, as a
    proxy's page has status 200, too. Refused: for good; RequestException: for now.
    """
    for each in objects:
        each.preamble = bytes(128)
        each.file_meta.FileMetaInformationGroupLength = 0  # set when it is written
        validate_file_meta(each.file_meta, enforce_standard=True)  # adds missing elements
        each.save_as(BytesIO())  # so that an error of the object is not taken for the PACS's
        result, problem, own = Dataset(), "", each.SOPInstanceUID
        try:
            result = client.store_instances([each])
        except Exception as error:  # of another kind than these where the answer is no DICOM
            if isinstance(error, requests.RequestException):
                if getattr(error.response, "status_code", 0) not in REFUSING:
                    raise
                problem = f"HTTP {error.response.status_code}"
                with suppress(Exception):  # the body may give a reason
                    result = Dataset.from_json(error.response.text)
        named = result.get("ReferencedSOPSequence") or []
        stored = own in [one.get("ReferencedSOPInstanceUID") for one in named]
        for one in result.get("FailedSOPSequence") or []:
            reason = one.get("FailureReason")
            if not isinstance(reason, int) or reason >> 8 == TOO_LARGE >> 8:
                raise NotConfirmed  # out of resources, for now
            stored, problem = reason == 0x0111, f"0x{reason:04X}"  # 0x0111: duplicate
        if not stored and problem in ("", "HTTP 409"):  # 409 may mean that it is there
            search = {"SOPInstanceUID": own}
            found = client.search_for_instances(each.StudyInstanceUID, search_filters=search)
            stored = own in [tag_value(one, INSTANCE) for one in found]
        if not stored:
            raise Refused(f"the PACS refuses the answer: {problem}") if problem else NotConfirmed


def find_objects(client: DICOMwebClient, study_uid: str) -> list[list[str]]:
    """Return SOP class, series and SOP instance UID of each object of a study, page by page."""
    found = {}
    while True:
        page = client.search_for_instances(study_uid, offset=len(found) or None)
        rows = ([tag_value(each, tag) for tag in (SOP_CLASS, SERIES, INSTANCE)] for each in page)
        page = {row[-1]: row for row in rows}
        if not page.keys() - found:  # an old PACS has one page, whatever the offset
            return list(found.values())
        found |= page
