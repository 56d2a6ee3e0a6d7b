"""Copy the selected model of the demo's release into a release small enough to be committed.

    python tools/demo_release.py results/demo/deploy results/reference/demo-release

The web page starts with it where no demo was run. The model was trained on phantoms only.
"""

import json
import sys
from pathlib import Path

from thyroid_lib.deploy.export import write_release


def main(release: Path, out: Path) -> None:
    """Copy all files but those of other models; release.json and SHA256SUMS list the copies."""
    about = json.loads((release / "release.json").read_text("utf-8"))
    names, selected = about.pop("files"), about["selected"]
    others = {
        file for name, files in about["models"].items() if name != selected
        for file in files.values()
    }  # fmt: skip
    files = {name: (release / name).read_bytes() for name in names if name not in others}
    settings = json.loads(files["parameters.json"])
    files["parameters.json"] = json.dumps({selected: settings[selected]}, indent=1) + "\n"
    for part in ("models", "runs"):
        about[part] = {selected: about[part][selected]}
    write_release(out, files, about)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
