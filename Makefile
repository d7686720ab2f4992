# Two commands set everything up on a machine that has Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# A CPU build of torch: from the configured index where it lies there, else from PyTorch's own.
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# Bytecode is written at the first import instead of at installation, which halves the set-up; it must be writable then.
export PYTHONDONTWRITEBYTECODE :=
# A test that says nothing about threads gets one: the real processes of a run set their own.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test faults clean
demo: .venv
	$(BIN)/python jobs/sprec.py --preset demo --name demo

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests --ignore tests/edge --numprocesses 2
	$(BIN)/python -m pytest tests/edge --numprocesses 2 --dist loadgroup

# The slow tests, and then every kind of fault at seeded moments, about two minutes each. FAULTS=N strikes N times.
FAULTS_JSON ?= faults.json
FAULTS_SEED ?= 0
faults: .venv/tested
	$(BIN)/python -m pytest tests -m slow
	$(BIN)/python -m tests.faults $(if $(FAULTS),--faults $(FAULTS)) --seed $(FAULTS_SEED) --json $(FAULTS_JSON)

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip==26.0.1
	$(PIP) "$(TORCH)" || $(PIP) "$(TORCH)" --index-url $(TORCH_INDEX)
	$(PIP) -c constraints.txt -e '.[cpu]'
	# Their registry builds do not load beside a CPU torch, and nothing here needs them.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch .venv

.venv/tested: .venv
	$(PIP) -c constraints.txt -e '.[cpu,test]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch .venv/tested

clean:
	rm -rf .venv build *.egg-info
