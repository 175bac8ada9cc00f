# `make` lists the targets. Each target installs what it needs.

VENV ?= .venv
PYTHON ?= $(shell tools/find-python)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/ghealth/__init__.py)
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || echo unknown)
IMAGE ?= ghealth
ENGINE ?= $(shell tools/find-engine)

# Processes of `make test`: its tests wait for each other's programs, so one more than there are CPUs.
JOBS ?= $(shell expr $$(nproc) + 1)

.DEFAULT_GOAL := help
.PHONY: help env run test lint fmt page-test page-pictures interop probe-matrix interop-table soak flood deploy-check image image-test dist release-dry-run mutants bench bench-scale bench-against rollout rollout-smoke tables lock version clean

help: # list the targets: the usual ones, and after a line of "##" the others
	@sed -n -e 's/^\([a-z-]*\):.*## /  make \1\t/p' -e 's/^##$$//p' $(MAKEFILE_LIST) | expand -t 22

env: $(INSTALLED) ## create the environment in .venv

$(INSTALLED): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "ghealth needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "$(VENV): a virtual environment of $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@tools/install $(VENV) requirements/dev.txt
	@echo "$(VENV): ghealth, editable"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: env ## run a real Envoy on 15021 and ghealth on 25021, until Ctrl-C
	@exec $(BIN)/python -m tools.run

test: env ## run the tests, in parallel: units, and the whole program beside a real Envoy, with branch coverage
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal --cov --cov-report=term $(ARGS)

lint: env ## run ruff, mypy --strict, import-linter, codespell and the check of the prose
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell $$(git ls-files)
	$(BIN)/python -m tools.prose

fmt: env ## format, and apply ruff's fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

##

page-test: env ## test the status page in a real browser (needs chromium)
	$(BIN)/python -m pytest tests/page

page-pictures: env ## take the pictures of the status page in docs/
	PICTURES=docs $(BIN)/python -m pytest tests/page -k pictures

interop: env ## check with real callers: the kubelet, Envoy, grpc-go, grpc-js, grpcurl, curl
	$(BIN)/python -m tests.interop.tools
	$(BIN)/python -m pytest tests/interop --numprocesses=$(JOBS) --dist=worksteal
	$(BIN)/python -m tests.interop.matrix

probe-matrix: env ## compare the exit codes of ghealth check and grpc-health-probe: all flags, states and certificates
	$(BIN)/python -m tests.interop.matrix

interop-table: env ## write the tables of docs/callers.md, which interop verifies
	$(BIN)/python -m tests.interop.page

soak: env ## mix callers and faults at random for SECONDS (300), and check every answer
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

flood: env ## flood ghealth in a memory control group; ARGS="--short", ARGS="-k held-checks --seconds 10"
	$(BIN)/python -m pytest tests/flood --log-cli-level=info $(ARGS)

deploy-check: env ## render and check deploy/, and put faults in; hadolint, actionlint, zizmor
	@tools/install $(VENV) requirements/deploy.txt
	$(BIN)/python -m pytest tests/deploy

image: ## build the image with docker, podman or buildah: IMAGE=name:tag, PLATFORM=linux/arm64, SOURCE=url
	@test -n "$(ENGINE)" || { echo "an image needs docker (running), podman or buildah to build it" >&2; exit 1; }
	$(ENGINE) $(if $(PLATFORM),--platform $(PLATFORM)) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(if $(SOURCE),--build-arg SOURCE=$(SOURCE)) --tag $(IMAGE) .

image-test: env ## build the image on a local Debian, and run it confined beside a real Envoy (needs root)
	$(BIN)/python -m tests.image.build
	unshare --net sh -c 'ip link set lo up && exec "$$0" "$$@"' $(BIN)/python -m pytest tests/image

dist: env ## build the wheel and the sdist into dist/, and test the wheel in an empty environment
	rm -rf dist
	$(BIN)/hatchling build
	$(BIN)/python -m pytest tests/dist

release-dry-run: dist ## what the tag of this version would publish: files, image names, notes
	$(BIN)/python -m tools.release dry-run

mutants: env ## change the code in many small ways, and verify that a test fails for each (5 min)
	@tools/install $(VENV) requirements/mutants.txt
	$(BIN)/python -m tools.mutants

# Creates the environment $(1) with exactly the packages of the image, for the sources in $(2).
define image-venv
	$(PYTHON) -m venv --clear $(1)
	tools/install $(1) $(2)/requirements/image.txt
	echo "$(abspath $(2))/src" > "$$($(1)/bin/python -c 'import site; print(site.getsitepackages()[0])')/ghealth.pth"
	$(1)/bin/python -m compileall -q $(1)/lib $(2)/src
endef

.venv-bench/.installed: requirements/image.txt $(shell find src -name '*.py')
	$(call image-venv,.venv-bench,.)
	@touch $@

bench: env .venv-bench/.installed ## measure ghealth beside Go bridges and others (35 min); ARGS="--rows connection --rounds 4"
	$(BIN)/python -m bench.speed $(or $(ARGS),--write)

bench-scale: env .venv-bench/.installed ## measure how its cost grows with services, watches, waiting checks, connections (10 min)
	$(BIN)/python -m bench.speed --scale $(or $(ARGS),--write)

bench-against: env .venv-bench/.installed ## compare with ghealth of COMMIT in what an ALB does (20 min)
	rm -rf build/$(COMMIT) && mkdir -p build/$(COMMIT)
	git archive $(COMMIT) | tar -x -C build/$(COMMIT)
	$(call image-venv,build/$(COMMIT)/venv,build/$(COMMIT))
	$(BIN)/python -m bench.speed --rows cold,connection,ten,idle,command,start,storm --against $(COMMIT)=build/$(COMMIT)/venv/bin/python $(ARGS)

rollout: env ## count requests that fail behind a model of an ALB, in every event (30 min); ARGS='--events hang --seeds 2'
	$(BIN)/python -m bench.rollout $(or $(ARGS),--write)

rollout-smoke: env ## the same for a few events
	$(BIN)/python -m bench.rollout --smoke

tables: env ## write the documentation's tables from the code
	$(BIN)/python -m tools.tables

lock: env ## write requirements/*.txt from pyproject.toml; ARGS=--upgrade for the newest versions
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m tools.lock $(ARGS)

version: ## print the version
	@echo $(VERSION)

clean: ## remove what the other targets created
	rm -rf $(VENV) .venv-bench .image mutants tests/deploy/.bin tests/interop/.bin tests/interop/node/node_modules .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
