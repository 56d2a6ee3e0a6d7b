"""Settings of a study: names, types, ranges, units and help, checked before any work.

    python -m thyroid_lib.study.runner check parameters/demo.yaml

`Study` has one field per key of parameters/*.yaml, `Parameters` adds those of the notebooks.
Importing this module loads no torch: it takes 0.1 s.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic import confloat as number
from pydantic import conint as whole

from thyroid_lib.clashes import clashes
from thyroid_lib.files.packages import missing_packages
from thyroid_lib.files.text import printable, read_yaml, show, unknown, variant_name

# Choices that several wings know; tests/test_settings.py holds the wings to them.
NETWORKS = (
    "unet", "segnet", "resunet", "segnet_reported", "resunet_reported", "segnet_reported_no_relu",
)  # fmt: skip
PROTOCOLS = ("random", "reported", "official", "grouped", "leave-one-group-out", "external")
LEAKY = ("random", "reported", "official")  # a group may stand on two sides of the split
ALL = "all"  # every group is trained on and none tested: a network to release, of no study
ONE_SPLIT = (*LEAKY, "external", ALL)  # no folds: fold 0
CHOICES = ("images", "masks", "pairing", "mask_values", "groups", "split")  # of source folder
MOST_CLASSES = 7  # a pixel's possible classes are 8 bits, one of them background's
MENDS = ("text", "specks", "holes")
AUGMENTS = ("none", "standard")  # or a mapping of these to their probabilities:
AUGMENTATIONS = (
    "flip", "affine", "elastic", "gamma", "gain", "depth_gain", "side_gain", "speckle", "blur",
)  # fmt: skip
FEW_GROUPS = 10  # with fewer, intervals are too narrow: see docs/statistics.md
PRECISIONS = ("fp32", "bf16", "fp16")
# Keys of run.json that two equal trainings do not share: times, memory, epochs of a call.
MEASURED = (
    "images_per_second", "peak_memory_mib", "scoring_seconds", "train_seconds", "trained_epochs",
)  # fmt: skip


def _unique(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("no value may stand twice")
    return values


def _several(classes: dict) -> dict:
    # one: its name is the task, its values are mask_values; background is what is in no class
    if len(classes) == 1 or len(classes) > MOST_CLASSES or "background" in classes:
        raise ValueError("need other classes")
    return classes


def _some(item, least: int = 1):
    return Annotated[list[item], Field(min_length=least), AfterValidator(_unique)]


def _text(pattern: str = r"^[^\x00]*$", need: str = "need a text without NUL"):
    # a whole number and a date may be a name; 1.50 may not, as its last digit is lost
    plain = BeforeValidator(lambda value: str(value) if type(value) in (int, date) else value)
    return Annotated[str, Field(pattern=pattern), plain, need]


Name = _text(r"^[a-z0-9][a-z0-9_-]{0,99}$", "need a-z, 0-9, - and _ only, 100 at most")
Network = _text(
    r"^[a-z][a-z0-9_]{0,39}(:[A-Za-z0-9_.+-]{1,60}){0,2}$",
    "need a-z first, then a-z, 0-9 and _, 40 at most, or a name such as resunet:resnet34",
)
SHORT = "need a-z first, then a-z, 0-9 and _, 40 at most"
ShortName = _text(r"^[a-z][a-z0-9_]{0,39}$", SHORT)  # of a variant or a class
Folder, Protocol = _text(r"^[^\x00]+$", "need a folder"), Literal[PROTOCOLS]
Fold, Seed = whole(ge=0, le=9999), whole(ge=0, lt=2**32)


def _key(help: str, steps: str = "", role: str = "", **other):
    """Return a field: its help, the steps whose notebooks take it from the study, and its role.

    Role "training": another value is another training; compared runs agree in these and in the
    "shared" ones. A key that a file may leave out has a default=….
    """
    return Field(description=help, json_schema_extra={"steps": steps, "role": role}, **other)


_data = partial(_key, steps="preprocess audit deploy")
_choice = partial(_data, default="")  # how a folder is read
_store = partial(_key, steps="preprocess", role="shared")
_recipe = partial(_key, steps="train", role="training")
_score = partial(_key, steps="train score", role="shared")
_split = partial(_score, steps="audit train score")
SourceName = Literal["phantom", "tg3k", "folder"]
ONE_SOURCE = "phantom (drawn here), tg3k or folder"
VARIANT = "its name among the compared ones; '' is that of the network"
HELD_BACK = "share of the training frames held back for validation"
FLIPPED = "average the answers to a frame and to its mirror image"
KEPT = "epoch whose weights are kept: last, or best on val"


class _Strict(BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


Share = number(ge=0, le=1)
CLASSES = "{name: levels, colours, TI-RADS or tissues}; {} for one class"
Classes = Annotated[
    dict[ShortName, _text()],
    AfterValidator(_several),
    f"need 2 to {MOST_CLASSES}, named by a-z, 0-9 and _, background not among them, with their "
    'values as one text: {gland: "1", nodule: "2, 3"}',
]
Ensembles = Annotated[
    dict[ShortName, _some(ShortName)],
    "need {name: [variants]}, each once, names of a-z, 0-9 and _, a-z first, 40 at most",
]
Augment = Annotated[
    Literal[AUGMENTS] | Annotated[dict[Literal[AUGMENTATIONS], Share], Field(min_length=1)],
    f"need {' or '.join(AUGMENTS)}, or probabilities, {{flip: 0.5, gamma: 1}}, "
    f"of {', '.join(AUGMENTATIONS)}",
]


def _check_variants(value):
    """Check names and settings of variants, each by `VariantSettings`."""
    if not isinstance(value, dict):
        raise ValueError("need a mapping: {name: {model: unet, lr: 1.0e-3}}")
    checked, problems = {}, []
    for name, own in value.items():
        try:
            TypeAdapter(ShortName).validate_python(name)
            if not isinstance(own, dict):
                raise ValueError("need a mapping: {model: unet, lr: 1.0e-3}")
            checked[name] = check_study(own, VariantSettings)
        except ValidationError:
            problems.append(f"{printable(name)}: {SHORT}")
        except ValueError as error:
            problems += [f"{printable(name)}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ValueError("; ".join(problems))
    return checked


def _check_source(value, check_one):
    """Check the name of one source, or a list of mappings: data sets, each with its `Source`."""
    if not isinstance(value, list):
        return check_one(value)
    checked, problems = [], [] if value else ["the list is empty"]
    for i, entry in enumerate(value, 1):
        try:
            if not isinstance(entry, dict):
                raise ValueError("need a mapping: {dataset: a, source: folder, data: path/to/a}")
            checked.append(check_study(entry, Source))
        except ValueError as error:
            problems += [f"entry {i}: {line}" for line in str(error).splitlines()]
    names = [entry["dataset"] for entry in checked]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"several entries have dataset: {', '.join(doubled)}, need one each")
    if problems:
        raise ValueError("; ".join(problems))
    return checked


class Study(_Strict):
    """The keys of a study's YAML; upper bounds stop slips of the pen."""

    study: Name = _key("folder of the results: results/<study>")
    source: Annotated[SourceName, pydantic.WrapValidator(_check_source)] = _data(ONE_SOURCE)
    data: _text() = _data("folder, zip, kaggle:owner/slug/version, auto (TG3K); '' for phantoms")
    images: _text() = _choice("folder or pattern of the images; '' to find them")
    masks: _text() = _choice("folder or pattern of the masks, *_mask*.png; '' to find them")
    pairing: _text() = _choice("pattern of what names an image and its mask; '' to find it")
    mask_values: _text() = _choice("levels or colours that are gland, '1, 2'; '' to find them")
    groups: _text() = _choice("table, table:column, pattern, proposed or none; '' to find it")
    split: _text() = _choice("table or JSON of the data's own split, or none; '' to find it")
    task: Literal["gland", "nodule", "gland+nodule"] = _data(
        "what is segmented: gland, nodule or gland+nodule", default="gland"
    )
    classes: Classes = _data(CLASSES, default={})
    phantom_sweeps: whole(ge=1, le=100) = _data("sweeps to draw")
    phantom_frames: whole(ge=1, le=1000) = _data("frames per sweep")
    phantom_seed: Seed = _data("seed of the drawing")
    phantom_text: bool = _data("burn text into frames and masks, as TG3K has it")
    phantom_nodules: bool = _data("draw nodules, with labels of their kind", default=False)
    size: whole(ge=16, le=4096) = _store("px, side of the squares that the networks see")
    resize: Literal["square", "letterbox"] = _store("square (as reported) or letterbox")
    mend: _some(Literal[MENDS], 0) = _store("rules that mend masks: text, specks, holes")
    models: _some(Network, 0) = _key("networks to train", default=[])
    variants: Annotated[dict, BeforeValidator(_check_variants)] = _key(
        "networks, each with settings of its own", default={}
    )
    ensembles: Ensembles = _key("variants whose runs, of all seeds, answer together", default={})
    width: whole(ge=0, le=512) = _recipe("base channels; 0 for each paper's own")
    protocols: _some(Protocol) = _key("how cases are split: grouped, random, official", "audit")
    folds: whole(ge=2, le=999) = _split("parts that the groups are dealt into")
    external: _some(Name, 0) = _split("data sets that only protocol external tests", default=[])
    run_folds: _some(Fold) = _key("which of the parts are tested, each in runs of its own")
    val_share: number(gt=0, lt=0.5) = _split(HELD_BACK)
    seeds: _some(Seed) = _key("seeds of weights, order of batches and augmentation")
    epochs: whole(ge=1, le=100_000) = _recipe("passes over the training frames")
    batch_size: whole(ge=1, le=65_536) = _recipe("frames per step")
    lr: number(ge=1e-12, le=1e12) = _recipe("learning rate of Adam")
    selection: Literal["last", "val"] = _recipe(KEPT)
    augment: Augment = _recipe("none (as reported)")
    loss: Literal["bce", "bce+dice"] = _recipe("cross-entropy, or with soft Dice", default="bce")
    schedule: Literal["constant", "one-cycle"] = _recipe("of lr, in a training", default="constant")
    weight_decay: Share = _recipe("AdamW's weight decay; 0 is Adam", default=0.0)
    ema: number(ge=0, lt=1) = _recipe("decay of averaged weights by step; 0: none", default=0.0)
    pretrained: _text() = _recipe("none, imagenet, or a file of weights", default="none")
    encoder_lr: number(gt=0, le=1) = _recipe("share of lr that an encoder gets", default=1.0)
    train_share: number(gt=0, le=1) = _recipe("share of the training groups used", default=1.0)
    flip_test: bool = _key(FLIPPED, "train", "shared", default=False)
    threshold: number(gt=0, lt=1) = _score("a pixel is thyroid if its probability is above")
    tolerance_px: number(gt=0, le=4096) = _score("px, tolerance of the normalised surface Dice")
    delta: number(ge=0, le=1) = _key("Dice that makes no difference in practice", "compare")
    resamples: whole(ge=100, le=100_000) = _key("resamples of groups", "compare replication")
    threads: whole(ge=0, le=1024) = _recipe("CPU threads, 0 for all", steps="train deploy")
    device: Literal["auto", "cpu", "cuda", "mps"] = _recipe("auto, cpu, cuda or mps")
    precision: Literal["auto", *PRECISIONS] = _recipe("auto (what is fast), fp32, bf16 or fp16")
    compile: bool = _recipe("torch.compile: seconds at first, then fewer a step", default=False)
    cuda_graph: bool = _recipe("launch a step as one CUDA graph", default=False)
    pin_instructions: bool = _key("AVX2 on every x86-64 processor, for the same bits on each")
    budget_minutes: number(ge=0, le=100_000) = _key("minutes until training stops")
    tensorboard: bool = _key("also write event files; no result depends on them", "train")
    reuse: bool = _key("take committed tables of a run, not train it", "train", default=True)
    deploy: bool = _key("also export the models for use without torch")
    retrain: bool = _key("release the selected variant alone", "deploy", default=False)


# One entry of a `source` that is a list; phantom_* that are left out are those of the study.
Source = pydantic.create_model(
    "Source",
    __base__=_Strict,
    dataset=(Name, _key("name of the data set")),
    source=(SourceName, _key(ONE_SOURCE)),
    annotated=(_text() | None, _key("classes that it outlines; '' for all", default=None)),
    **{
        name: (field.rebuild_annotation() | None, _key(field.description, default=None))
        for name, field in Study.model_fields.items()
        if name in ("data", *CHOICES) or name.startswith("phantom_")
    },
)


# One entry of `variants`: a network, and the settings of the recipe that are its own.
NOT_OWN = ("device", "threads")  # of role training, but the machine's
VariantSettings = pydantic.create_model(
    "VariantSettings",
    __base__=_Strict,
    model=(Network, _key("network to train")),
    protocols=(_some(Protocol), _key("protocols that it runs under", default=None)),
    val_share=(number(ge=0, lt=0.5), _key(HELD_BACK, default=None)),
    **{
        name: (field.rebuild_annotation(), _key(field.description, default=None))
        for name, field in Study.model_fields.items()
        if name == "flip_test"
        or (field.json_schema_extra["role"] == "training" and name not in NOT_OWN)
    },
)
VARIED = tuple(VariantSettings.model_fields)[2:]


class Parameters(Study):
    """What the notebooks take: a study's keys, one value where it lists several, and folders."""

    models: _some(Network) = _key("networks to train")
    model: Network = _key("network to train")
    variant: _text(r"^([a-z][a-z0-9_]{0,39})?$", "need a variant's name or ''") = _key(VARIANT)
    varied: _some(Literal[VARIED], 0) = _key("settings that are the variant's own")
    protocol: Literal[*PROTOCOLS, ALL] = _key("how cases are split: grouped, random, official")
    fold: Fold = _key("which part is the test set")
    seed: Seed = _key("seed of weights, order of batches and augmentation")
    val_share: number(ge=0, lt=0.5) = _key(HELD_BACK)
    selection: Literal["last", "val", "test"] = _key(KEPT)
    unseen_sweeps: whole(ge=1, le=99) = _key("sweeps that the networks never see")
    phantom_folder: Folder = _key("folder of the drawn frames")
    store: _text() = _key("folder of the store")
    store_reported: _text() = _key("folder of a second store with nothing mended")
    runs: _some(Folder, 0) = _key("folders of the runs")
    reported: _some(Folder, 0) = _key("runs with all flaws")
    fair: _some(Folder, 0) = _key("runs of other protocols")
    compare: Folder = _key("folder of the comparison")
    out: Folder = _key("folder of the results")
    retrained: Folder = _key("folder of that training")
    figures: Folder = _key("folder of the figures")


ROLES = {name: field.json_schema_extra["role"] for name, field in Study.model_fields.items()}
TRAINING = tuple(name for name, role in ROLES.items() if role == "training")
SHARED = tuple(name for name, role in ROLES.items() if role)
# Those that a file may leave out: what holds for runs that are older.
DEFAULTS = {n: x.default for n, x in Study.model_fields.items() if ROLES[n] and not x.is_required()}


def check_study(config: dict, model: type[BaseModel] = Study) -> dict:
    """Return a study's settings as plain values, those with a default other than None included.

    ValueError: unknown, missing, mistyped or impossible settings; each on a line.
    """
    fields = model.model_fields
    problems = [unknown(name, fields) for name in config if name not in fields]
    known = {name: value for name, value in config.items() if name in fields}
    try:
        checked = model.model_validate(known).model_dump(warnings=False, exclude_none=True)
        variants = list_variants(checked) if "study" in checked else {}
        problems = problems or clashes(checked, variants, CHOICES, NETWORKS)
    except ValidationError as error:
        messages = {x["loc"][0]: x["msg"] for x in error.errors(include_input=False)}
        for name, said in messages.items():
            field, said = fields[name], said.replace("Field required", "is missing")
            if name in known:
                said = said.removeprefix("Value error, ").replace("Input should be", "need")
                need = next((x for x in field.metadata if isinstance(x, str)), said)
                meant = _meant(known[name], field)
                hint = "" if meant is known[name] else f": write {show(meant)}"
                named = need.split()[0].endswith(":")  # a name keeps its capitals
                need = need if named else need[0].lower() + need[1:]
                said = f"got {show(known[name])}, {need}{hint}"
            problems.append(f"{name}: {said} ({field.description or 'see its default'})")
    if problems:
        raise ValueError("\n".join(problems))
    return checked


def check_parameters(given: dict, defaults: dict) -> dict:
    """Return a notebook's parameters; what is left out keeps its default. Raises as `check_study`.

    A name that no study and no notebook of the library has needs the type of its default.
    """
    types = {name: type(value) for name, value in defaults.items()}
    known = {name: x for name, x in Parameters.model_fields.items() if name in defaults}
    types |= {name: (field.rebuild_annotation(), field) for name, field in known.items()}
    model = pydantic.create_model("Notebook", __base__=_Strict, **types)
    return check_study(defaults | given, model)


def _meant(value, field):
    """Return what a text or list may mean: PyYAML and `snakemake --config` give 1e-3 as text."""
    with suppress(ValidationError):
        if isinstance(value, str | list):
            return TypeAdapter(field.rebuild_annotation()).validate_python(value)
    return value


def list_variants(config: dict) -> dict[str, dict]:
    """Return a study's variants by name: `model`, and the settings that are the variant's own."""
    named = {variant_name(model): {"model": model} for model in config["models"]}
    return named | config.get("variants", {})


def list_runs(config: dict) -> dict[str, dict]:
    """Return a study's runs in its order, with what a run does not share with all others.

    run_id: variant, protocol, fold and seed. `varied` names the settings that are the variant's.
    """
    runs = {}
    for protocol in config["protocols"]:
        for fold in [0] if protocol in ONE_SPLIT else config["run_folds"]:
            for seed in config["seeds"]:
                for name, settings in list_variants(config).items():
                    own = {key: x for key, x in settings.items() if key != "protocols"}
                    # it explains a loss and does not compete
                    explains = own["model"] == "segnet_reported_no_relu" and protocol != "reported"
                    if explains or protocol not in settings.get("protocols", [protocol]):
                        continue
                    runs[f"{name}-{protocol}-fold{fold}-seed{seed}"] = own | {
                        "variant": name, "varied": sorted(own.keys() - {"model"}),
                        "protocol": protocol, "fold": fold, "seed": seed,
                    }  # fmt: skip
    return runs


def step_settings(config: dict, step: str, **others) -> dict:
    """Return the parameters of a step's notebook: its keys of the study, then `others`."""
    fields = Study.model_fields.items()
    names = [name for name, field in fields if step in field.json_schema_extra["steps"].split()]
    return {name: config[name] for name in names} | others


def read_study(files: Iterable[str | Path], overrides: Mapping | Iterable | None = ()) -> dict:
    """Read and check a study: YAML files, later ones win, then those of a `--config`.

    ValueError: a file is missing or no YAML mapping, or settings are wrong.
    """
    config: dict = {}
    for file in map(Path, files):
        try:
            content = read_yaml(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError(": need lines of `key: value`, as in parameters/demo.yaml")
        except (OSError, ValueError) as error:
            unread = isinstance(error, OSError | UnicodeDecodeError)
            said = f": cannot be read: {error}" if unread else error
            raise ValueError(f"{printable(file.name)}{said}") from None
        config |= content
    for key, value in dict(overrides or ()).items():
        value = "" if value is None else [] if value == "[]" else value  # `data=`, `mend=[]`
        config[key] = _meant(value, Study.model_fields[key]) if key in Study.model_fields else value
    return check_study(config)


def add_study_arguments(parser) -> None:
    """Add the arguments of an argparse parser by which a command names a study."""
    parser.add_argument("--parameters", default="parameters/demo.yaml", help="YAML of the study")
    parser.add_argument("--set", nargs="*", default=[], help="key=value, other settings of it")


def read_named_study(parameters: str | Path, words: Iterable[str]) -> dict:
    """Read the study that `add_study_arguments` names; raises as `read_study`."""
    return read_study([parameters], read_words(words))


def read_words(words: Iterable[str]) -> dict:
    """Read words key=value, values in YAML; what is none is a text, as masks=*_mask.png."""
    settings: dict = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"--set: got {show(word)}, need key=value")
        settings[key] = value
        with suppress(ValueError):
            settings[key] = read_yaml(value)
    return settings


def check_packages(key: str, wanted: bool, *names: str) -> None:
    """Raise ValueError if packages are not installed that a setting needs, if it is wanted."""
    if wanted and (problem := missing_packages(*names)):
        raise ValueError(f"{key}: {problem}, or set {key} to false")
