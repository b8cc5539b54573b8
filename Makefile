# `make help` lists the targets. Everything runs in .venv, made from requirements/dev.txt the first time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
ENGINE ?= serve
STORE ?= tcp
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input -qq
# The name of the stamp carries what .venv was made from, so that a changed list makes it anew.
KEY := $(shell cat requirements/dev.txt pyproject.toml <(echo '$(CURDIR)') | sha256sum | cut -c1-16)
STAMP := $(VENV)/made-$(KEY)
# vLLM lives in an environment of its own (2.5 GB); HOLDFAST_VLLM_PYTHON says that one is there already.
VLLM_VENV := .venv-vllm
VLLM_KEY := $(shell cat requirements/vllm.txt <(echo '$(CURDIR)') | sha256sum | cut -c1-16)
VLLM_STAMP := $(VLLM_VENV)/made-$(VLLM_KEY)
# TRL needs pyarrow and pandas, and there are checking tools (450 MB): an environment on top of .venv.
TRL_VENV := .venv-integrations
TRL_STAMP := $(TRL_VENV)/made-$(shell cat requirements/integrations.txt <(echo '$(CURDIR)') | sha256sum | cut -c1-16)

export PYTHONUNBUFFERED := 1
# Nothing is downloaded at run time.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1

.PHONY: help venv vllm-venv integrations-venv demo test heavy bench lint format soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## the environment alone

# A wheel of torch that was built for CUDA does not load without the libraries that the list leaves out: fetch them then.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	@echo "making $(VENV) from requirements/dev.txt (once; a minute or two)"
	@[ -x $(RUN) ] && $(RUN) -c '' 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@rm -f $(VENV)/made-*
	@$(PIP) install --no-deps -r requirements/dev.txt
	@$(RUN) -c 'import torch' 2>/dev/null || $(PIP) install -r requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

vllm-venv: $(if $(HOLDFAST_VLLM_PYTHON),,$(VLLM_STAMP)) ## the environment of the real vLLM server that tests/vllm runs

$(VLLM_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	@echo "making $(VLLM_VENV) from requirements/vllm.txt (once; a few minutes)"
	@[ -x $(VLLM_VENV)/bin/python ] && $(VLLM_VENV)/bin/python -c '' 2>/dev/null \
		|| { rm -rf $(VLLM_VENV); $(PYTHON) -m venv $(VLLM_VENV); }
	@rm -f $(VLLM_VENV)/made-*
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps -r requirements/vllm.txt
	@$(VLLM_VENV)/bin/python -c 'import vllm'
	@touch $@

integrations-venv: $(TRL_STAMP) ## the environment that tests/integrations runs TRL in, on top of .venv

$(TRL_STAMP): $(STAMP)
	@echo "making $(TRL_VENV) from requirements/integrations.txt (once; a minute)"
	@rm -rf $(TRL_VENV)
	@$(RUN) -m venv --without-pip $(TRL_VENV)
	@below=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	own=$$($(TRL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$below')" >"$$own/below.pth"
	@$(TRL_VENV)/bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps -r requirements/integrations.txt
	@$(TRL_VENV)/bin/python -c 'import trl'
	@touch $@

demo: $(STAMP) $(if $(filter vllm,$(ENGINE)),vllm-venv) ## an RL job that is broken on purpose, and goes on: a minute and a half (ENGINE=vllm, STORE=etcd)
	@$(RUN) -m examples.demo.main --engine $(ENGINE) --store $(STORE) $(ARGS)

test: $(STAMP) ## the fast tests, without root: under five minutes on two cores
	@$(RUN) -m pytest -q -n 4 $(ARGS)

heavy: $(STAMP) vllm-venv integrations-venv ## the long suites one after the other (nfs needs root; nfs, etcd and browser Debian's packages)
	@for suite in model mutants kill nfs sim vllm etcd agents browser demo; do $(RUN) -m pytest -q -m $$suite tests/$$suite $(ARGS); done
	@$(TRL_VENV)/bin/python -m pytest -q -m integrations $(ARGS)

bench: $(STAMP) ## speed, as ratios
	@$(RUN) bench/main.py $(ARGS)

lint: $(STAMP) ## ruff, formatting, types
	@status=0; \
	$(RUN) -m ruff check . || status=1; \
	$(RUN) -m ruff format --check . || status=1; \
	$(RUN) -m mypy || status=1; \
	exit $$status

format: $(STAMP) ## put the code into its form
	@$(RUN) -m ruff check --fix-only -q .
	@$(RUN) -m ruff format .

soak: export HOLDFAST_SOAK := 1
soak: $(STAMP) ## half an hour of kills while an RL job trains; the demo on real NFS (root); kill -9, the simulation and the random tests, ten times as long
	@$(RUN) -m pytest -q -rP -m demo tests/demo --timeout 7200 $(ARGS)
	@$(RUN) -m pytest -q -rP -m nfs tests/nfs/test_demo.py $(ARGS)
	@$(RUN) -m pytest -q -m kill tests/kill --timeout 3600 $(ARGS)
	@$(RUN) -m pytest -q -n 2 -m sim tests/sim --timeout 36000 $(ARGS)
	@$(RUN) -m pytest -q -n 2 -m 'hypothesis and not model and not mutants and not kill and not nfs and not vllm and not etcd and not agents and not sim and not integrations and not browser and not demo' --timeout 3600 $(ARGS)

clean: ## remove what can be made again
	@rm -rf $(VENV) $(VLLM_VENV) $(TRL_VENV) build dist reports src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
