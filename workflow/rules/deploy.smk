# The release of the selected model. No outputs are a quantised network, which is there if it costs no
# Dice, an ensemble, which is there if it was selected, and with `retrain` the one network.

TEXTS = "model_card.md", "parameters.json", "requirements.txt", "README.md", "SHA256SUMS"
TEMPLATES = LIBRARY / "compare/released.md", LIBRARY / "deploy/release.md"
NETWORKS = sorted({f"{RUNS[run]['variant']}.onnx" for run in COMPARED if not config["retrain"]})
RELEASE = *NETWORKS, *TEXTS, "release.json"


rule deploy:
    input:
        "store/store.json",
        expand("runs/{run}/{file}", run=[*COMPARED, *ENSEMBLES], file=RUN_TABLES),
        multiext("compare/", "selected.json", "model_card.md"),
    output:
        "notebooks/6-deploy.ipynb",
        multiext("deploy/", *RELEASE),
    log: "logs/6-deploy.ipynb"
    params:
        *code_digests(NOTEBOOKS / "6-deploy.ipynb", *TEMPLATES),
        json=lambda wildcards: settings(
            "deploy", phantom_folder=f"{STUDY}/phantom", store=f"{STUDY}/store",
            compare=f"{STUDY}/compare",
            runs=[f"{STUDY}/runs/{run}" for run in [*COMPARED, *ENSEMBLES]],
            out=f"{STUDY}/deploy", retrained=f"{STUDY}/retrained", figures=f"{STUDY}/deploy-figures",
        ),
    threads: THREADS
    shell: execute("6-deploy.ipynb", pin=True)
