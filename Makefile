# Everything runs in $(VENV), made from the pinned, hashed versions in constraints.txt.
# To use a torch that is installed already, e.g. a CPU build: make demo SYSTEM=1 [PYTHON=/path/to/its/python]
VENV ?= .venv
PYTHON ?= python3
SYSTEM ?=
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo install test test-all lint types docs format constraints clean

demo: $(INSTALLED)  ## the main job on the embedded digits: a table, results.json and report.html
	$(BIN)/pnnh compare --data digits --out runs/demo

install: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(if $(SYSTEM),--system-site-packages) $(VENV)
ifdef SYSTEM  # only what is missing, in versions that fit what is there
	$(BIN)/python -m pip install --quiet pytest pytest-xdist pytest-timeout hypothesis scikit-learn piq ruff pyrefly -e '.[export]'
else
	$(BIN)/python -m pip install --quiet --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
endif
	touch $@

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)

test-all: $(INSTALLED)  ## also the slow tests: faults on purpose, pages of the records
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow" $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyrefly check

docs: $(INSTALLED)  ## the pages of docs/ as a site in site/
	$(BIN)/zensical build --clean

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints:  ## pin everything again; needs uv
	uv pip compile pyproject.toml --group dev --group docs --extra export --extra openvino --extra scale --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --no-config --upgrade -o constraints.txt

clean:
	rm -rf site build dist .pytest_cache .ruff_cache
