"""Trial decoding of DICOM objects in a separate process, which gdcm may end on damaged ones."""

import multiprocessing
import signal
import threading
from contextlib import suppress

from thyroid_lib.data import dicom

TIMEOUT = 300.0  # seconds for one object


def refusal(source) -> tuple[str, int] | None:
    """Return why an object, bytes or path, is refused, and the status code; None if it is not."""
    try:
        for _ in dicom.read_frames(dicom.read_file(source)):
            pass
    except dicom.Refused as error:
        return str(error), error.status
    except Exception as error:  # whose text might quote the object
        status = dicom.TOO_LARGE if isinstance(error, (OSError, MemoryError)) else dicom.BROKEN
        return f"{type(error).__name__} while it was being decoded", status


def serve(pipe) -> None:
    """Answer `refusal` for each source from a pipe, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError):  # Windows, which writes no core files
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # they would hold patients' pixels
    with suppress(EOFError, OSError):
        while True:
            pipe.send(refusal(pipe.recv()))


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

    def check(self, source) -> None:
        """Decode all frames of an object, bytes or path. Refused: they cannot be decoded."""
        for _ in range(2):  # the process may have ended for another reason
            with self.lock:
                try:
                    self.pipe.send(source)
                    if not self.pipe.poll(TIMEOUT):
                        raise TimeoutError
                    refused = self.pipe.recv()
                    break
                except (EOFError, OSError) as error:
                    refused = "its pixels crash the decoder, or take too long", dicom.BROKEN
                    self.process.kill()
                    self.process.join()
                    self.start()
                    if isinstance(error, TimeoutError):
                        break
        if refused:
            raise dicom.Refused(*refused)
