# make             install, then the four scripts, with the constants that stand in them
# make test        install, then all tests
# make lint        ruff
# make bench       benchmarks/RESULTS.md
# make reference   the study's data, the scripts on it, and a table against its published figures
# make clean       take away what make installed; results stay
#
# A recipe line that fails ends the run. PYTHON is only used to make the virtual environment; DATA_DIR says
# where the study's data lies, for make reference alone, which clones it otherwise.

PYTHON ?= python3
STUDY := https://github.com/zimo-li23/CE-transfer-learning
BIN := .venv/bin

.PHONY: all test lint bench reference clean

all: .venv/run
	$(BIN)/python structure_stat.py
	$(BIN)/python generate.py
	$(BIN)/python main.py
	$(BIN)/python main_transfer.py

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/test: requirements-test.txt .venv/run
	$(BIN)/pip install --quiet -r requirements-test.txt
	touch $@

test: .venv/test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/run
	$(BIN)/python benchmarks/benchmark.py

reference_data:
	git clone --depth 1 $(STUDY) reference_data

ifndef DATA_DIR
DATA_DIR := reference_data/HEA_data
reference: reference_data
endif
reference: .venv/run
	$(BIN)/python studies/reference.py --data-dir $(DATA_DIR) --results-dir reference_results

clean:
	rm -rf .venv .pytest_cache .ruff_cache
