# Frames and masks: the prepared store, and the audit of what leaks between splits.

STORE = "images.npy", "masks.npy", "reference.npy", "index.csv", "quarantine.csv", "store.json"


rule preprocess:
    output:
        "notebooks/1-preprocess.ipynb",
        multiext("store/", *STORE),
        multiext("store-reported/", *STORE) if REPORTED else [],
    log: "logs/1-preprocess.ipynb"
    params:
        *code_digests(NOTEBOOKS / "1-preprocess.ipynb"),
        data_files=DATA_FILES,
        json=lambda wildcards: settings(
            "preprocess", phantom_folder=f"{STUDY}/phantom", store=f"{STUDY}/store",
            store_reported=f"{STUDY}/store-reported" if REPORTED else "",
        ),
    threads: CORES
    shell: execute("1-preprocess.ipynb")


rule audit:
    input: "store/store.json"
    output:
        "notebooks/2-audit.ipynb",
        multiext("audit/", "leakage.csv", "labels.csv"),
    log: "logs/2-audit.ipynb"
    params:
        *code_digests(NOTEBOOKS / "2-audit.ipynb"),
        json=lambda wildcards: settings(
            "audit", protocols=[name for name in config["protocols"] if name != "reported"],
            phantom_folder=f"{STUDY}/phantom", store=f"{STUDY}/store", out=f"{STUDY}/audit",
        ),
    threads: CORES
    shell: execute("2-audit.ipynb")
