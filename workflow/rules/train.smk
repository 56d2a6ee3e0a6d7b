# The trainings: one job per run.

OWN_NETWORKS = {name: code_digests(file) for name, file in user_networks.files().items()}


# model.pt is no declared output: Snakemake deletes those before a step and when it fails, and a new
# metric would cost the training. Of the store, store.json is compared: it has the arrays' checksums.
rule train:
    input: lambda wildcards: f"{STORES[wildcards.run]}/store.json"
    output:
        "notebooks/3-train-{run}.ipynb",
        multiext("runs/{run}/", *RUN_TABLES, *MORE_TABLES),
    log: "logs/3-train-{run}.ipynb"
    params:
        *code_digests(NOTEBOOKS / "3-train.ipynb"),
        own_network=lambda wildcards: OWN_NETWORKS.get(RUNS[wildcards.run]["model"], []),
        json=lambda wildcards: settings(
            "train", store=f"{STUDY}/{STORES[wildcards.run]}", out=f"{STUDY}/runs/{wildcards.run}",
            **(RUNS[wildcards.run] | ({"selection": "test"} if wildcards.run in REPORTED else {})),
        ),
    wildcard_constraints: run="|".join(RUNS)
    threads: THREADS
    resources: gpu=GPU
    shell: execute("3-train.ipynb", pin=True)


rule ensemble:
    input: lambda wildcards: expand("runs/{run}/run.json", run=ENSEMBLES[wildcards.run])
    output: multiext("runs/{run}/", *RUN_TABLES, *MORE_TABLES)
    params:
        *code_digests(LIBRARY / "evaluate/ensemble.py"),
        members=lambda wildcards: expand("runs/{run}", run=ENSEMBLES[wildcards.run]),
        device=config["device"],
    wildcard_constraints: run="|".join(ENSEMBLES) or "-"
    threads: THREADS
    resources: gpu=GPU
    shell:
        '"$THYROID_PYTHON" -m thyroid_lib.evaluate.ensemble runs/{wildcards.run}'
        " --members {params.members} --device {params.device} --threads {threads}"


# Predictions made elsewhere: scored again as trained runs are.
rule imported:
    input: "store/store.json", "runs/{run}/imported.json"
    output: multiext("runs/{run}/", *RUN_TABLES)
    params:
        *code_digests(LIBRARY / "evaluate/imported.py"),
        json=lambda wildcards: settings("score"),
    wildcard_constraints: run="|".join(IMPORTED) or "-"
    shell:
        '"$THYROID_PYTHON" -m thyroid_lib.evaluate.imported --again runs/{wildcards.run}'
        " {params.json:q}"
