# make demo   the main job, from nothing: environment, real backbone, real text, a fine-tuned classifier
# make test   environment, lint, types, tests
# make soak   the long tests: the crash test of docs/reliability.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint soak reliability benchmark scaling profile results docs clean

demo: $(VENV)/.demo-installed
	$(RUN) $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/classify.py

test: $(VENV)/.test-installed lint
	$(RUN) $(BIN)/python -m pytest -n 2 -q

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: reliability

# Kills a run 100 times at random moments, and writes what came of it into docs/reliability.md
reliability: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/reliability.py

benchmark: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/against_trainer.py

scaling: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/scaling.py

profile: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/profile_update.py

# Trains the four configs on real data in DATA=FOLDER (see benchmarks/measure.py) and rewrites docs/results.md
results: $(VENV)/.test-installed
	$(RUN) $(BIN)/python benchmarks/measure.py --data $(DATA)

docs: $(VENV)/.test-installed
	$(BIN)/python docs/make_settings.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[demo]' --constraint constraints.txt
	touch $@

$(VENV)/.test-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
