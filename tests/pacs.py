"""A real Orthanc on 127.0.0.1 for tests: started, killed and started again.

Orthanc binds every address of the machine, and has no setting against it: RemoteAccessAllowed only
answers others with 403. A shim of C, loaded before its libraries, turns each bind into one of
127.0.0.1; `Pacs.start` looks at the system's table of sockets whether it did. Its DICOM server is
off: objects come by HTTP, and it forwards them by C-STORE as a client.
"""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests

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
# US alone goes on: SEG and SR, which come back, do not.
ROUTE = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  if tags['Modality'] == 'US' then
    SendToModality(instanceId, 'node')
  end
end
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(pid: int) -> set[str]:
    """Addresses, as /proc/net has them, on which a process listens."""
    inodes = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        inodes.add(each.readlink().name if each.is_symlink() else "")
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def wait_for(ready, seconds: float = 30, pause: float = 0.02):
    """Return what is true in the end; fail where it is not in time."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f"not within {seconds} s: {ready}"
        time.sleep(pause)
    return found


class Pacs:
    """One Orthanc with DICOMweb, on free ports, in a folder; forwards to a node at `node_port`."""

    def __init__(self, folder: Path, node_port: int, *, route: bool = True):
        for program in ("Orthanc", "cc"):
            if not shutil.which(program):
                pytest.skip(f"{program} is not installed: make packages")
        if not Path(PLUGIN).is_file():
            pytest.skip("Orthanc's DICOMweb plugin is not installed: make packages")
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.web = f"{self.url}/dicom-web"
        folder.mkdir(parents=True)
        (folder / "shim.c").write_text(SHIM)
        shim = ["cc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"]
        subprocess.run(shim, check=True)
        (folder / "route.lua").write_text(ROUTE if route else "")
        settings = {
            "Name": "test", "StorageDirectory": f"{folder}/db", "IndexDirectory": f"{folder}/db",
            "Plugins": [PLUGIN], "LuaScripts": [f"{folder}/route.lua"], "HttpPort": self.port,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomServerEnabled": False, "DicomAet": "ORTHANC", "DicomWeb": {"Enable": True},
            "DicomModalities": {"node": {
                "AET": "THYROID", "Host": "127.0.0.1", "Port": node_port,
                "AllowTranscoding": False,
            }},
            "TranscodeDicomProtocol": False, "OverwriteInstances": False,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.session, self.process = requests.Session(), None

    def start(self) -> "Pacs":
        log = open(self.folder / "log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            ["Orthanc", "--verbose", self.folder / "orthanc.json"], stdout=log, stderr=log,
            env={"LD_PRELOAD": f"{self.folder}/shim.so", "PATH": "/usr/sbin:/usr/bin:/bin"},
        )  # fmt: skip
        log.close()
        wait_for(self.up)
        assert listening(self.process.pid) == {"0100007F"}
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

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def get(self, path: str, **how):
        answer = self.session.get(f"{self.url}{path}", timeout=30, **how)
        answer.raise_for_status()
        return answer

    def upload(self, content: bytes) -> str:
        """Store one DICOM file; its number in Orthanc."""
        answer = self.session.post(f"{self.url}/instances", data=content, timeout=30)
        answer.raise_for_status()
        return answer.json()["ID"]
