"""A real Orthanc on 127.0.0.1 for tests: started, killed and started again.

Orthanc binds every address of the machine and has no setting against it. A shim of C, loaded before
its libraries, turns each bind into one of 127.0.0.1; `Pacs.start` checks that. Its DICOM server is
off: objects come by HTTP, and it forwards them by C-STORE. Settings and route are those of deploy/.
"""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import requests
from tiny_study import wait_until
from urllib3.util import Retry

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SHIM = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <sys/socket.h>
int bind(int s, const struct sockaddr *to, socklen_t size) {
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    if (to->sa_family == AF_INET)
        ((struct sockaddr_in *)to)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return next(s, to, size);
}
"""
DEPLOY = Path(__file__).parent.parent / "deploy"
USER, PASSWORD = "node", "not-for-logs"


def node_environment() -> dict:
    """What a node needs to know of it, beside its address."""
    return os.environ | {"THYROID_PACS_USER": USER, "THYROID_PACS_PASSWORD": PASSWORD}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port: int) -> set[str]:
    """Addresses, as /proc/net has them, at which somebody listens on a port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [fields[1].partition(":") for fields in lines if fields[3] == "0A"]
    return {address for address, _, number in ends if int(number, 16) == port}


class Pacs:
    """One Orthanc with DICOMweb, in a folder; forwards ultrasound to a node at `node_port`."""

    def __init__(self, folder: Path, node_port: int, *, route: bool = True):
        if not (shutil.which("Orthanc") and shutil.which("cc") and Path(PLUGIN).is_file()):
            pytest.skip("Orthanc, its DICOMweb plugin or cc is not installed: make packages")
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.web = f"{self.url}/dicom-web"
        folder.mkdir(parents=True)
        (folder / "shim.c").write_text(SHIM)
        shim = ["cc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"]
        subprocess.run(shim, check=True)
        # a site's own settings, but for ports and what else a test must not have
        settings = json.loads((DEPLOY / "orthanc.json").read_text())
        settings["DicomModalities"]["node"]["Port"] = node_port
        settings |= {"HttpPort": self.port, "DicomServerEnabled": False}
        settings |= {"RemoteAccessAllowed": False} | ({} if route else {"LuaScripts": []})
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.session, self.process = requests.Session(), None
        self.session.auth = (USER, PASSWORD)
        # Orthanc closes idle connections at any moment, perhaps as a request comes
        again = Retry(total=8, backoff_factor=0.1, allowed_methods=None)
        self.session.mount("http://", requests.adapters.HTTPAdapter(max_retries=again))
        self.environment = {
            "PACS_FOLDER": f"{folder}/db", "PACS_ROUTE": str(DEPLOY / "route.lua"),
            "PACS_USER": USER, "PACS_PASSWORD": PASSWORD, "NODE_HOST": "127.0.0.1",
            "LD_PRELOAD": f"{folder}/shim.so", "PATH": "/usr/sbin:/usr/bin:/bin",
        }  # fmt: skip

    def start(self) -> "Pacs":
        command = ["Orthanc", self.folder / "orthanc.json"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        wait_until(self.up, "Orthanc answers")
        assert listening(self.port) == {"0100007F"}
        return self

    def up(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            return self.session.get(f"{self.url}/system", timeout=5).ok
        except requests.ConnectionError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    __enter__ = start

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def get(self, path: str, **how):
        answer = self.session.get(f"{self.url}{path}", timeout=30, **how)
        answer.raise_for_status()
        return answer

    def upload(self, content: bytes) -> None:
        """Store one DICOM file."""
        self.session.post(f"{self.url}/instances", data=content, timeout=30).raise_for_status()
