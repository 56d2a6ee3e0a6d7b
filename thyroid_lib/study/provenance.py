"""How each file of a study was made: Snakemake's records, kept with the study and moved with it.

Snakemake itself keeps them in the project's `.snakemake`, under the names that the files have on
this machine; a study whose results alone are copied elsewhere would be made anew. Here they lie in
results/<study>/provenance/<step>.json, under names that hold in any place and without times. And
content decides, never a file's time, which a copy has its own of.

Only the workflow imports this module: Snakemake is an extra.
"""

import json
from functools import cache
from pathlib import Path

import snakemake.workflow
from snakemake.persistence import MetadataRecord
from snakemake.persistence.file import FilePersistence

from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.writing import write_file
from thyroid_lib.study.runner import hide_places

FOLDER = "provenance"
ANYWHERE = "results/<study>/"  # what stands for the study's folder in every record
# In no record: another at each time, or telling whose machine it was; nothing depends on it.
PASSING = "starttime", "endtime", "job_hash", "external_jobid", "shellcmd"

_hidden = cache(hide_places)


def keep_with(study: str | Path, *, adopt: bool) -> None:
    """Let Snakemake keep and find the records of this study in its folder.

    Args:
        study: the folder as the rules name it.
        adopt: whether records that lie in `.snakemake` only, as they did once, are copied there.
    """

    class Records(_Records):
        top = f"{study}/"
        adopts = adopt

    snakemake.workflow.FilePersistence = Records


class _Records(FilePersistence):
    """Snakemake's own way to keep records, but for where the study's lie and how they are written.

    One file per step: its outputs are all made from the same. It is read at once and only once, as
    nobody else writes it: the study's folder is claimed.
    """

    top: str
    adopts: bool

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._steps: dict[str, dict] = {}  # title: {"outputs": names, "record": what is known}
        self._known: dict[str, MetadataRecord] = {}  # by an output's name
        self._digests: dict[str, str] = {}
        for path in sorted(Path(self.top, FOLDER).glob("*.json")):
            try:
                step = json.loads(path.read_text("utf-8"))
                self._learn(path.stem, step["record"], step["outputs"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # damaged: as if there were none, and times decide as ever

    def _learn(self, title: str, record: dict, outputs: list[str]) -> None:
        here = self._translate(record, self._here)
        here["input"] = sorted(here["input"] or [])  # as Snakemake sorts these names
        known = MetadataRecord.model_validate(here)
        self._known |= dict.fromkeys(outputs, known)
        self._steps[title] = {"outputs": sorted(outputs), "record": record}

    def _read_record(self, key: str) -> MetadataRecord | None:
        name = self._anywhere(key)
        if name in self._known:
            return self._known[name].model_copy()  # Snakemake changes what it gets
        record = super()._read_record(key)
        if record and record.params:
            record.params = sorted(map(_hidden, record.params))
        if record and name != key and self.adopts:
            self._write_record(key, record)
        return record

    def _write_record(self, key: str, record: MetadataRecord) -> None:
        name = self._anywhere(key)
        if name == key:  # none of the study's files
            return super()._write_record(key, record)
        plain = {what: each for what, each in record.items() if what not in PASSING}
        plain = self._translate(json.loads(json.dumps(plain)), self._anywhere)
        title = Path(plain["log"][0]).stem if plain["log"] else plain["rule"]
        step = self._steps.get(title)
        outputs = step["outputs"] if step and step["record"] == plain else []
        if name not in outputs:
            self._learn(title, plain, [*outputs, name])
            self._save(title)

    def _delete_record(self, key: str) -> bool:
        found, name = super()._delete_record(key), self._anywhere(key)
        if self._known.pop(name, None) is None:
            return found
        for title, step in self._steps.items():
            if name in step["outputs"]:
                step["outputs"].remove(name)
                self._save(title)
        return True

    def _save(self, title: str) -> None:
        text = json.dumps(self._steps[title], indent=1, sort_keys=True)
        write_file(Path(self.top, FOLDER, f"{title}.json"), text + "\n")

    def _params(self, job) -> list:
        """Settings without the folders of this machine, as the executed notebooks show them."""
        return sorted(map(_hidden, super()._params(job)))

    def _input_changed(self, job, file=None) -> bool:
        """Say whether the list of inputs is another, or one of them has another content."""
        record = self._read_record(self._get_key(file))
        known = (record and record.input_checksums) or {}
        return super()._input_changed(job, file) or any(
            self._digest(name) not in ("", digest) for name, digest in known.items()
        )

    def _digest(self, name: str) -> str:
        """As Snakemake writes checksums; "" for a file that is not there, which it sees itself."""
        if name not in self._digests:
            path = Path(name)
            self._digests[name] = f"sha256:{file_digest(path)}" if path.is_file() else ""
        return self._digests[name]

    def _clear_cache(self) -> None:
        super()._clear_cache()
        self._digests.clear()

    def _anywhere(self, name: str) -> str:
        return ANYWHERE + name[len(self.top) :] if name.startswith(self.top) else name

    def _here(self, name: str) -> str:
        return self.top + name[len(ANYWHERE) :] if name.startswith(ANYWHERE) else name

    def _translate(self, value, rename):
        """Rename the files that a record names, wherever in it they stand."""
        if isinstance(value, dict):
            return {rename(k): self._translate(v, rename) for k, v in value.items()}
        if isinstance(value, list):
            return [self._translate(each, rename) for each in value]
        return rename(value) if isinstance(value, str) else value
