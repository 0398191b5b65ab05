# make demo         the main job, from nothing: environment, real backbone, real text, a fine-tuned classifier
# make test         environment, lint, types, tests
# make test-fast    the tests that take seconds; no recipes, no killed runs, no documentation
# make test-one RECIPE=choose    one recipe end to end, and its task's own tests
# make test-lowest  the fast tests with the lowest versions that pyproject.toml allows, in an environment of their own
# make test-wheel   every recipe from the built wheel, in an empty environment and another folder
# make coverage     the fast tests, and which lines they reach; MARKS= for all tests
# make hooks        has git run ruff and mypy before each commit; make pre-commit runs them now, on all files
# make newest       which versions in constraints.txt have newer ones
# make numbers      records the losses, metrics and weights of every recipe's test case: before and after a refactoring
# make scale        memory and time by rows, for docs/scale.md; takes about an hour
# make board        the board of silent faults of docs/reliability.md: Trainer, sentence-transformers and this package
# make soak         the long tests: kills runs 1,000 times, and writes what came of it into docs/reliability.md; then
#                   every fault of the disk in everything that writes, and many odd rows and damaged notes; about two hours
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
LOWEST := .venv-lowest
WHEEL := build/wheel
FAST := not slow and not processes and not docs
MARKS ?= $(FAST)
# A file's tests run in one worker, so that its fixtures are made once. Files are in the order of their names: many small ones are left for the end
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-one test-lowest test-wheel coverage lint hooks pre-commit newest numbers board soak faults odd reliability benchmark other-tasks scaling fixed-costs dry-run time-to-accuracy \
	profile results scale docs clean

demo: $(VENV)/.demo-installed
	$(RUN) $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/classify.py

test: $(VENV)/.test-installed lint
	$(RUN) $(BIN)/python -m pytest $(WORKERS) -q

test-fast: $(VENV)/.test-installed
	$(RUN) $(BIN)/python -m pytest $(WORKERS) -q -m "$(FAST)"

test-one: $(VENV)/.test-installed
	@test -n "$(RECIPE)" || { echo "make test-one RECIPE=NAME: NAME is one of $(basename $(notdir $(wildcard recipes/*.py)))"; exit 2; }
	$(RUN) $(BIN)/python -m pytest $(WORKERS) -q -k "$(RECIPE)" tests/recipes $(wildcard tests/tasks/test_$(RECIPE).py)

test-lowest: $(LOWEST)/.installed
	$(RUN) $(LOWEST)/bin/python -m pytest $(WORKERS) -q -m "$(FAST)"

# The folder that the recipes run in is outside the checkout, and -P keeps tests/ off the path: nothing but the wheel is imported
test-wheel:
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(WHEEL)/venv/bin/python -m pip install --quiet "$$(ls $(WHEEL)/*.whl)[demo,generation]" --constraint constraints.txt
	folder=$$(mktemp -d) && cd "$$folder" && $(CURDIR)/$(WHEEL)/venv/bin/python -P $(CURDIR)/tests/wheel.py && rm -rf "$$folder"

coverage: $(VENV)/.test-installed
	$(RUN) $(BIN)/python -m pytest $(WORKERS) -q -m "$(MARKS)" --cov --cov-report=term --cov-report=html

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

hooks: $(VENV)/.test-installed
	$(BIN)/pre-commit install

pre-commit: $(VENV)/.test-installed
	$(BIN)/pre-commit run --all-files

newest: $(VENV)/bin/python
	$(BIN)/python .ci/newest.py $(if $(WRITE),--write)

# Compare with `python tests/recipes/record_numbers.py compare OLD.json NEW.json`: a refactoring changes no number
numbers: $(VENV)/.test-installed
	mkdir -p build
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python tests/recipes/record_numbers.py record $(or $(OUT),build/numbers.json)

board: $(VENV)/.test-installed
	cd tests && PYTHONPATH=..:. $(RUN) ../$(BIN)/python -m silent_faults.board

# Odd rows that reach training, and damaged notes, manifests and results: many of each
odd: $(VENV)/.test-installed
	$(RUN) OMP_NUM_THREADS=1 ODD_ROWS=40 DAMAGED_NOTES=300 $(BIN)/python -m pytest -q tests/test_odd_rows.py tests/test_damaged_notes.py --timeout 0

soak: $(VENV)/.test-installed
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --kills $(or $(KILLS),1000)
	$(MAKE) faults odd

# Each fault at each call of everything that writes; `make test` draws some of them
faults: $(VENV)/.test-installed
	HF_FINETUNE_ALL_FAULTS=1 $(RUN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 3600 tests/faults

# Seconds to the first update of a fresh run and of a resumed one, for docs/reliability.md
reliability: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/reliability.py

benchmark: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/against_trainer.py

# What one would use instead on other tasks, on real data in DATA=FOLDER (see benchmarks/other_tasks.py)
other-tasks: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/other_tasks.py --data $(DATA)

# What a run takes besides training and validation, by phase
fixed-costs: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/fixed_costs.py

# What --dry-run predicts, and what the runs then take, for ten configs; DATA is a folder of data sets
dry-run: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/dry_run.py --data $(DATA)

# Seconds to a given accuracy: --auto, Trainer, SetFit, a linear probe; DATA is a folder of data sets
time-to-accuracy: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/time_to_accuracy.py --data $(DATA)

scaling: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/scaling.py

scale: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/data.py

profile: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/profile_update.py

# Trains the four configs on real data in DATA=FOLDER (see benchmarks/measure.py) and rewrites docs/results.md
results: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/measure.py --data $(DATA)

docs: $(VENV)/.test-installed
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_tree.py
	$(BIN)/python benchmarks/pages.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[demo]' --constraint constraints.txt
	touch $@

$(VENV)/.test-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $@

$(LOWEST)/.installed: pyproject.toml lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[test]' --constraint lowest.txt
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info
