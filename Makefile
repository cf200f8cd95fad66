# tandem. `make demo` and `make test` need nothing but Python 3.11 and make.
# TORCH=cpu|cuda chooses the build of PyTorch (auto: CPU unless an NVIDIA driver is found). PYTHON=... names the interpreter.

.DEFAULT_GOAL := help
.PHONY: help install demo test faults faults-long hosts fuzz compose-test test-unit lint format bench bench-verdicts clean

BIN := .venv/bin

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install:  ## Make .venv and install tandem with what the demo needs
	@scripts/install.sh demo

demo: install  ## Run the whole loop on real input, in a few minutes on a CPU
	@$(BIN)/tandem demo

test:  ## Install what the tests need and run all of them
	@scripts/install.sh dev
	@scripts/system-packages.sh
	@$(BIN)/python -m pytest tests -m "not integration and not model and not compose and not extra" -q -n auto
	@$(BIN)/python -m pytest tests -m "model and not extra" -q -n auto
	@$(BIN)/python -m pytest tests -m "integration and not faults and not fuzz and not hosts and not extra" -q --durations 10
	@$(BIN)/python -m pytest tests/fuzz -m fuzz -q -n 2
	@SEEDS=1 $(BIN)/python -m pytest tests/faults -m faults -q -n 2

SEEDS ?= 20
faults:  ## Throw every fault at a real stack with SEEDS seeds; FAULT=name SEED=n for one of them
	@scripts/install.sh dev
	@scripts/system-packages.sh
	@SEEDS=$(SEEDS) SEED=$(SEED) $(BIN)/python -m pytest tests/faults -m faults -q -rA -n 2 $(if $(FAULT),-k $(FAULT)-)

AWAY ?= 600
faults-long:  ## Keep Redis away from a stack that trains for AWAY seconds; needs root
	@scripts/install.sh dev
	@scripts/system-packages.sh
	@AWAY_SECONDS=$(AWAY) $(BIN)/python -m pytest tests/faults/test_redis_away.py -q -rA

hosts:  ## Two hosts in network namespaces, with every fault between them and SEEDS seeds; needs root
	@scripts/install.sh dev
	@scripts/system-packages.sh
	@SEEDS=$(SEEDS) SEED=$(SEED) $(BIN)/python -m pytest tests/hosts -m hosts -q -rA

CASES ?= 5000
fuzz:  ## Throw CASES requests at the four doors
	@scripts/install.sh dev
	@CASES=$(CASES) $(BIN)/python -m pytest tests/fuzz -m fuzz -q -n 2

# Makes the two base images where no image registry can be reached; passed over where it is not there.
BASE_IMAGES ?= ../shared/containers/base-images
compose-test:  ## Lint docker-compose.yml, build the image, bring up both profiles, and stop each container once
	@scripts/install.sh dev
	@$(BIN)/hadolint Dockerfile
	@scripts/lint-compose.sh
	@[ ! -x "$(BASE_IMAGES)" ] || "$(BASE_IMAGES)"
	@docker build --network host --tag tandem:latest .
	@$(BIN)/python -m pytest tests/compose -m compose -q

test-unit:  ## Run the unit tests only
	@scripts/install.sh dev
	@$(BIN)/python -m pytest tests -m "not integration and not model and not compose and not extra" -q -n auto

lint:  ## ruff, mypy strict, import contracts, the container files
	@scripts/install.sh dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint Dockerfile
	@scripts/lint-compose.sh

format:  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench:  ## Run the benchmarks side by side with their alternatives
	@scripts/install.sh dev
	@set -e; for file in $(filter-out benchmarks/verdicts.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python -m benchmarks.$$(basename $$file .py); done

MODELS ?= 200
bench-verdicts:  ## Judge MODELS twins and as many planted faults, beside a naive rule; up to half an hour
	@scripts/install.sh dev
	@$(BIN)/python -m benchmarks.verdicts --models $(MODELS)

clean:  ## Remove the virtual environment and caches; var/ stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
