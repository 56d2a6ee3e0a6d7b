# From a fresh clone, `make demo` sets up .venv and runs the whole study on phantoms.
# Everything here is also one plain command; `make -n <target>` shows it.

PYTHON ?= python3
CORES ?= all
PARAMETERS ?= parameters/demo.yaml
DATA ?=
SET ?=
OPTIONS ?=
ONLY ?=
OWNER ?=
HOURS ?= 8
FRAMES ?= 0
FROM ?=
UPGRADE ?=
REPO ?=
TRAINED ?=
LAX ?=
CLUSTER ?=
MODEL ?=
PORT ?= 8501
SIZE ?=
SECONDS ?= 450
INTO ?=

BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv-bench/.ready
demo test test-all reference verify: override PARAMETERS := parameters/demo.yaml
STUDY = $(or $(patsubst study=%,%,$(filter study=%,$(SET))),$(shell sed -n 's/^study: *\([a-z0-9_-]*\).*/\1/p' $(PARAMETERS)))
# Snakemake itself answers with a traceback.
$(if $(wildcard $(PARAMETERS)),,$(error there is no $(PARAMETERS): PARAMETERS=parameters/<study>.yaml))
$(foreach word,$(SET),$(if $(and $(findstring =,$(word)),$(filter 1 2,$(words $(subst =, ,$(word)))),$(filter-out =%,$(word))),,\
	$(error SET: "$(word)" is no key=value; keys are those of $(PARAMETERS), lists have no spaces)))
CONFIG = $(if $(DATA)$(SET),--config $(if $(DATA),'data=$(DATA)') $(foreach word,$(SET),'$(word)'))
# On a cluster the scheduler has the cores.
$(if $(CLUSTER),$(if $(wildcard workflow/profiles/$(CLUSTER)/config.yaml),,\
	$(error there is no workflow/profiles/$(CLUSTER): CLUSTER=slurm)))
WITH = $(if $(CLUSTER),--profile workflow/profiles/$(CLUSTER),--cores $(CORES))
SNAKEMAKE = $(BIN)/snakemake $(WITH) $(OPTIONS) --configfile $(PARAMETERS) $(CONFIG)
# One word for the shell, whatever is in it.
quote = '$(subst ','\'',$(1))'
# A dry run, or one that was asked to stop early, has no table of its own to show.
PARTLY = $(filter -n -np --dry-run --dryrun --until%,$(OPTIONS))
# Notebooks write what is to go to results/ to THYROID_RESULTS, where that is set.
WHERE = $(or $(THYROID_RESULTS),$(CURDIR)/results)/$(STUDY)
FIRST = $(or $(THYROID_RESULTS),$(CURDIR)/results)/quickstart/0-quickstart.ipynb
QUICKSTART = $(BIN)/python -m thyroid_lib.study.runner notebook notebooks/0-quickstart.ipynb --pin-instructions
SHOW = $(if $(PARTLY),true,cat '$(WHERE)/compare/summary.md' && printf '\nreport: %s\n' '$(WHERE)/report.html')

.DEFAULT_GOAL := help
.PHONY: help look import-predictions export-nnunet env quickstart demo study lab app node unit test test-all test-encoders torture packages lint nbval verify reference publish wheel carry badges docs lock pip-audit bench gpu gpu-wheels kaggle gather clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make study PARAMETERS=parameters/tg3k.yaml DATA=<folder or zip> SET="size=128 width=16"'
	@echo '  SET takes any key of the parameters, lists without spaces: SET="models=[unet,segnet] lr=1e-3"'
	@echo '  CORES=2 limits the cores; OPTIONS=-n only lists the steps, OPTIONS="--resources gpu=2" etc.'
	@echo '  CLUSTER=slurm submits the steps of a study to a cluster (docs/slurm.md)'
	@echo '  PYTHON=python3.12 picks the interpreter of .venv (3.11 to 3.13)'
	@echo '  Killed, stopped (Ctrl-C) or failed? Start again: it goes on. SET="budget_minutes=500" stops in time.'

# A Debian without python3-venv has no ensurepip: pip then comes from outside. The lock is complete, so
# pip resolves nothing, and every file that it takes is held to a hash. Where pip is set up to find a
# CPU-only build of torch, that one is taken and CUDA's libraries are left out. One package has no
# wheel: it is built with the lock's setuptools, and nothing unhashed is fetched for that.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo 'error: needs Python 3.11 to 3.13: make PYTHON=python3.12 …' >&2; exit 2; }
	@echo 'Setting up .venv from requirements.lock: once, about two minutes, mostly for torch …'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip .venv
	@set -e; if $(BIN)/python -c 'import pip' 2>/dev/null; then pip='$(BIN)/python -m pip'; \
		else pip='$(PYTHON) -m pip --python $(BIN)/python'; fi; \
		install="$$pip install -qq --disable-pip-version-check --no-deps"; \
		torch=$$(sed -n 's/^\(torch==[^ ]*\) .*/\1+cpu/p' requirements.lock); \
		$$install --dry-run "$$torch" >/dev/null 2>&1 || torch=; \
		awk -v cpu="$$torch" 'cpu { sub(/^torch==[^ ]*/, cpu) } /^[a-z]/ { cuda = /^(cuda|nvidia|triton)/ } \
			!cpu || !cuda' requirements.lock > .venv/requirements.lock; \
		sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/setuptools.lock; \
		$$install --require-hashes -r .venv/setuptools.lock; \
		$$install --require-hashes --no-build-isolation -r .venv/requirements.lock; \
		$$install --no-build-isolation -e .; \
		missing=$$($$pip check --disable-pip-version-check) || { echo "$$missing" >&2; exit 1; }
	@touch $@

env: $(READY)  ## set up .venv and nothing else

quickstart: $(READY)  ## a first look in a minute: phantoms, two small networks, two exams
	@$(QUICKSTART) '$(FIRST)'
	@$(BIN)/jupyter nbconvert --to html --log-level ERROR '$(FIRST)'
	@printf 'to look at: %s\n' '$(FIRST:.ipynb=.html)'

demo: $(READY)  ## the whole study on phantoms, 3 minutes on two cores
	@$(SNAKEMAKE)
	@$(SHOW)

study: $(READY)  ## any study: PARAMETERS=…, DATA=…, SET="…" (see below)
	@$(SNAKEMAKE)
	@$(SHOW)

look: $(READY)  ## what a folder of your own holds, and how it would be read: DATA=…, SET="masks=…"
	@$(BIN)/python -m thyroid_lib.data $(call quote,$(DATA)) $(foreach word,$(SET),$(call quote,$(word)))

NAME ?=
OUT ?= nnUNet_raw
WORDS = $(foreach word,$(SET) $(if $(DATA),data=$(DATA)),$(call quote,$(word)))
import-predictions: $(READY)  ## masks or maps made elsewhere, as runs of a study: NAME=nnunet FROM=<folder>
	@$(BIN)/python -m thyroid_lib.evaluate.imported --parameters $(PARAMETERS) --set $(WORDS) \
		--name $(call quote,$(NAME)) --predictions $(call quote,$(FROM)) $(OPTIONS)

export-nnunet: $(READY)  ## a study's cases and folds for nnU-Net: PARAMETERS=…, OUT=nnUNet_raw
	@$(BIN)/python -m thyroid_lib.data.export_nnunet --parameters $(PARAMETERS) --set $(WORDS) \
		--out $(call quote,$(OUT)) $(OPTIONS)

lab: $(READY)  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab notebooks

# A page for this machine alone. The demo's model is made where it is missing; any other is made, or
# named, by who wants it.
RELEASE = $(or $(MODEL),$(WHERE)/deploy)
NO_MODEL = { echo 'error: no model there: MODEL=<release folder>, or make study PARAMETERS=…' >&2; exit 2; }
app: $(READY)  ## the selected model in a browser, on 127.0.0.1: MODEL=<release> or PARAMETERS=…, PORT=8501
	@test -e $(call quote,$(RELEASE)) || \
		$(if $(MODEL)$(filter-out parameters/demo.yaml,$(PARAMETERS)),$(NO_MODEL),$(MAKE) --no-print-directory demo)
	@$(BIN)/streamlit run app/streamlit_app.py --server.address=127.0.0.1 --server.port=$(PORT) \
		--server.headless=true -- --model $(call quote,$(RELEASE))

unit: $(READY)  ## tests without network, browser or daemons, under a minute on two cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -p no:nbval -m 'not slow and not study'

test: lint demo packages  ## style, the demo, tests, and the committed notebooks run once more
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'
	@$(MAKE) --no-print-directory nbval PARAMETERS=$(PARAMETERS)

test-all: lint demo packages  ## the same with the slow tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory nbval PARAMETERS=$(PARAMETERS)

torture: $(READY)  ## kills and faults, each survived to the byte: OPTIONS="--only kills --kills 3"
	@$(BIN)/python tests/torture.py $(OPTIONS)

# Where packages can be had, and no service manager would start what they bring; the tests that need
# them are skipped elsewhere, with the reason.
SYSTEM = slurmctld:slurm-wlm munged:munge Orthanc:orthanc,orthanc-dicomweb dciodvfy:dicom3tools \
	chromium:chromium cc:gcc,libc6-dev
packages:  ## SLURM, Orthanc, dciodvfy, Chromium, cc for the tests, in a container of Debian, as root
	@missing=; for each in $(SYSTEM); do command -v "$${each%%:*}" >/dev/null || \
		missing="$$missing $$(echo "$${each#*:}" | tr , ' ')"; done; \
		test -z "$$missing" -o -d /run/systemd/system -o "$$(id -u)" != 0 || \
		{ echo "Installing for the tests (apt-get):$$missing …"; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y \
		--no-install-recommends $$missing; } >/dev/null 2>&1 || echo 'not installed: their tests are skipped'; }

lint: $(READY)  ## ruff on code and notebooks
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

# The demo's committed notebooks, or those of a study that was run here. Its trained weights are taken
# over, so that nothing is trained again; without TRAINED=1, everything is.
EXECUTED = $(if $(filter parameters/demo.yaml,$(PARAMETERS)),results/reference/demo,$(WHERE)/notebooks)
nbval: $(READY)  ## run results/reference/demo again and compare every output; PARAMETERS=… a study's
	@ls '$(EXECUTED)'/*.ipynb >/dev/null 2>&1 || \
		{ echo 'error: no executed notebooks in $(EXECUTED): make study PARAMETERS=$(PARAMETERS) first' >&2; exit 2; }
	@results=$$(mktemp -d); trap 'rm -rf "$$results"' EXIT; \
		$(if $(TRAINED),mkdir -p "$$results/$(STUDY)"; ls '$(WHERE)'/runs/*/model.pt >/dev/null || exit 2; \
			(cd '$(WHERE)' && tar -cf - runs/*/model.pt) | tar -xf - -C "$$results/$(STUDY)";) \
		variables=$$($(BIN)/python -m thyroid_lib.study.runner env $(PARAMETERS)) || exit 2; \
		for step in '[01]-' '[23]-' '[4-9]-'; do \
			ls '$(EXECUTED)'/$$step*.ipynb >/dev/null 2>&1 || continue; \
			env $$variables TQDM_DISABLE=1 THYROID_RESULTS="$$results" \
			$(BIN)/python -m pytest $(if $(LAX),--nbval-lax,--nbval) --nbval-current-env -p no:cacheprovider \
			--nbval-cell-timeout=$(if $(filter parameters/demo.yaml,$(PARAMETERS)),600,86400) \
			-n $$([ "$$step" = '[23]-' ] && echo 2 || echo 0) --dist loadfile \
			'$(EXECUTED)'/$$step*.ipynb || exit; \
		done

# In a folder that goes away again, so Snakemake need not remember how each file in it was made.
verify: override DATA :=
verify: override SET :=
verify: $(READY)  ## run the demo from nothing, elsewhere, and compare it with results/reference/demo
	@results=$$(mktemp -d); trap 'rm -rf "$$results"; exit 130' INT TERM; \
		THYROID_RESULTS="$$results" $(SNAKEMAKE) --drop-metadata && \
		THYROID_RESULTS="$$results" $(QUICKSTART) "$$results/demo/notebooks/0-quickstart.ipynb" && \
		$(BIN)/python -m thyroid_lib.study.verify results/reference/demo "$$results/demo" && rm -rf "$$results" || \
		{ printf '\nthe new run is kept: %s\n' "$$results/demo"; exit 1; }

reference: quickstart demo  ## make results/reference/demo from the quickstart's and the demo's results
	@rm -rf results/reference/demo && mkdir -p results/reference/demo
	@cp results/quickstart/0-quickstart.ipynb results/demo/notebooks/*.ipynb results/reference/demo/
	@cd results/demo/compare && cp $(filter-out cost.csv mixed.csv,$(notdir $(wildcard results/demo/compare/*.csv))) \
		summary.md details.md selected.json frames.png ../../reference/demo/
	@$(BIN)/python tools/demo_release.py results/demo/deploy results/reference/demo-release
	@$(BIN)/python tools/front_page.py --demo results/demo

# Runs that are there and not in this study's results stay, and so do those whose tables were used again.
publish: $(READY)  ## copy a study's tables, and no picture, to results/reference; of an unfinished one its runs: PARAMETERS=…
	@$(BIN)/python tools/publish.py '$(WHERE)'
	@$(BIN)/python tools/front_page.py

# pip's isolated build would fetch setuptools; the lock's is here.
wheel: $(READY)  ## dist/thyroid_lib-….whl: what Colab and Kaggle install where there is no repository
	@rm -rf build dist/thyroid_lib-*.whl
	@$(PYTHON) -m pip --python $(BIN)/python wheel -qq --disable-pip-version-check --no-deps \
		--no-build-isolation --wheel-dir dist . && rm -rf build && ls dist/thyroid_lib-*.whl

carry: $(READY)  ## renew the library that own-data.ipynb carries: at each release
	@$(BIN)/python tools/carry.py

badges: $(READY)  ## badges and install lines of README and notebooks: REPO=owner/name, once it is known
	@$(BIN)/python tools/badges.py $(if $(REPO),-- $(call quote,$(REPO)))

docs: $(READY)  ## the site, docs/ and the executed demo, into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'site/index.html opens as it is; for its search: $(BIN)/python -m http.server -d site'

# An environment of its own: other libraries, and a newer torch, than requirements.lock has.
$(BENCH_READY): pyproject.toml benchmarks/requirements.txt
	@echo 'Setting up .venv-bench from benchmarks/requirements.txt: once, some minutes, 6 GB …'
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench >/dev/null 2>&1 || \
		$(PYTHON) -m venv --clear --without-pip .venv-bench
	@if .venv-bench/bin/python -c 'import pip' 2>/dev/null; then pip='.venv-bench/bin/python -m pip'; \
		else pip='$(PYTHON) -m pip --python .venv-bench/bin/python'; fi; \
		$$pip install -qq --disable-pip-version-check -r benchmarks/requirements.txt -e '.[study,deploy,pretrained,encoders]' pytest
	@touch $@

bench: $(BENCH_READY)  ## speed against the peers on this machine, 40 minutes: ONLY="training scoring"
	@.venv-bench/bin/python benchmarks/bench.py $(ONLY)

test-encoders: $(BENCH_READY)  ## tests of timm's and smp's networks, in the benchmarks' environment
	@.venv-bench/bin/python -m pytest -q tests/models/test_encoders.py

# It needs no environment: a GPU machine's own torch is used, and what is missing beside it comes from
# benchmarks/wheels, which `make gpu-wheels` fills where there is a registry.
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard .venv-bench/bin/python $(BIN)/python) $(PYTHON)),$(PYTHON))
LACKS = import sys, importlib.util as u; sys.exit(sys.version_info[:2] != (3, 12) or all(map( \
	u.find_spec, ("filelock", "monai", "psutil", "pydantic", "segmentation_models_pytorch", "tqdm"))))
gpu:  ## what a GPU does, in 8 minutes: SIZE=tiny on a CPU, SECONDS=450, INTO=<folder of the results>
	@site=$$(mktemp -d); trap 'rm -rf "$$site"' EXIT; \
		if ls benchmarks/wheels/*.whl >/dev/null 2>&1 && $(GPU_PYTHON) -c '$(LACKS)'; then \
		$(GPU_PYTHON) -m pip install -qq --disable-pip-version-check --no-index --no-deps --no-compile \
			--target "$$site" benchmarks/wheels/*.whl; fi; \
		PYTHONPATH="$$site:$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) benchmarks/bench.py gpu \
		--seconds $(SECONDS) $(if $(filter tiny,$(SIZE)),--quick) $(if $(INTO),--out $(call quote,$(INTO)))

gpu-wheels:  ## fill benchmarks/wheels with what `make gpu` needs on a machine without a registry
	@rm -rf benchmarks/wheels
	@$(PYTHON) -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
		--dest benchmarks/wheels -r benchmarks/wheels.txt
	@du -sh benchmarks/wheels

# What these two run is no part of .venv: it lies in a folder that is gone afterwards.
TOOLS = tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; $(PYTHON) -m pip install -qq \
	--disable-pip-version-check --target "$$tools" --require-hashes --no-deps -r requirements-tools.lock
# $(1): a lock, whose header stays; $(2): what it is made from.
COMPILE = sed '/^\#/d' $(1) > "$$tools/lock"; "$$tools/bin/uv" pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-header --no-annotate \
	$(if $(filter all,$(UPGRADE)),--upgrade,$(UPGRADE:%=--upgrade-package=%)) \
	--output-file "$$tools/lock" $(2); \
	{ sed -n '/^\#/p' $(1); cat "$$tools/lock"; } > "$$tools/whole"; cp "$$tools/whole" $(1)

# All extras but one: see pyproject.toml.
EXTRAS = import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(f"--extra {name}" for name in extras if name != "encoders"))
lock:  ## the locks anew; what is pinned stays, but for UPGRADE="numpy scipy" or UPGRADE=all
	@set -e; $(TOOLS); $(call COMPILE,requirements.lock,$$($(PYTHON) -c '$(EXTRAS)') pyproject.toml); \
		printf 'pip-audit\nuv\n' > "$$tools/in"; $(call COMPILE,requirements-tools.lock,"$$tools/in")

pip-audit:  ## known vulnerabilities of what is locked; asks the registry's database of advisories
	@$(TOOLS) || exit 2; PYTHONPATH="$$tools" $(PYTHON) -m pip_audit --strict --disable-pip --require-hashes \
		--progress-spinner off --cache-dir "$$tools/cache" -r requirements.lock \
		>"$$tools/found" 2>"$$tools/said" && { cat "$$tools/said"; exit; }; \
		test -s "$$tools/found" && { cat "$$tools/found"; exit 1; }; \
		{ printf 'error: the audit did not happen, as the database of advisories gave no answer: '; \
		tail -n 1 "$$tools/said"; } >&2; exit 2

# DATA is the data set's name there, and no path of this machine's.
KAGGLE = --parameters $(call quote,$(PARAMETERS)) --owner $(call quote,$(OWNER)) --hours $(call quote,$(HOURS)) \
	--frames $(call quote,$(FRAMES)) $(if $(DATA),--data $(call quote,$(DATA))) \
	--set $(foreach word,$(SET),$(call quote,$(word)))
kaggle: $(READY)  ## a study's missing runs as folders for Kaggle: OWNER=<you> DATA=<owner/slug> HOURS=8
	@$(BIN)/python tools/kaggle.py $(KAGGLE)

# Its wildcards are the program's own, so that the shell takes nothing else in them for commands.
gather: $(READY)  ## merge results of several machines into results/: FROM="folder1 folder2.zip"
	@$(BIN)/python tools/gather.py --parameters $(call quote,$(PARAMETERS)) \
		--set $(foreach word,$(SET),$(call quote,$(word))) -- $(foreach word,$(FROM),$(call quote,$(word)))

PACS ?= http://127.0.0.1:8042/dicom-web
node: $(READY)  ## a DICOM node beside a PACS (docs/dicom.md): MODEL=<release> PACS=<DICOMweb address>
	@$(BIN)/python -m thyroid_lib.deploy.node serve --model $(call quote,$(or $(MODEL),$(WHERE)/deploy)) --caller ORTHANC \
		--pacs $(call quote,$(PACS)) --queue results/queue $(OPTIONS)

clean:  ## remove .venv, .venv-bench, the demo's results and caches; other studies stay
	@rm -rf .venv .venv-bench site results/demo results/quickstart .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +
