"""Print what a data set holds and how a study would read it; draw a contact sheet.

    python -m thyroid_lib.data PATH [key=value …] [--size 256] [--resize square] [--no-sheet]

Keys are those of a study: images, masks, pairing, mask_values, groups, split; and classes='{gland:
"1", nodule: "2"}'.
"""

import argparse
import sys
from pathlib import Path

from thyroid_lib.data.locate import find_data
from thyroid_lib.data.look import Look, check_cases, contact_sheet, look
from thyroid_lib.files.paths import project_path
from thyroid_lib.settings import check_parameters, read_yaml


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 where the data cannot be read as they are; the reason is printed."""
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib.data", description=__doc__)
    parser.add_argument("path", help="folder, zip, or kaggle:owner/slug/version")
    parser.add_argument("choices", nargs="*", metavar="key=value")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--resize", choices=("square", "letterbox"), default="square")
    parser.add_argument("--no-sheet", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if not given.path or not all("=" in choice for choice in given.choices):
            raise ValueError(f"got {given.path!r} {given.choices}: need a path, then key=value")
        choices = dict(choice.split("=", 1) for choice in given.choices)
        classes = read_yaml(choices.pop("classes", "{}"))
        classes = check_parameters({"classes": classes}, {"classes": {}})["classes"]
        seen = look(find_data(given.path), classes=classes, **choices)
        said = check_cases(seen.cases, size=given.size, resize=given.resize)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    said = seen.seen | said
    if not given.no_sheet:
        said["sheet"] = project_path("results/look") / f"{Path(given.path).stem}.png"
        said["sheet"].parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(seen.cases).save(said["sheet"])
    print(Look(seen.cases, said))
    return 0 if "size" in said else 1  # every case is set aside


if __name__ == "__main__":
    sys.exit(main())
