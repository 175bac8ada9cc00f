# `make` lists the targets. Everything that a target needs, it installs.

VENV ?= .venv
PYTHON ?= $(shell tools/find-python)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/ghealth/__init__.py)
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || echo unknown)
IMAGE ?= ghealth
ENGINE ?= $(shell tools/find-engine)

.DEFAULT_GOAL := help
.PHONY: help env run test lint fmt page-test page-pictures interop interop-table soak deploy-check image image-test dist mutants bench bench-check cost rollout rollout-smoke tables lock version clean

help: # list the targets: first those that everybody needs, then, after a line of "##", the rest
	@sed -n -e 's/^\([a-z-]*\):.*## /  make \1\t/p' -e 's/^##$$//p' $(MAKEFILE_LIST) | expand -t 22

env: $(INSTALLED) ## make the environment in .venv

$(INSTALLED): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "ghealth needs Python 3.11 or newer: say make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: env ## a real Envoy on 15021, ghealth on 25021, and what a check says; Ctrl-C ends both
	@exec $(BIN)/python -m tools.run

test: env ## the units and the whole program beside a real Envoy, with branch coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

lint: env ## ruff, mypy --strict, the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fmt: env ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

##

page-test: env ## the operators' page in a real browser (needs chromium)
	$(BIN)/python -m tests.page

page-pictures: env ## the same, and take its pictures into docs/
	$(BIN)/python -m tests.page --pictures

interop: env ## what real callers conclude: the kubelet, Envoy, grpc-go, grpc-js, grpcurl, curl
	$(BIN)/python -m tests.interop --page docs/callers.md

interop-table: env ## the same, and write its tables into docs/callers.md
	$(BIN)/python -m tests.interop --page docs/callers.md --write

soak: env ## all callers and faults at random for SECONDS (300), every answer checked
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

deploy-check: env ## render and check all of deploy/, and break each checked value; hadolint, actionlint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements/deploy.txt
	$(BIN)/python -m tests.deploy
	$(BIN)/python -m pytest tests/deploy

image: ## the image, by docker, podman or buildah: IMAGE=name:tag, PLATFORM=linux/arm64
	@test -n "$(ENGINE)" || { echo "an image needs docker (running), podman or buildah to build it" >&2; exit 1; }
	$(ENGINE) $(if $(PLATFORM),--platform $(PLATFORM)) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --tag $(IMAGE) .

image-test: env ## build the image on a Debian made here, run it confined beside a real Envoy; as root
	$(BIN)/python -m tests.image.build
	unshare --net sh -c 'ip link set lo up && exec "$$0" "$$@"' $(BIN)/python -m pytest tests/image

dist: env ## the wheel and the sdist, in dist/; the wheel is tried in an empty environment
	rm -rf dist
	$(BIN)/hatchling build
	$(BIN)/python -m pytest tests/dist

mutants: env ## break the code in every small way, and see that a test notices
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements/mutants.txt
	$(BIN)/python -m tools.mutants

.venv-bench/.installed: requirements/image.txt src/ghealth/*.py
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements/image.txt
	echo "$(CURDIR)/src" > "$$(.venv-bench/bin/python -c 'import site; print(site.getsitepackages()[0])')/ghealth.pth"
	.venv-bench/bin/python -m compileall -q .venv-bench/lib src
	@touch $@

bench: env .venv-bench/.installed ## ghealth beside a Go bridge and others; ARGS="--rows 2 --rounds 4", --write for the page
	$(BIN)/python -m bench.speed $(ARGS)

bench-check: env .venv-bench/.installed ## compare with bench/speed/baseline.json: ratios in wide bands, counts exactly
	$(BIN)/python -m bench.speed.check

cost: env ## what the operators' port costs (needs h2load, of nghttp2-client)
	$(BIN)/python -m bench.speed.cost
	$(BIN)/python -m bench.speed.cost --hostile

rollout: env ## requests that fail behind a model of an ALB, in every event (15 min); ARGS='--events hang --seeds 2'
	$(BIN)/python -m bench.rollout $(or $(ARGS),--write)

rollout-smoke: env ## a few of these, in under two minutes
	$(BIN)/python -m bench.rollout --smoke

tables: env ## write the documentation's tables anew from the code
	$(BIN)/python -m tools.tables

lock: env ## write requirements/*.txt anew from pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m tools.lock

version: ## print the version
	@echo $(VERSION)

clean: ## remove what the other targets made
	rm -rf $(VENV) .venv-bench .image mutants tests/deploy/.bin tests/interop/.bin tests/interop/node/node_modules .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
