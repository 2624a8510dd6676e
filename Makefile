# `make help` lists the targets. Variables: PRESET=smoke|quick|short|text|digits|small|reduced|paper (else reduced, with
# one seed, where CUDA is, and quick where it is not), SEEDS, JOBS (runs at a time), PRECISION (float32|bfloat16, instead
# of the preset's), DATA_DIR (holds cifar-100-python/), RESULTS and FIGURES (folders), STUDY (tables, figures), STUDIES
# (overview), TEST_JOBS, SEED (test-long), PYTHON3 (makes .venv).
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON3 ?= python3
TEST_JOBS ?= 2
VENV := .venv
PYTHON := $(VENV)/bin/python
export PRESET STUDY STUDIES RESULTS FIGURES DATA_DIR

.PHONY: help reproduce status data smoke tables figures report overview bench test test-long test-slurm lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+: .*## |^[a-z-]+:  ## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# The environment: made anew when the pins change. Bytecode is compiled as it is imported, not all of it here.
$(VENV)/ready: pyproject.toml requirements.txt
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --no-compile --requirement requirements.txt
	$(PYTHON) -m pip install --quiet --no-compile --editable '.[experiments,peers]'
	touch $@

# What only the tests need.
$(VENV)/ready-tests: $(VENV)/ready
	$(PYTHON) -m pip install --quiet --no-compile --requirement requirements.txt --editable '.[experiments,dev,integrations,peers]'
	touch $@

# What only the benchmarks need: the peers.
$(VENV)/ready-bench: $(VENV)/ready
	$(PYTHON) -m pip install --quiet --no-compile --requirement requirements.txt --editable '.[experiments,benchmarks]'
	touch $@

reproduce: $(VENV)/ready  ## environment, data, the sweeps, tables, figures, summary (PRESET)
	@PYTHON=$(PYTHON) scripts/reproduce.sh

status: $(VENV)/ready  ## what the sweeps of PRESET have done, and about how long is left
	@PYTHON=$(PYTHON) scripts/status.sh

data: $(VENV)/ready  ## find or download CIFAR-100
	@$(PYTHON) -m icassp25.data $(if $(DATA_DIR),--data-dir "$(DATA_DIR)")

smoke: $(VENV)/ready  ## the whole way in minutes, on synthetic images
	@PRESET=smoke PYTHON=$(PYTHON) scripts/reproduce.sh

tables: $(VENV)/ready  ## rebuild the tables of PRESET (or STUDY) from its CSVs
	@PYTHON=$(PYTHON) scripts/rebuild.sh tables

figures: $(VENV)/ready  ## rebuild the figures of PRESET (or STUDY) from its CSVs
	@PYTHON=$(PYTHON) scripts/rebuild.sh figures

report: figures  ## one page of PRESET (or STUDY): tables, figures, runs, environment
	@PYTHON=$(PYTHON) scripts/rebuild.sh report

overview: $(VENV)/ready  ## ACME beside its peers on several tasks (STUDIES): one figure, one table
	@PYTHON=$(PYTHON) scripts/rebuild.sh overview

bench: $(VENV)/ready-bench  ## cost of a step and of epochs beside peers, into results/benchmarks/
	$(PYTHON) -W ignore::UserWarning benchmarks/step_cost.py
	$(PYTHON) benchmarks/training.py
	$(PYTHON) benchmarks/plot.py

# Several at a time, with one thread each: threads that wait for each other on busy cores are slower than one.
test: $(VENV)/ready-tests  ## all tests, the smoke preset included (TEST_JOBS at a time)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses $(TEST_JOBS) --dist worksteal

test-long: $(VENV)/ready-tests  ## random histories of the optimizer, ten thousand, anew each time; 200 steps of two ranks
	@seed=$(or $(SEED),$$RANDOM); echo "SEED=$$seed"; \
	OMP_NUM_THREADS=1 ACME_FUZZ_EXAMPLES=10000 ACME_FUZZ_SEED=$$seed ACME_RANKS_STEPS=200 \
		$(PYTHON) -m pytest --numprocesses $(TEST_JOBS) tests/acme/test_fuzz.py tests/acme/test_distributed.py

test-slurm: $(VENV)/ready-tests  ## job arrays on a real SLURM (as root with Debian's slurm-wlm and munge, one of this machine)
	SLURM_TESTS=1 $(PYTHON) -m pytest -rs tests/scripts/test_slurm.py

lint: $(VENV)/ready-tests  ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:  ## remove the environment and caches; results and figures stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
