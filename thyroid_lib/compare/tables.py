"""Tables of the comparison: runs loaded from their folders, summarised, shown and saved."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thyroid_lib import settings
from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import cube, cubes, macro_estimate, sort_rows
from thyroid_lib.compare.stability import MEASURES, worst_decile
from thyroid_lib.data.cases import read_rows
from thyroid_lib.evaluate.imported import UNKNOWN, is_imported
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.paths import project_path, read_json
from thyroid_lib.files.text import decimal, with_interval
from thyroid_lib.files.writing import write_file, write_table

# What must agree between runs for their Dice to be comparable.
SHARED = ("data_fingerprint", *settings.SHARED, "training_version")
# What holds, beside settings.DEFAULTS, for runs whose run.json is older than these fields.
BEFORE = {
    "augment": "none", "precision": "fp32", "external": "", "files": {}, "varied": [],
    "ensemble": [],
}  # fmt: skip
RUN = ["run_id", "model", "protocol", "fold", "seed"]
METRICS = ("nsd", "iou", "hd95_px", "assd_px", "brier", "missed_parts", "false_parts")
NEEDED = ("history.csv", "scores.csv", "thresholds.csv", "calibration.csv")  # in a run's folder


class Results(NamedTuple):
    """What a study's runs left: one table per kind of file, all runs below each other."""

    runs: pd.DataFrame
    histories: pd.DataFrame
    scores: pd.DataFrame
    thresholds: pd.DataFrame
    calibration: pd.DataFrame


def find_runs(runs: list[str], below: str, *, protocols: tuple = (), first: str) -> list[Path]:
    """Return the named runs' folders, or the finished ones in `below`; FileNotFoundError: none."""
    if runs:
        return [project_path(run) for run in runs]
    found = sorted(path.parent for path in project_path(below).glob("*/run.json"))
    found = [run for run in found if not protocols or read_run(run)["protocol"] in protocols]
    if not found:
        kind = f" of protocol {' or '.join(protocols)}" if protocols else ""
        raise FileNotFoundError(f"no finished run{kind} in {below}: {first}")
    return found


def load_runs(folders: list[Path]) -> Results:
    """Load finished runs: a row of `runs` each, and their tables, sorted, by the columns of `RUN`.

    FileNotFoundError, ValueError: no run, runs without a result, tables that were changed, and
    settings or test cases that differ.
    """
    folders, files = sorted(map(Path, folders)), ("run.json", *NEEDED)
    missing = [f.name for f in folders if not all((f / name).is_file() for name in files)]
    if missing:
        lack = f"{len(missing)} of {len(folders)} runs have no result: {', '.join(missing)}"
        raise FileNotFoundError(f"{lack}; run 3-train for them, then compare again")
    about = [(folder, read_run(folder)) for folder in folders]
    runs = pd.DataFrame([run for _, run in about]).sort_values(RUN[1:], ignore_index=True)
    parts = ([read_table(*pair, name) for pair in about] for name in NEEDED)
    # an imported run has no history, one of masks neither thresholds nor calibration
    parts = ([table for table in part if len(table)] or part for part in parts)
    results = Results(runs, *(sort_rows(pd.concat(part)) for part in parts))
    _check_comparable(results.runs, results.scores)
    single = runs[runs["model"].map(is_imported) | (runs["ensemble"] != "")]
    if len(single):
        tables = (_repeat_seeds(table, runs, single) for table in results[2:])
        results = Results(runs, results.histories, *tables)
    return results


def _repeat_seeds(table: pd.DataFrame, runs: pd.DataFrame, single: pd.DataFrame) -> pd.DataFrame:
    """Repeat the rows of imported models and ensembles for the seeds that they lack, as `copied`.

    So the bootstrap sees no variation between their seeds, which nobody knows.
    """
    seeds, parts = runs[~runs.index.isin(single.index)].groupby("protocol")["seed"], [table]
    for (protocol, model, fold), own in single.groupby(["protocol", "model", "fold"])["seed"]:
        where = (table["protocol"] == protocol) & (table["model"] == model)
        first = table[where & (table["fold"] == fold) & (table["seed"] == own.min())]
        lacking = sorted(set(seeds.get_group(protocol)) - set(own))
        parts += [first.assign(seed=seed, copied=True) for seed in lacking if len(first)]
    return sort_rows(pd.concat(parts)) if len(parts) > 1 else table


def read_run(folder: Path) -> dict:
    """Read a run.json; `model` is then the variant's name, `network` that of its network."""
    about = read_json(folder / "run.json")
    elsewhere = dict.fromkeys(settings.TRAINING, UNKNOWN) if about.get("imported") else {}
    about = settings.DEFAULTS | BEFORE | elsewhere | about
    if isinstance(about["augment"], dict):
        about["augment"] = ", ".join(f"{name} {p:g}" for name, p in about["augment"].items())
    named = {"network": about["model"], "model": about.get("variant") or about["model"]}
    return about | named | {name: " ".join(about[name]) for name in ("varied", "ensemble")}


def read_table(folder: Path, run: dict, name: str) -> pd.DataFrame:
    """Read a run's table, the columns of `RUN` first.

    ValueError: run.json has another digest, or the run was scored before a metric existed.
    """
    digest, advice = file_digest(folder / name), "run 3-train again (it scores, and trains nothing)"
    if run["files"].get(name, digest) != digest:
        problem = "is not the file that was written (damaged? edited?)"
        raise ValueError(f"{folder.name}/{name} {problem}; {advice}")
    table = read_rows(folder / name)
    if lacking := [x for x in METRICS if x not in table and name == "scores.csv"]:
        problem = f"has no column {', '.join(lacking)}: the run was scored before it existed"
        raise ValueError(f"{folder.name}/{name} {problem}; {advice}")
    return pd.DataFrame({column: run[column] for column in RUN}, index=table.index).join(table)


def load_optional(folders: list[Path], name: str) -> pd.DataFrame | None:
    """Read a table that runs may lack, of all trained runs; None unless each has it, one rows.

    The rows of ensembles are repeated for the other seeds, as `load_runs` does.
    """
    runs = [(folder, read_run(folder)) for folder in map(Path, folders)]
    trained = [pair for pair in runs if not is_imported(pair[1]["model"])]
    if not trained or not all((folder / name).is_file() for folder, _ in trained):
        return None
    parts = [table for pair in trained if len(table := read_table(*pair, name))]
    if not parts:
        return None
    about = pd.DataFrame([run for _, run in trained])
    table = pd.concat(parts, ignore_index=True)
    return _repeat_seeds(table, about, about[about["ensemble"] != ""])


def _check_comparable(runs: pd.DataFrame, scores: pd.DataFrame) -> None:
    imported = runs["model"].map(is_imported)
    alone = set(runs.protocol[imported]) - set(runs.protocol[~imported])
    if alone or imported.all():
        alone = f" under {', '.join(sorted(alone))}" * bool(alone)
        raise ValueError(f"all runs{alone} are imported: need at least one trained here beside")
    doubled = runs.run_id[runs.duplicated(RUN[1:])]
    if len(doubled):
        raise ValueError(f"runs given twice: {', '.join(doubled)}")
    for field in SHARED:
        own = runs["varied"].str.split().map({field}.issubset)  # alike within each variant alone
        known = runs[(runs[field] != UNKNOWN) | ~(imported | (runs["ensemble"] != ""))]
        for _, alike in known.groupby(known["model"].where(own, "")):
            usual = alike.loc[~imported, field].mode()[0]
            other = alike[alike[field] != usual]
            if len(other):
                each = other["run_id"] + " has " + other[field].astype(str)
                what = f"{field} differs between runs: most have {usual}, but {', '.join(each)}"
                raise ValueError(f"{what}; train them again with equal settings")
    cases = scores.groupby(RUN[1:])["case_id"].agg(lambda ids: "\n".join(sorted(ids)))
    for (protocol, fold), lists in cases.groupby(["protocol", "fold"]):
        if lists.nunique() > 1:
            what = f"runs of protocol {protocol}, fold {fold} were tested on different cases"
            raise ValueError(f"{what}: train them again on one store")


def recipes(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
    """Return what the trained models' recipes differ in, a row per model, and what they share.

    Columns: model; network, unless that is each model's name; each setting that some variant
    varies. The dict holds the other settings of training that are not at their default.
    """
    trained = runs[~runs["model"].map(is_imported)].sort_values("model")
    each = trained.drop_duplicates("model").reset_index(drop=True)
    varied = {name for text in trained["varied"] for name in text.split()}
    network = [] if (each["model"] == each["network"]).all() else ["network"]
    names = ["model", *network, *(name for name in settings.VARIED if name in varied)]
    usual = settings.DEFAULTS | BEFORE
    shared = {
        name: each[name].iloc[0]
        for name in settings.VARIED
        if name not in varied and each[name].iloc[0] != usual.get(name)
    }
    return each[names], shared


def group_means(scores: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Average frames within groups, then over seeds and folds: columns `metric` and `frames`."""
    keys = ["protocol", "model", "group"]
    each = sort_rows(scores).groupby([*keys, "fold", "seed"])[metric].agg(["mean", "size"])
    means = each.groupby(keys).agg(**{metric: ("mean", "mean"), "frames": ("size", "first")})
    return bootstrap.mark_groups(means.reset_index(), scores)


def summary(scores, runs, calibration, *, resamples: int = 10_000) -> pd.DataFrame:
    """Summarise each protocol and model in a row, best Dice first within a protocol.

    Columns: protocol, model; selection: which epoch's weights were kept; dice, its 95 % interval
    dice_low and dice_high (NaN for a single group) and whether it is conditional; dice_sd_groups,
    dice_sd_seeds; dice_worst_decile; `METRICS` and ece: group-macro means; missed: test frames with
    Dice 0, in all runs; groups, folds, seeds; parameters; multiply_adds per image.
    """
    parts, copied = [], bootstrap.copied_models(scores)
    own = scores[scores["copied"] != 1] if copied else scores  # an ensemble has one seed
    missed = (own["dice"] == 0).groupby([own["protocol"], own["model"]]).sum()
    gap = calibration["pixels"] * (calibration["mean_prob"] - calibration["share"]).abs()
    sums = calibration.assign(gap=gap).groupby([*RUN[1:], "group"])[["gap", "pixels"]].sum()
    errors = (sums["gap"] / sums["pixels"]).rename("ece").reset_index()  # weighed by pixels
    for of in cubes(scores):
        draws, models = bootstrap.draw(of, resamples=resamples), list(of.models)
        low, high = bootstrap.bounds(bootstrap.macro_means(of.values, draws), of)
        cases = scores[scores["protocol"] == of.protocol].groupby("model")["dice"]
        first = runs[runs["protocol"] == of.protocol].drop_duplicates("model").set_index("model")
        each = {name: _macro_means(scores, of, name) for name in METRICS}
        each["ece"] = _macro_means(errors, of, "ece")
        unknown = np.isin(models, copied)  # whose seeds vary nothing
        columns = {
            "protocol": of.protocol, "model": models, "selection": first["selection"][models],
            "dice": macro_estimate(of.values), "dice_low": low, "dice_high": high,
            "conditional": of.conditional | unknown,
            "dice_sd_groups": pd.DataFrame(np.nanmean(of.values, axis=(1, 2))).std(axis=1),
            "dice_sd_seeds": pd.DataFrame(np.nanmean(of.values, axis=1).mean(axis=2)).std(axis=1)
            .mask(unknown),
            "dice_worst_decile": cases.agg(worst_decile)[models],
            **each,
            "missed": missed[of.protocol][models],
            **{name: of.size[name] for name in ("groups", "folds")},
            "seeds": np.where(unknown, 1, of.size["seeds"]),
            **{name: first[name][models] for name in ("parameters", "multiply_adds")},
        }  # fmt: skip
        part = pd.DataFrame({name: np.asarray(value) for name, value in columns.items()})
        parts.append(part.sort_values(["dice", "model"], ascending=[False, True]))
    return bootstrap.mark_groups(pd.concat(parts, ignore_index=True), scores)


def _macro_means(table: pd.DataFrame, of: bootstrap.Cube, metric: str) -> np.ndarray:
    """Return the group-macro mean of each model of `of`, (M,); NaN where masks were imported."""
    known = table[table[metric].notna() | ~table["model"].map(is_imported)]
    part = cube(known, of.protocol, metric)
    means = pd.Series(macro_estimate(part.values), part.models)
    return means.reindex(of.models).to_numpy()


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model: training time and memory of its runs (medians), and its size."""
    medians = ("train_seconds", "images_per_second", "peak_memory_mib")
    how = {"run_id": "size", "precision": "first", **dict.fromkeys(medians, "median")}
    table = runs.groupby("model").agg(how | {"parameters": "first", "multiply_adds": "first"})
    return table.reset_index().rename(columns={"run_id": "runs"})


def answering(scores: pd.DataFrame, folders: list[Path], protocol: str) -> pd.DataFrame:
    """Keep one protocol's scores by runs that can answer: each case once per model.

    These are the runs of the smallest seed, and not those whose committed tables are used again,
    which have no weights; of the others, cases that each model has.
    """
    here = [
        x.name for x in folders if any((x / y).is_file() for y in ("model.pt", "imported.json"))
    ]
    part = scores[(scores["protocol"] == protocol) & scores["run_id"].isin(here)]
    part = part[part["seed"] == part["seed"].min()]
    models = part.groupby("case_id")["model"].transform("nunique")
    return part[models == part["model"].nunique()]


def with_numbers(shown: pd.DataFrame, table: pd.DataFrame, *columns) -> pd.DataFrame:
    """Add columns of a table as text; of each its heading, name and digits."""
    text = {head: [decimal(x, digits) for x in table[name]] for head, name, digits in columns}
    return shown.assign(**text)


def _protocols(table: pd.DataFrame) -> pd.Series:
    """Name each row's protocol, and say whether its groups were proposed."""
    return table["protocol"] + " (proposed groups)" * ("grouping" in table)


def show_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Turn `summary` into the table for people; † marks intervals for the trained runs alone."""
    # Only the replication picks epochs on the test set, and no table of it goes without a mark.
    mark = np.where(table["selection"] == "test", " (epoch picked on test)", "")
    dice = with_interval(table, ("dice", "dice_low", "dice_high"))
    shown = pd.DataFrame({"protocol": _protocols(table) + mark, "model": table["model"]})
    return with_numbers(
        shown.assign(**{"Dice [95 % interval]": dice}), table,
        ("SD groups", "dice_sd_groups", 3), ("SD seeds", "dice_sd_seeds", 3),
        ("worst decile", "dice_worst_decile", 3), ("NSD", "nsd", 3), ("HD95 (px)", "hd95_px", 1),
        ("missed", "missed", 0), ("ECE", "ece", 3), ("Brier", "brier", 3),
    )  # fmt: skip


def show_details(table: pd.DataFrame) -> pd.DataFrame:
    """Turn the rest of `summary` into a table for people: size of the study, parts, cost."""
    sizes = table[["groups", "folds", "seeds"]].astype(str).agg(" × ".join, axis=1)
    units = table.assign(m=table["parameters"] / 1e6, g=table["multiply_adds"] / 1e9)
    shown = table[["model"]].assign(**{"groups × folds × seeds": sizes})
    shown.insert(0, "protocol", _protocols(table))
    return with_numbers(
        shown, units,
        ("IoU", "iou", 3), ("ASSD (px)", "assd_px", 1), ("missed parts", "missed_parts", 2),
        ("false parts", "false_parts", 2), ("parameters (M)", "m", 2),
        ("multiply-adds (G)", "g", 2),
    )  # fmt: skip


def show_pairs(differences: pd.DataFrame, mixed: pd.DataFrame) -> pd.DataFrame:
    """Put the bootstrap's differences and the mixed model's side by side, for people."""
    both = differences.merge(mixed, on=["protocol", "a", "b"], suffixes=("", "_mixed"))
    both["protocol"] = _protocols(differences)
    known = both["low"].notna()  # with a single group nothing is
    mixed_names = ("difference_mixed", "low_mixed", "high_mixed")
    columns = {
        "a − b": both["a"] + " − " + both["b"],
        "Dice [95 % interval]": with_interval(both, ("difference", "low", "high")),
        "mixed model": with_interval(both, mixed_names, 2),
        "p": both["p"].map(lambda p: f"{p:.2f}" if p >= 0.01 else "<0.01").where(known, "–"),
        "reading": both["reading"],
        "80 % see": both["smallest_gap"].map("{:.3f}".format).where(known, "–"),
    }
    return both[["protocol"]].assign(**columns)


def show_stability(stability: pd.DataFrame) -> pd.DataFrame:
    """Turn `stability.stability` into a table for people: one column per measure."""
    text = stability.assign(text=with_interval(stability, ("value", "low", "high")))
    text["protocol"] = _protocols(stability)
    wide = text.pivot(index=["protocol", "model"], columns="measure", values="text")
    return wide[list(MEASURES)].reset_index().rename_axis(columns=None)


def save_tables(out: Path, *, scores, runs, table, selected: dict, card: str, **more) -> None:
    """Write the comparison's tables into the folder `out`; `x=…` of `more` gives x.csv, or None."""
    for name, shown in (("summary", show_summary(table)), ("details", show_details(table))):
        write_file(out / f"{name}.md", shown.to_markdown(index=False, disable_numparse=True) + "\n")
    # Fewer digits: the mixed model's optimiser stops at slightly other points on other machines.
    digits = {"cost": 1, "mixed": 3, "summary": 6, "groups": 6}
    tables = {"summary": table, "groups": group_means(scores), "cost": cost(runs)}
    tables |= {name: content for name, content in more.items() if content is not None}
    for name, content in tables.items():
        write_table(out / f"{name}.csv", content, digits=digits.get(name, 4))
    write_file(out / "selected.json", json.dumps(selected, indent=1, sort_keys=True) + "\n")
    write_file(out / "model_card.md", card)
