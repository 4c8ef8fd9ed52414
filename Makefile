# The project's user interface: `make help` lists what it can do. One line each; logic lives in tools/.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
.PHONY: help setup rest demo test lint fmt generate verify bench clean cluster-up cluster-down cluster-status build push prune

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make the virtual environment with the pinned packages

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OET needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

rest: setup ## start the REST server on this machine (OET_PORT, OET_STATE_DIR; oet.ini has all settings)
	@$(BIN)/python -m oet_api

demo: setup ## start OET, run examples/hello.py with it, show what happens, stop OET
	@$(BIN)/python tools/demo.py

test: setup ## run all tests; reports are left in build/
	@$(BIN)/python tools/run_tests.py

lint: setup ## check style, types and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup ## format the code and repair what can be repaired
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: setup ## write everything that is made from the code: CRD, OpenAPI, settings, reference pages
	$(BIN)/python tools/generate.py

verify: generate ## fail if a generated file in the repository is not what `make generate` writes
	@changed="$$(git status --porcelain -- charts/oet crds/generated docs/reference oet.ini)"; if [ -n "$$changed" ]; then echo "not up to date, run 'make generate' and commit:"; echo "$$changed"; exit 1; fi

bench: setup ## measure speed and memory beside their rivals; results in build/bench.json
	@$(BIN)/python tools/bench.py

cluster-up: setup ## start a Kubernetes to test on: kind where Docker runs, else one built from source (root, Linux)
	@PYTHONPATH=tests/cluster $(BIN)/python -m oet_cluster up

cluster-down: setup ## end that Kubernetes; nothing of it is left
	@PYTHONPATH=tests/cluster $(BIN)/python -m oet_cluster down

cluster-status: setup ## tell whether it runs, and where its kubeconfig is
	@PYTHONPATH=tests/cluster $(BIN)/python -m oet_cluster status

build: setup ## build the container image with docker, podman or buildah, whichever works
	@$(BIN)/python tools/images.py build

push: setup ## push the image: make push REGISTRY=registry.example.org/team
	@$(BIN)/python tools/images.py push "$(or $(REGISTRY),$(error say where: make push REGISTRY=host/path))"

prune: setup ## remove old images of OET, never those of others
	@$(BIN)/python tools/images.py prune

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist
