# Set-up, the demo and the gate. Everything lives in .venv, but for inspect, which has .venv-inspect to
# itself; nothing else of the machine is touched.
PYTHON ?= python3.11
VENV    := .venv
INSPECT := .venv-inspect
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet
.DEFAULT_GOAL := help
.PHONY: help install engine train modal inspect demo demo-train test check format bench clean

help:  ## show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Each stamp names the pins it was made from, so that a changed pin installs and an unchanged one does not.
$(VENV)/base.stamp: pyproject.toml requirements/base.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip==26.3
	$(PIP) -r requirements/base.txt
	$(PIP) hatchling==1.33.0 editables==0.6
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/engine.stamp: $(VENV)/base.stamp requirements/torch-cpu.txt requirements/engine-cpu.txt
	$(PIP) -r requirements/torch-cpu.txt -c requirements/engine-cpu.txt
	$(PIP) --no-deps -r requirements/engine-cpu.txt
	@touch $@

$(VENV)/train.stamp: $(VENV)/engine.stamp requirements/train-cpu.txt
	$(PIP) --no-deps -r requirements/train-cpu.txt
	@touch $@

$(VENV)/modal.stamp: $(VENV)/base.stamp requirements/modal.txt
	$(PIP) -r requirements/modal.txt
	@touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp requirements/dev.txt
	$(PIP) -r requirements/dev.txt -c requirements/base.txt
	@touch $@

$(INSPECT)/inspect.stamp: requirements/inspect.txt
	@test -x $(INSPECT)/bin/python || $(PYTHON) -m venv $(INSPECT)
	$(INSPECT)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

install: $(VENV)/base.stamp  ## the product without an engine: evaluate against any URL

engine: $(VENV)/engine.stamp  ## the product with vLLM on CPU

train: $(VENV)/train.stamp  ## the product with vLLM and the trainer, on CPU

modal: $(VENV)/modal.stamp  ## the product with Modal's client, to serve, evaluate and train there

inspect: $(INSPECT)/inspect.stamp  ## inspect, which the tests of export and import run

check: $(VENV)/dev.stamp $(VENV)/train.stamp $(VENV)/modal.stamp  ## format, lint, types, import law, sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_house.py

test: check inspect  ## everything, against real vLLM and real inspect
	$(BIN)/python -m pytest

demo: $(VENV)/engine.stamp  ## a real model on real vLLM plays key_door in two arms
	$(BIN)/python demo.py

demo-train: $(VENV)/train.stamp  ## a tiny policy learns key_door by GRPO on real vLLM, and is compared
	$(BIN)/python demo_train.py

format: $(VENV)/dev.stamp  ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment
	rm -rf $(VENV) $(INSPECT)
