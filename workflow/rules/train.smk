# The trainings: one job per run.


def store_of(wildcards):
    """Return the store of a run: its checksums of the arrays, which are too large to compare."""
    return f"{'store-reported' if wildcards.run in REPORTED else 'store'}/store.json"


def own_network_of(wildcards):
    """Return the digest of the user's file that defines this run's network, if one does."""
    path = user_networks.files().get(RUNS[wildcards.run]["model"])
    return code_digests(path) if path else []


def train_settings(wildcards):
    reported = wildcards.run in REPORTED
    return settings(
        "width", "folds", "val_share", "epochs", "batch_size", "lr", "threshold", "tolerance_px",
        "augment", "threads", "device", "precision", "tensorboard",
        selection="test" if reported else config["selection"],
        store=f"{STUDY}/store-reported" if reported else f"{STUDY}/store",
        out=f"{STUDY}/runs/{wildcards.run}", **RUNS[wildcards.run],
    )


# model.pt is no declared output: Snakemake deletes those before a step and when it fails, and then
# a new metric, or an error in one, would cost the training.
rule train:
    input:
        store_of,
    output:
        "notebooks/3-train-{run}.ipynb",
        multiext("runs/{run}/", *RUN_TABLES),
    log:
        "logs/3-train-{run}.ipynb",
    params:
        *code("3-train.ipynb"),
        own_network=own_network_of,
        json=train_settings,
    threads: THREADS
    resources:
        gpu=GPU,
    shell:
        execute("3-train.ipynb", pin=True)
