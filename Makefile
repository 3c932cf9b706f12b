# Everything that a checkout needs: `make demo` and `make test` set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)

# Where to look for the CPU build of torch, if pip is not configured to find one; see README.md.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet --constraint constraints.txt

.PHONY: help install demo test chaos bench-peers docs check format build clean

help:
	@echo "make demo     embed and search Python's docstrings on a local PostgreSQL (two minutes)"
	@echo "make test     run every test against a real PostgreSQL"
	@echo "make chaos    soak the queue in faults (MINUTES=30 SEED=1); docs/chaos.md"
	@echo "make bench-peers  compare with what people would pick instead (ARGS='load --rounds 5'); benchmarks/peers"
	@echo "make docs     build the documentation into build/docs (a warning is an error)"
	@echo "make check    ruff, mypy --strict, import-linter"
	@echo "make install  only make .venv with .venv/bin/pgvec"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("pgvec-queue needs Python 3.11 or later; run: make PYTHON=python3.11 install" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(MAKE) --no-print-directory install-torch
	@$(PIP_INSTALL) --editable '.[all,dev]'
	@touch $@

# On Linux, PyPI's own torch brings several GB of CUDA. Without an NVIDIA card it is refused unless asked for.
.PHONY: install-torch
install-torch:
	@if $(PIP) --version >/dev/null && $(BIN)/python -c 'import torch' 2>/dev/null; then exit 0; fi; \
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && [ "$(CUDA)" != 1 ]; then \
		$(PIP) install --quiet --dry-run --no-deps --ignore-installed --report $(VENV)/torch.json \
			$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)' || exit 1; \
		if ! grep -q '"version": *"[^"]*+cpu"' $(VENV)/torch.json && [ "$$(uname -m)" = x86_64 ]; then \
			echo "pip would install torch with several GB of CUDA, and this machine shows no NVIDIA card." >&2; \
			echo "Give the index of PyTorch's CPU builds (pytorch.org/get-started names it): make $(or $(MAKECMDGOALS),install) TORCH_INDEX=https://…" >&2; \
			echo "or take the CUDA build all the same: make $(or $(MAKECMDGOALS),install) CUDA=1" >&2; \
			exit 1; \
		fi; \
	fi; \
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)'

demo: install
	@HF_HUB_OFFLINE=1 $(BIN)/pgvec demo $(if $(ALL),--all)

test: install
	$(BIN)/pytest --numprocesses 4 --dist loadgroup

MINUTES ?= 30
SEED ?= 1
chaos: install
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

bench-peers: install
	@$(BIN)/python -m benchmarks.peers $(ARGS)

docs: install
	@$(BIN)/python -m sphinx -b html -c docs -n -W --keep-going -q . build/docs
	@echo "build/docs/index.html"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=docs/_ext $(BIN)/mypy --explicit-package-bases docs/_ext
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: install
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
