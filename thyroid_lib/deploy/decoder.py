"""Trial decoding of DICOM objects in a separate process, which gdcm may end on damaged ones."""

import multiprocessing
import signal
import threading
from contextlib import suppress

from thyroid_lib.data import dicom

TIMEOUT = 300.0  # seconds for one object


def serve(pipe) -> None:
    """Decode each object from a pipe, until its other end is closed; answer None or a refusal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError):  # Windows, which writes no core files
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # they would hold patients' pixels
    with suppress(EOFError, OSError):
        while True:
            content, refused = pipe.recv(), None
            try:
                for _ in dicom.read_frames(dicom.read_file(content)):
                    pass
            except Exception as error:
                refused = dicom.as_refusal(error)
            pipe.send(refused)


class Decoder:
    """The process that decodes; it is started again when it has ended."""

    def __init__(self):
        self.lock = threading.Lock()
        self.start()

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def check(self, content: bytes) -> None:
        """Decode all frames of an object. Refused: they cannot be decoded."""
        for _ in range(2):  # the process may have ended for another reason
            with self.lock:
                try:
                    self.pipe.send(content)
                    if not self.pipe.poll(TIMEOUT):
                        raise TimeoutError
                    refused = self.pipe.recv()
                    break
                except (EOFError, OSError):
                    refused = dicom.Refused("its pixels crash the decoder, or take too long")
                    self.process.kill()
                    self.process.join()
                    self.start()
        if refused:
            raise refused
