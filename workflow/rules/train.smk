# The trainings: one job per run.


def own_network(wildcards):
    """Return the digest of the user's file that defines this run's network, if one does."""
    path = user_networks.files().get(RUNS[wildcards.run]["model"])
    return code_digests(path) if path else []


# model.pt is no declared output: Snakemake deletes those before a step and when it fails, and then
# a new metric, or an error in one, would cost the training. Of the store, store.json is compared: it
# holds checksums of the arrays, which are too large.
rule train:
    input: lambda wildcards: f"{STORES[wildcards.run]}/store.json"
    output:
        "notebooks/3-train-{run}.ipynb",
        multiext("runs/{run}/", *RUN_TABLES),
    log: "logs/3-train-{run}.ipynb"
    params:
        *code_digests(NOTEBOOKS / "3-train.ipynb"),
        own_network=own_network,
        json=lambda wildcards: settings(
            "train",
            selection="test" if wildcards.run in REPORTED else config["selection"],
            store=f"{STUDY}/{STORES[wildcards.run]}", out=f"{STUDY}/runs/{wildcards.run}",
            **RUNS[wildcards.run],
        ),
    wildcard_constraints:
        run="|".join(RUNS),
    threads: THREADS
    resources:
        gpu=GPU,
    shell: execute("3-train.ipynb", pin=True)


# Predictions made elsewhere: scored again as trained runs are.
rule imported:
    input: "store/store.json", "runs/{run}/imported.json"
    output: multiext("runs/{run}/", *RUN_TABLES)
    params:
        *code_digests(PROJECT / "thyroid_lib" / "evaluate" / "imported.py"),
        json=lambda wildcards: settings("score"),
    wildcard_constraints:
        run="|".join(IMPORTED) or "-",
    shell:
        '"$THYROID_PYTHON" -m thyroid_lib.evaluate.imported --again runs/{wildcards.run}'
        " {params.json:q}"
