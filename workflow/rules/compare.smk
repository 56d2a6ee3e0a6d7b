# What reads all runs: the comparison, the replication and the report.

TABLES = (
    "summary.csv", "summary.md", "details.md", "groups.csv", "differences.csv", "mixed.csv",
    "stability.csv", "ranks.csv", "selected.json", "model_card.md", "cost.csv",
)
SOME_TABLES = [*BY_CLASS, *["variations.csv"] * (not SEVERAL)]
SOME_TABLES += ["external.csv"] * ("external" in config["protocols"])


rule compare:
    input:
        "store/store.json",
        expand("runs/{run}/{file}", run=[*COMPARED, *ENSEMBLES, *IMPORTED], file=RUN_TABLES),
        expand("runs/{run}/{file}", run=COMPARED, file=MORE_TABLES),
    output:
        "notebooks/4-compare.ipynb",
        multiext("compare/", *TABLES, *SOME_TABLES),
    log: "logs/4-compare.ipynb"
    params:
        *code_digests(NOTEBOOKS / "4-compare.ipynb", LIBRARY / "compare/model_card.md"),
        json=lambda wildcards: settings(
            "compare", store=f"{STUDY}/store", out=f"{STUDY}/compare",
            runs=[f"{STUDY}/runs/{run}" for run in [*COMPARED, *ENSEMBLES, *IMPORTED]],
        ),
    threads: THREADS
    shell: execute("4-compare.ipynb", pin=True)


rule replication:
    input: expand("runs/{run}/{file}", run=RUNS, file=RUN_TABLES)
    output:
        "notebooks/5-replication.ipynb",
        multiext("replication/", "steps.csv", "steps.md", "floors.csv", "reported_stability.csv"),
    log: "logs/5-replication.ipynb"
    params:
        *code_digests(NOTEBOOKS / "5-replication.ipynb", LIBRARY / "compare/reported_curves.csv"),
        json=lambda wildcards: settings(
            "replication", out=f"{STUDY}/replication",
            reported=[f"{STUDY}/runs/{run}" for run in REPORTED],
            fair=[f"{STUDY}/runs/{run}" for run in FAIR],
        ),
    shell: execute("5-replication.ipynb")


rule report:
    input: expand("notebooks/{step}.ipynb", step=STEPS), "compare/cost.csv"
    output: "report.html"
    params:
        *code_digests(LIBRARY / "study/report.py", LIBRARY / "study/report.css"),
        steps=STEPS,
    shell: '"$THYROID_PYTHON" -m thyroid_lib.study.report "$PWD" --steps {params.steps}'
