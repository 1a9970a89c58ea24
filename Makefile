# What the project can do. Every target sets up what it needs, and costs nothing the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast check format kernels kernels-html pictures rehearse-image bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/user.stamp  ## make the environment and go from the sample's data to a checked submission
	$(BIN)/python submit.py ensemble

# One process a core (a process and the programs that it starts take up to 2 GB); a file's tests stay together, as they
# share what they made. The files with the longest tests go first: tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(VENV)/developer.stamp  ## run every test
	$(PYTEST)

test-fast: $(VENV)/developer.stamp  ## run the tests that take seconds
	$(PYTEST) -m "not slow"

check: $(VENV)/developer.stamp  ## style, types, and kernels that are what their sources say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m cassava_kit kernels --check

format: $(VENV)/developer.stamp  ## put the sources into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

kernels: $(VENV)/user.stamp  ## make the notebooks from their sources
	$(BIN)/python -m cassava_kit kernels

kernels-html: $(VENV)/user.stamp  ## execute the notebooks on the sample and write kernels/*/executed.html (minutes)
	test -f build/sample-v1/ensemble.json || $(BIN)/python submit.py ensemble
	$(BIN)/python -m cassava_kit kernels --executed

pictures: $(VENV)/developer.stamp  ## photograph the demo's pages and the executed notebooks for docs/ and kernels/ (needs Chromium)
	test -d build/sample-v1/runs || $(BIN)/python submit.py ensemble
	PYTHONPATH=.:tests/report $(BIN)/python benchmarks/pictures.py

rehearse-image: $(VENV)/user.stamp  ## run the demo's notebook with the versions of Kaggle's image (5 GB the first time)
	test -d build/sample-v1/bundle || $(BIN)/python submit.py ensemble
	$(BIN)/python submit.py rehearse --image --bundle build/sample-v1/bundle

bench: $(VENV)/developer.stamp  ## run the benchmarks but the one of full size (nothing else should be running)
	for file in $(filter-out %/bench_scale.py,$(wildcard benchmarks/bench_*.py)); do PYTHONPATH=. $(BIN)/python $$file || exit 1; done

docs: $(VENV)/docs.stamp  ## write the code map and build the pages into build/site; a broken link is an error
	$(BIN)/python docs/code_map.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove the environment, the caches and the demo; every other run, bundle and output stays
	rm -rf $(VENV) .venv-image build/sample-v* .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/user.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/developer.stamp: pyproject.toml $(VENV)/user.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/docs.stamp: pyproject.toml $(VENV)/user.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@
