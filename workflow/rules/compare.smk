# What is read from all runs: the comparison, the replication and the report.


rule compare:
    input:
        "store/store.json",
        tables_of(COMPARED),
    output:
        "notebooks/4-compare.ipynb",
        multiext(
            "compare/",
            "summary.csv", "summary.md", "details.md", "groups.csv", "differences.csv",
            "mixed.csv", "stability.csv", "ranks.csv", "selected.json", "model_card.md",
            "cost.csv",
        ),
    log:
        "logs/4-compare.ipynb",
    params:
        *code("4-compare.ipynb"),
        json=lambda wildcards: settings(
            "delta", "resamples", store=f"{STUDY}/store", out=f"{STUDY}/compare",
            runs=[f"{STUDY}/runs/{run}" for run in COMPARED],
        ),
    threads: THREADS
    shell:
        execute("4-compare.ipynb", pin=True)


rule replication:
    input:
        tables_of(RUNS),
    output:
        "notebooks/5-replication.ipynb",
        multiext("replication/", "steps.csv", "steps.md", "floors.csv", "reported_stability.csv"),
    log:
        "logs/5-replication.ipynb",
    params:
        *code("5-replication.ipynb"),
        curves=file_digest(PROJECT / "thyroid_lib" / "compare" / "reported_curves.csv"),
        json=lambda wildcards: settings(
            "resamples", out=f"{STUDY}/replication",
            reported=[f"{STUDY}/runs/{run}" for run in REPORTED],
            fair=[f"{STUDY}/runs/{run}" for run in FAIR],
        ),
    shell:
        execute("5-replication.ipynb")


rule report:
    input:
        NOTEBOOKS,
        "compare/cost.csv",
    output:
        "report.html",
    params:
        *code_digests(PROJECT / "thyroid_lib" / "study" / "report.py"),
        study=STUDY,
        runs=list(RUNS),
    shell:
        '"$THYROID_PYTHON" -m thyroid_lib.study.report "$PWD" --runs {params.runs}'
