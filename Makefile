# make serve [PORT=8080] [ARGS="--model-id FOLDER"]   make test   make lint   make docs   make bench [ARGS=...]   make exits   make drafter   make gpu [WHEELS=DIR OUT=DIR]

SHELL := bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help serve test lint docs bench exits drafter gpu gpu-wheels clean

BIN := .venv/bin
INSTALLED := .venv/.installed
SUITE_TIMEOUT ?= 1500
AT_MOST := $(if $(shell command -v timeout),timeout --foreground -k 10 $$(( $(SUITE_TIMEOUT) + 60 )))

help:
	@sed -n '1s/^# //p' Makefile

serve: $(INSTALLED)
	@$(BIN)/helios serve $(if $(PORT),--port $(PORT)) $(ARGS)

# The suite ends by itself after SUITE_TIMEOUT seconds (tests/hang_guard.py); timeout is for a guard that fails.
test: $(INSTALLED)
	@$(BIN)/helios pull
	@OMP_NUM_THREADS=1 GOMP_SPINCOUNT=5000 $(AT_MOST) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	  --no-loadscope-reorder -o suite_timeout=$(SUITE_TIMEOUT) $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

# What of docs/ is made from the code.
docs: $(INSTALLED)
	@$(BIN)/python -m router.api.parameters_page > docs/parameters.md

bench: $(INSTALLED)
	@$(BIN)/helios bench engine $(ARGS)

# The exits of the embedded model, made anew: hours on a CPU, and it goes on where it was stopped.
exits: $(INSTALLED)
	@$(BIN)/helios tune embedded --recipe embedded --head-rank 192 --head-rerank 32 --num-answers 5120 --steps 800 \
	  --resume --out shard/exits_embedded $(ARGS)

# Its draft head, likewise: it proposes by the vocabulary of the exits.
drafter: $(INSTALLED)
	@$(BIN)/helios tune embedded --drafter --exit-layers 8,16,24 --head-rank 192 --head-rerank 32 \
	  --vocabulary shard/exits_embedded/vocabulary.safetensors --prompts chat code --num-answers 5120 --rate 1e-3 \
	  --resume --out shard/exits_embedded $(ARGS)

# What only a GPU can show, in under nine minutes: docs/gpu.md. Run by a Python that has torch; nothing is fetched.
gpu:
	@$(or $(PYTHON),python3) -m tests.gpu.run --device "$(or $(DEVICE),cuda)" --out "$(or $(OUT),gpu-report)" \
	  --wheels "$(WHEELS)" $(ARGS)

gpu-wheels: $(INSTALLED)
	@$(BIN)/python -m tests.gpu.wheels "$(or $(WHEELS),$(error name a folder: make gpu-wheels WHEELS=DIR))" $(ARGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Made once, and again when a dependency changes. The first Python that is new enough; 3.13 comes last since
# the embedded Redis has no wheel for it.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.12 python3.11 python3 python3.14 python3.13; do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
	done; \
	[ -n "$$found" ] || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }; \
	[ -x $(BIN)/python ] || $$found -m venv .venv
	@echo "Installing the dependencies into .venv (once; some minutes with a slow network)"
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' \
	  | awk -v terminal=$$([ -t 1 ] && echo 1) \
	    'terminal && /^(Collecting|Installing)/ { printf "\r\033[K  %.70s", $$0; fflush() } END { print "" }'
	@touch $@
