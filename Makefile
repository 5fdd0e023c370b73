# A thin skin: every command is `python -m course_utils.course …` in the course's own
# virtual environment, which is made, and renewed when the pins change, on the way.

PYTHON ?= python3
EXTRAS ?= tests
NAMES ?=
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

ifeq ($(OS),Windows_NT)
VENV_PYTHON := .venv/Scripts/python.exe
else
VENV_PYTHON := .venv/bin/python
endif
INSTALLED := .venv/.installed
COURSE := $(VENV_PYTHON) -m course_utils.course

.PHONY: help course test test-without-trl-orpo lab notebooks pins cpu

help:
	@echo "make course      run the notebooks on this machine, write pages to build/html"
	@echo "make test        run the tests and the notebooks"
	@echo "make lab         open JupyterLab on copies of your own, in work/"
	@echo "make notebooks   rebuild the notebooks from notebooks/src (NAMES=\"01 04\")"
	@echo "make cpu         install without CUDA (a third of the size), then use the others"
	@echo "make pins        renew constraints.txt from pyproject.toml"
	@echo "PYTHON=python3.12 make …   chooses the interpreter (3.11, 3.12 or 3.13)"

course: $(INSTALLED)
	@$(COURSE) run $(NAMES)

test: $(INSTALLED)
	@$(COURSE) test

# TRL's ORPO is experimental: everything must also run where it is gone, but for the
# recipe in notebook 08, which is TRL's own.
test-without-trl-orpo: $(INSTALLED)
	PYTHONPATH=tests/helpers OMP_NUM_THREADS=1 COURSE_PROFILE=cpu $(VENV_PYTHON) -m pytest \
	    -p without_trl_orpo -n 2 tests --nbmake notebooks \
	    --ignore notebooks/08_the_recipe.ipynb

lab: $(INSTALLED)
	@$(COURSE) lab

notebooks: $(INSTALLED)
	@$(COURSE) notebooks $(NAMES)

# Linux's default torch brings CUDA: 6 GB instead of 2.
cpu:
	@test -x $(VENV_PYTHON) || $(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt \
	    --index-url $(CPU_INDEX) torch
	@$(MAKE) --no-print-directory $(INSTALLED)

# uv keeps the versions that constraints.txt has; delete a line to have it renewed.
pins: $(INSTALLED)
	$(VENV_PYTHON) -m pip install --quiet --constraint constraints.txt uv
	$(VENV_PYTHON) -m uv pip compile pyproject.toml --universal --python-version 3.11 \
	    --extra tests --extra demo --extra maintain --no-annotate --quiet \
	    --custom-compile-command "make pins" --output-file constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON) here." \
	    "Name another: make course PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or \
	    sys.exit("The course needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d. " \
	    "Name another: make course PYTHON=python3.12" % v)'
	@test -x $(VENV_PYTHON) || $(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install --disable-pip-version-check \
	    --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
