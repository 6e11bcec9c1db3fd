# make             install, then the four scripts on DATA_DIR
# make test        install, then all tests
# make lint        ruff
# make mutants     do the tests notice a change? a sample of 150 changes; an hour
# make bench       benchmarks/RESULTS.md
# make reference   the study's data, the scripts on it, and a table against its figures
# make clean       take away what make installed; results stay
#
# The tables go beside the data, where the scripts look for them, unless TABLE_DIR says otherwise.
# A recipe line that fails ends the run. PYTHON is only used to make the virtual environment.

PYTHON ?= python3
DATA_DIR ?= HEA_data
TABLE_DIR ?= $(DATA_DIR)
RESULTS_DIR ?= results
REFERENCE_RESULTS := reference_results
STUDY := https://github.com/zimo-li23/CE-transfer-learning

BIN := .venv/bin
FLAGS = --data-dir $(DATA_DIR) --table-dir $(TABLE_DIR)

.PHONY: all test lint mutants bench reference clean

all: .venv/run
	$(BIN)/python structure_stat.py $(FLAGS) --cells given lattice
	$(BIN)/python generate.py $(FLAGS) --results-dir $(RESULTS_DIR)
	$(BIN)/python main.py $(FLAGS) --results-dir $(RESULTS_DIR)
	$(BIN)/python main_transfer.py $(FLAGS) --results-dir $(RESULTS_DIR)

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

mutants: .venv/test
	$(BIN)/python tests/mutants.py

bench: .venv/run
	$(BIN)/python benchmarks/benchmark.py

reference_data:
	git clone --depth 1 $(STUDY) reference_data

# The study's data is fetched only where DATA_DIR does not say where it lies.
ifeq ($(origin DATA_DIR),file)
reference: DATA_DIR := reference_data/HEA_data
reference: reference_data
endif
reference: .venv/run
	$(BIN)/python studies/reference.py --data-dir $(DATA_DIR) --results-dir $(REFERENCE_RESULTS)

clean:
	rm -rf .venv .pytest_cache .ruff_cache
