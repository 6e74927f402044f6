# One target per stage, each with what it stands on; `make` lists them.
#
#   DATASET=census_income  MODEL=ple  DEVICE=cpu   which line to run
#   ARGS="seed=2 …"        more overrides for the stage that is the goal
#   CONF=my_conf           a folder with your own dataset/, model/, … YAMLs
DATASET ?= census_income
MODEL   ?= ple
DEVICE  ?= cpu
PYTHON  ?= python3
ARGS    ?=
CONF    ?=

VENV := .venv
BIN  := $(VENV)/bin
NAME := $(DATASET)-$(MODEL)
OWN  := $(if $(CONF),--config-dir $(CONF))

FEATURES    := work/features/$(DATASET)
RUN         := work/runs/$(NAME)
ARTIFACT    := work/artifacts/$(NAME)
PREDICTIONS := work/predictions/$(NAME)

FEATURES_COMMAND := $(BIN)/recsys-moe-features $(OWN) dataset=$(DATASET) output=$(FEATURES)
TRAIN_COMMAND    := $(BIN)/recsys-moe-train $(OWN) features=$(FEATURES) model=$(MODEL) output=$(RUN)
EVALUATE_COMMAND := $(BIN)/recsys-moe-evaluate run=$(RUN) features=$(FEATURES) split=test
EXPORT_COMMAND   := $(BIN)/recsys-moe-export run=$(RUN) output=$(ARTIFACT)
SCORE_COMMAND    := $(BIN)/recsys-moe-score artifact=$(ARTIFACT) input=$(FEATURES)/prepared/test output=$(PREDICTIONS) device=$(DEVICE)

.DEFAULT_GOAL := help
.PHONY: help setup features train evaluate export score demo format check test test-all clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

setup: $(VENV)/.ready  ## Make .venv with everything at the versions of constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit("recsys-moe: PYTHON=$(PYTHON): wanted Python 3.11 or newer, got %d.%d." % v[:2] if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train,dev]' -c constraints.txt
	@touch $@

# A goal always runs; what it stands on runs only where it is not finished yet.
features: $(VENV)/.ready  ## Raw logs -> work/features/DATASET
	$(FEATURES_COMMAND) $(ARGS)

train: $(FEATURES)/_SUCCESS  ## Features -> work/runs/DATASET-MODEL
	$(TRAIN_COMMAND) $(ARGS)

evaluate: $(RUN)/_SUCCESS  ## Run + features -> metrics on the test split
	$(EVALUATE_COMMAND) $(ARGS)

export: $(RUN)/_SUCCESS  ## Run -> work/artifacts/DATASET-MODEL
	$(EXPORT_COMMAND) $(ARGS)

score: $(ARTIFACT)/manifest.json  ## Artifact + parquet -> work/predictions/DATASET-MODEL
	$(SCORE_COMMAND) $(ARGS)

$(FEATURES)/_SUCCESS: | $(VENV)/.ready
	$(FEATURES_COMMAND)

$(RUN)/_SUCCESS: | $(FEATURES)/_SUCCESS
	$(TRAIN_COMMAND)

$(ARTIFACT)/manifest.json: | $(RUN)/_SUCCESS
	$(EXPORT_COMMAND)

demo: $(VENV)/.ready  ## The whole line on DATASET, ending with the table of results
	@$(FEATURES_COMMAND)
	@$(TRAIN_COMMAND)
	@$(EVALUATE_COMMAND) > /dev/null
	@$(EXPORT_COMMAND)
	@$(SCORE_COMMAND)
	@echo
	@$(EVALUATE_COMMAND)
	@printf '  %-12s %s\n' features $(FEATURES) run $(RUN) artifact $(ARTIFACT) predictions $(PREDICTIONS)

format: $(VENV)/.ready  ## Lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(VENV)/.ready  ## Layout, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.ready  ## The default tests, on two cores
	$(BIN)/pytest -n 2

test-all: $(VENV)/.ready  ## All tests, the slow ones too
	$(BIN)/pytest -n 2 -m 'not gpu'

clean:  ## Remove work/ and .venv
	rm -rf work $(VENV)
