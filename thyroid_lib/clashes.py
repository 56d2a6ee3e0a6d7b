"""Rules between settings of a study: what is allowed by itself, and not together."""

from collections.abc import Iterable

from thyroid_lib.files.text import show, variant_name


def clashes(
    v: dict, variants: dict, choices: Iterable[str], without_encoder: Iterable[str] = ()
) -> list[str]:
    """List what several settings, each allowed by itself, must not be together.

    v: settings of a study or of a notebook; variants: of `settings.list_variants`; choices: keys
    that only source folder takes; without_encoder: networks that take no pretrained weights.
    """
    rules: list[tuple] = []  # whether it is broken, message
    if {"source", "data"} <= v.keys():
        source, data = v["source"], v["data"]
        need = f"source {source} needs its folder (or zip)"
        if isinstance(source, list):
            message = "{}: is one of each entry of source, write it there"
            rules += [(v.get(key), message.format(key)) for key in ("data", *choices)]
        else:
            none, auto = source == "phantom", source == "folder" and data == "auto"
            message = "{}: only source folder takes it"
            rules += [
                (not none and not data, f"data: is empty, {need}"),
                (none and data, "data: phantoms take none, leave it '' or set source"),
                (auto, f"data: auto finds TG3K's release, {need}"),
                *((source != "folder" and v.get(k), message.format(k)) for k in choices),
            ]
    if {"protocol", "selection"} <= v.keys():
        protocol, kept = v["protocol"], v["selection"]
        need = "test" if protocol == "reported" else "last or val: only reported may take test"
        message = f"selection: got {show(kept)}, but protocol {protocol} needs {need}"
        rules.append(((protocol == "reported") != (kept == "test"), message))
        untested = protocol == "all" and "tolerance_px" in v  # that scores are made with
        rules.append((untested, "protocol: all tests no case: need one that does"))
    if "run_folds" in v:
        folds, run = v["folds"], v["run_folds"]
        most = f"but folds: {folds} has only 0 to {folds - 1}"
        rules.append((max(run) >= folds, f"run_folds: got {show(run)}, {most}"))
    if "study" in v:
        alone = "retrain: is for a release: set deploy to true, or retrain to false"
        rules.append((v["retrain"] and not v["deploy"], alone))
        taken = "reference", "data", "alone", "quickstart"  # folders of results/ with another use
        is_taken = f"study: {v['study']} is taken: need none of {', '.join(taken)}"
        rules.append((v["study"] in taken, is_taken))
        rules.append(
            (not variants, "models: is empty, and so is variants: need one network or more")
        )
        doubled = {variant_name(model) for model in v["models"]} & v["variants"].keys()
        doubled |= {*variants} & {*v["ensembles"]}
        message = f"variants: {', '.join(sorted(doubled))}: the name stands twice, rename one"
        rules.append((doubled, message))
        for name, members in v["ensembles"].items():
            lacking = ", ".join(sorted({*members} - {*variants}))
            message = f"ensembles: {name}: no variant {lacking}, there are {', '.join(variants)}"
            rules.append((lacking, message))
            under = {tuple(variants.get(x, {}).get("protocols", v["protocols"])) for x in members}
            message = (
                f"ensembles: {name}: its variants run under different protocols, need equal ones"
            )
            rules.append((len(under) > 1, message))
        for name, settings in variants.items():
            varied, kept = sorted({*settings} - {"model", "protocols"}), v | settings
            protocols = settings.get("protocols", v["protocols"])
            unknown_to = ", ".join(sorted({*protocols} - {*v["protocols"]}))
            of = f"variants: {name}:"
            rules += [
                (unknown_to, f"{of} protocols of the study have no {unknown_to}"),
                (
                    "reported" in protocols and varied,
                    f"{of} protocol reported takes the study's recipe alone, not "
                    f"{', '.join(varied)}: give it protocols without reported",
                ),
                (
                    kept["pretrained"] != "none" and kept["model"] in without_encoder,
                    f"{of} pretrained: {kept['model']} has no encoder: need a network such as "
                    "resunet:tf_efficientnet_lite0",
                ),
                (
                    "reported" in settings.get("protocols", ())
                    and {"random", "grouped"} - {*protocols},
                    f"{of} protocol reported needs random and grouped beside",
                ),
                (
                    kept["model"] == "segnet_reported_no_relu" and "reported" not in protocols,
                    f"{of} {kept['model']} explains a loss, and runs under protocol reported alone",
                ),
                (
                    kept["selection"] == "val" and not kept["val_share"],
                    f"{of} selection val needs a val_share above 0",
                ),
            ]
        for key, need, missing in (
            ("protocols", "random and grouped", {"random", "grouped"} - set(v["protocols"])),
            ("selection", "val", v["selection"] != "val"),
            ("mend", "text", "text" not in v["mend"]),
            ("augment", "none", v["augment"] != "none"),
        ):
            message = f"{key}: got {show(v[key])}, but protocol reported needs {need} beside"
            rules.append(("reported" in v["protocols"] and missing, message))
        tested, wanted = v["external"], "external" in v["protocols"]
        names = [each["dataset"] for each in v["source"]] if isinstance(v["source"], list) else []
        got = f"external: got {show(tested)}"
        rules += [
            (wanted and not tested, "external: is empty, protocol external needs data sets"),
            (tested and not wanted, f"{got}, but protocols has no external to test them"),
            (names and set(tested) - {*names}, f"{got}, the data sets are {', '.join(names)}"),
            (names and {*names} == {*tested}, f"{got}, none is left to train on"),
        ]
    return [message for broken, message in rules if broken]
