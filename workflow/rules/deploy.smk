# The release of the selected model; a quantised network is in it only if that costs no Dice.

RELEASE = sorted({f"{RUNS[run]['model']}.onnx" for run in COMPARED}) + [
    "model_card.md", "parameters.json", "requirements.txt", "README.md", "SHA256SUMS",
    "release.json",
]


rule deploy:
    input:
        "store/store.json",
        tables_of(COMPARED),
        multiext("compare/", "selected.json", "model_card.md"),
    output:
        "notebooks/6-deploy.ipynb",
        multiext("deploy/", *RELEASE),
    log:
        "logs/6-deploy.ipynb",
    params:
        *code("6-deploy.ipynb"),
        json=lambda wildcards: settings(
            *SOURCE, "threads", phantom_folder=f"{STUDY}/phantom", store=f"{STUDY}/store",
            compare=f"{STUDY}/compare", runs=[f"{STUDY}/runs/{run}" for run in COMPARED],
            out=f"{STUDY}/deploy", figures=f"{STUDY}/deploy-figures",
        ),
    threads: THREADS
    shell:
        execute("6-deploy.ipynb", pin=True)
