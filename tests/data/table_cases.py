"""Tables of groups and of the data's own split, as people have them: rows for `layout_cases`."""

import json

from layout_cases import CASES as OTHERS
from layout_cases import OFFICIAL, PATIENTS, Case, pairs, sides, table

PATHS = "image_path,mask_path"


def numbered(name: str) -> str:
    """Return a table of images in another order than the numbers of its lines."""
    order = {(i + 2) % 5: i for i in range(5)}
    lines = (f"{i},{name.format(of)},{PATIENTS[of]}" for of, i in sorted(order.items()))
    return "\n".join(["id,scan,patient", *lines]) + "\n"


def grouped(content, name="groups.csv", **how) -> Case:
    return Case(pairs() | {name: content}, groups=PATIENTS, **how)


TABLES = {
    "`groups.csv`": grouped(table(), said="2 groups from groups.csv (case_id, group)"),
    "`Groups.CSV`": grouped(table(), "Groups.CSV"),
    "`group_info.txt`, tabs": grouped(table("a{}\t{}", "case_id\tgroup"), "group_info.txt"),
    "Excel's `sep=;`": grouped("sep=;\n" + table("a{};{}", "case_id;group")),
    "UTF-16": grouped(table().encode("utf-16")),
    "Windows-1252": Case(
        pairs() | {"groups.csv": table(groups=dict.fromkeys(range(5), "Größe")).encode("cp1252")},
        groups=dict.fromkeys(range(5), "Größe"),
    ),
    "names in capitals, `Case_ID, Group`": grouped(table("A{},{}", "Case_ID,Group")),
    "paths": grouped(table("C:\\data\\images\\a{}.png,{}")),
    "columns of other names, `Image, Patient ID, Age`": grouped(
        table("a{},{},50", "Image,Patient ID,Age")
    ),
    "zeros lost in a spreadsheet": Case(
        pairs("images/00{}.png", "masks/00{}.png") | {"groups.csv": table("{},{}")},
        ids="00{}", groups=PATIENTS,
    ),
    "a pattern on names": Case(
        pairs("images/{0}-a{0}.png", "masks/{0}-a{0}.png"), ids="{0}-a{0}",
        groups={i: str(i) for i in range(5)}, choices={"groups": r"^(\d+)-"},
        said="5 groups by the pattern",
    ),
    "folders of patients": Case(
        pairs("p{0}/images/a{0}.png", "p{0}/masks/a{0}.png"),
        groups={i: f"p{i}" for i in range(5)}, choices={"groups": "^([^/]+)/"},
    ),
    "a trial's group beside the patient": grouped(
        table("a{},{},control", "image,patient,group"), "clinical.csv"
    ),
    "no first line": Case(
        pairs() | {"groups.csv": table().split("\n", 1)[1]}, refused=True, groups=PATIENTS,
        said="the first line of groups.csv names an image, 'a0'",
    ),
    "`groups: none`": Case(
        pairs() | {"groups.csv": table()}, choices={"groups": "none"}, said="(groups: none)"
    ),
    "none": Case(pairs(), said="groups are not known"),
    "an image is missing in it": Case(
        pairs() | {"groups.csv": table(groups={i: PATIENTS[i] for i in range(4)})},
        groups=PATIENTS | {4: ""}, said="1 images are in no group and are set aside",
    ),
    "two files": Case(
        pairs() | {"groups.csv": table(), "group2.csv": table()}, refused=True, groups=PATIENTS,
        said="several files may name the groups: group2.csv, groups.csv",
        mend={"groups": "groups.csv"},
    ),
    "no column of groups": Case(
        pairs() | {"groups.csv": table("a{},{},x", "case_id,owner,age")}, refused=True,
        groups=PATIENTS, said="groups.csv has no column group, its columns are owner, age",
        mend={"groups": "groups.csv:owner"},
    ),
    "a spreadsheet file": Case(
        pairs() | {"groups.xlsx": b"PK\3\4"}, refused=True, said="groups.xlsx is no table in CSV",
        mend={"groups": "none"},
    ),
    "numbers of lines, `,case_id,owner`, as pandas writes them": grouped(
        table("{0},a{0},{1}", ",case_id,owner")
    ),
    "columns without a name, `case_id,group,,`": grouped(table("a{},{},,", "case_id,group,,")),
    "a title and a comment above": grouped("# by hand\nVisit 2,\n" + table()),
    "UTF-16 without its mark": grouped(table().encode("utf-16-be")),
    "'single quotes'": grouped(table("'a{}','{}'")),
    "groups spelled in three ways, `t 02`, `T2`, `t002`; `4.0`": Case(
        pairs() | {"groups.csv": table(groups=dict(enumerate(("t 02", "T2", "t002", "4.0", "4"))))},
        groups=dict.fromkeys(range(3), "t 02") | dict.fromkeys((3, 4), "4.0"),
        said="3 names count as one",
    ),
    "groups called `proposed7`": Case(
        pairs() | {"groups.csv": table(groups={i: f"proposed{i % 2}" for i in range(5)})},
        groups={i: f"proposed{i % 2}" for i in range(5)},
    ),
    "`a_img.png` and `a_mask.png`, called `a`": Case(
        pairs("a{}_img.png", "a{}_mask.png") | {"groups.csv": table()},
        ids="a{}_img", groups=PATIENTS,
    ),
    "numbers of lines beside names that are numbers, `id,scan`": Case(
        pairs("images/0{}.png", "masks/0{}.png") | {"groups.csv": numbered("0{}.png")},
        ids="0{}", groups=PATIENTS, said="from groups.csv (scan, patient)",
    ),
    "the same, names without endings": Case(
        pairs("images/0{}.png", "masks/0{}.png") | {"groups.csv": numbered("0{}")}, refused=True,
        ids="0{}", said="columns id and scan of groups.csv name different images",
    ),
    "two tables with patients, each of some images": Case(
        pairs()
        | {
            f"{part}.csv": table(header="image,subject", groups={i: PATIENTS[i] for i in rows})
            for part, rows in (("old", (0, 2)), ("new", (1, 3, 4)))
        },
        groups=PATIENTS, said="2 groups from new.csv (image, subject), old.csv (image, subject)",
    ),
    "two tables that differ": Case(
        pairs()
        | {
            "exams.csv": table(header="image,case", groups={i: f"e{i}" for i in range(5)}),
            "patients.csv": table(header="image,patient"),
        },
        refused=True, groups=PATIENTS, said="exams.csv with patients.csv names 'a0' twice",
        mend={"groups": "patients.csv"},
    ),
    "a table with patients that is damaged": Case(
        pairs() | {"patients.csv": table("a{},Doe, {}", "image,patient")},
        said="no groups were found in patients.csv, line 'a0,Doe,p1': too many fields",
    ),
}  # fmt: skip


def divided(content, name="split.json", **how) -> Case:
    how = {"official": OFFICIAL, "choices": {"split": name}} | how
    return Case(pairs() | {name: content}, **how)


LISTS = {
    "train": "a0 1\na1 -1\n\na2\na3", "test": "a4.png\n", "trainval": "a0\na1\na2\na3\na4\n",
}  # fmt: skip
SPLITS = {
    "`split.json`": divided('{"train": ["a0", "a1", "a2", "a3"], "val": [], "test": ["a4"]}'),
    "`split.csv` that begins with patients": Case(
        pairs("images/0{}.png", "masks/0{}.png")
        | {"split.csv": "subject,scan,set\n4,00.png,train\n4,01.png,train\n3,02.png,train\n"
           "3,03.png,train\n0,04.png,test\n"},
        ids="0{}", official=OFFICIAL, choices={"split": "split.csv", "groups": "none"},
    ),
    "`split.csv` of more images": divided(
        table("a{},{}", "name,split", OFFICIAL | {8: "val"}), "split.csv",
        said="4 train, 1 test, by split.csv (protocol official); 1 lines name no image",
    ),
    "`split.json` by image": divided(json.dumps({f"a{i}.png": of for i, of in OFFICIAL.items()})),
    "lists in a folder, as VOC has them, `split: ImageSets`": Case(
        pairs() | {f"ImageSets/{name}.txt": text for name, text in LISTS.items()},
        official=OFFICIAL, choices={"split": "ImageSets"},
    ),
    "such lists, not named": Case(
        pairs() | {f"sets/{name}.txt": text for name, text in LISTS.items()},
        said="none came with the data, but train.txt lies in sets: set split to sets",
    ),
    "`split.json` of records": divided(
        json.dumps([{"file": f"a{i}", "Set": side} for i, side in OFFICIAL.items()])
    ),
    "MONAI's lists": divided(
        json.dumps({
            "labels": {"0": "none"}, "numTraining": 4, "test": ["images/a4.png"],
            "training": [{"image": f"images/a{i}.png", "label": "x"} for i in range(4)],
        })
    ),
    "nnU-Net's folds": divided(
        json.dumps([{"train": ["a0"], "val": ["a1"]}]), "splits_final.json", refused=True,
        said="it has no column split, but train, val",
    ),
    "a CSV of paths with a column `split`": Case(
        pairs()
        | {"all.csv": table("images/a{0}.png,masks/a{0}.png,{1}", f"{PATHS},split", OFFICIAL)},
        official=OFFICIAL, said="4 train, 1 test, by all.csv",
    ),
    "folders that do not count": Case(
        sides("{}/{}/a{}.png"), choices={"split": "none"}, said="not used (split: none)"
    ),
    "one side only": divided(
        '{"train": ["a0"]}', said="puts no image in train or none in test", refused=True
    ),
}  # fmt: skip
CASES = OTHERS | {"Groups": TABLES, "The data's own split": SPLITS}
