# The project's user interface: `make help` lists what it can do. One line each; logic lives in tools/.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
.PHONY: help setup rest demo test test-image interactive lint docs fmt generate verify bench clean cluster-up cluster-down cluster-status build load push prune up down test-cluster bench-cluster

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3## the Python that the virtual environment is made of
ARGS ?= ## words for pytest (test, test-image), Helm (up, down) or a benchmark
OET_PORT ?= ## port of the server that rest and up start
OET_CONTAINER_TOOL ?= ## docker, podman or buildah; otherwise the first that works
LOCAL ?= ## 1: up starts OET on this machine, not in a cluster
TANGO ?= ## 1: up brings a simulated telescope along
CONTAINER ?= ## 1: interactive opens its shell in the application image
REGISTRY ?= ## where push puts the image, such as registry.example.org/team
export OET_PORT OET_CONTAINER_TOOL LOCAL CONTAINER TANGO

help: ## list the targets
	@echo "targets:"; grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "variables:"; grep -hE '^[A-Z_]+ \?=.*## ' $(MAKEFILE_LIST) | sort | awk -F '( \\?= *| *## )' '{printf "  %-19s %s (%s)\n", $$1, $$3, $$2 == "" ? "none" : $$2}'

setup: $(VENV)/.installed ## make the virtual environment with the pinned packages

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OET needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock \
		|| { echo "setup: pip could not install the pinned packages: is its index reached? (pip config list, HTTPS_PROXY)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

rest: setup ## start the REST server on this machine (OET_PORT, OET_STATE_DIR; oet.ini has all settings)
	@$(BIN)/python -m oet_api

demo: setup ## start OET, run examples/hello.py with it, show what happens, stop OET
	@$(BIN)/python tools/demo.py

test: setup ## run all tests (ARGS for pytest: a choice of them); output and reports are left in build/
	@$(MAKE) --no-print-directory --directory=tests test PYTHON=$(CURDIR)/$(BIN)/python ARGS="$(ARGS)"

test-image: setup ## run the same tests in a temporary container of the application image (make build first; ARGS for pytest)
	@$(BIN)/python tools/test_image.py $(ARGS)

interactive: setup ## open a shell beside a simulated Tango system that ends with it; CONTAINER=1: in the application image
	@$(BIN)/python tools/local.py interactive

lint: setup ## check style, types and who imports whom; JUnit report in build/reports
	@$(BIN)/python tools/lint.py

fmt: setup ## format the code and repair what can be repaired
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: setup ## write everything that is made from the code: CRD, OpenAPI, settings, reference pages
	$(BIN)/python tools/generate.py

verify: generate ## fail if a generated file in the repository is not what `make generate` writes
	@changed="$$(git status --porcelain -- charts/oet crds/generated docs/news.md docs/reference oet.ini)"; if [ -n "$$changed" ]; then echo "not up to date, run 'make generate' and commit:"; echo "$$changed"; exit 1; fi

docs: setup ## build the documentation in build/docs/html; every warning is an error
	@$(BIN)/python tools/docs.py

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

load: setup ## give the built image to the nodes of the test cluster
	@mkdir -p build && $(BIN)/python tools/images.py archive build/image.tar && PYTHONPATH=tests/cluster $(BIN)/python -m oet_cluster load build/image.tar; rc=$$?; rm -f build/image.tar; exit $$rc

push: setup ## push the image: make push REGISTRY=registry.example.org/team
	@$(BIN)/python tools/images.py push "$(or $(REGISTRY),$(error say where: make push REGISTRY=host/path))"

prune: setup ## remove old images of OET, never those of others
	@$(BIN)/python tools/images.py prune

up: setup ## start OET in the cluster of the current context (OET_IMAGE, TANGO=1: with a simulated telescope, ARGS), else here (LOCAL=1)
	@$(BIN)/python tools/local.py up $(ARGS)

down: setup ## end what up and interactive started; in a cluster ARGS=--stop stops scripts that run, ARGS=--all removes the namespace
	@$(BIN)/python tools/local.py down $(ARGS)

test-cluster: setup ## run the tests that need a Kubernetes, on KUBECONFIG's or on one brought up for them
	@$(BIN)/python tools/test_cluster.py

bench-cluster: setup ## measure OET on Kubernetes beside a bare Pod (KUBECONFIG); results in build/bench-cluster.json
	@$(BIN)/python tools/bench_cluster.py $(ARGS)

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist
