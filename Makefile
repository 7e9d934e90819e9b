# The commands of the project. Everything runs in .venv, made from exact pins; CPU only, except gpu-test.
.PHONY: env demo test lint gpu-test engine-test engine-test-vllm engine-test-sglang test-newest clean

PYTHON ?= python3
PIP = $(@D)/bin/pip install --quiet --disable-pip-version-check
ENV = .venv/.made
NEWEST = .venv-newest/.made
ENGINES = .venv-vllm/.made .venv-sglang/.made
WHICH ?= engine and not slow
ENGINE_TESTS = -P -m pytest -n 0 -m '$(WHICH)' tests/evaluation/conflicts/test_engines.py tests/evaluation/capture tests/serving

env: $(ENV)

# torch first and by itself: pip then takes the CPU wheel where the machine offers one, and nothing pulls in another.
$(ENV): constraints.txt
$(NEWEST): constraints-newest.txt
$(ENV) $(NEWEST): pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(PIP) torch==2.13.0
	$(PIP) -c $(filter constraints%,$^) setuptools wheel
	rm -rf fastkernels.egg-info  # entry points of an earlier version, which Python started here would find first
	$(PIP) -c $(filter constraints%,$^) --no-build-isolation -e '.[dev,triton]'
	touch $@

demo: $(ENV)
	.venv/bin/python -m benchmarks.demo

test: $(ENV)
	.venv/bin/python -m pytest

lint: $(ENV)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# On a machine with a GPU, whose own python3 has torch with CUDA and triton.
gpu-test:
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu -n 0

# In real serving engines, on a CPU; WHICH=engine runs the slow ones too. No resolver: it would bring CUDA packages.
# -P: a folder of metadata in the checkout would hide the plugins of the one that is installed.
engine-test: engine-test-vllm engine-test-sglang

engine-test-vllm: .venv-vllm/.made
	.venv-vllm/bin/python $(ENGINE_TESTS) tests/patches/vllm tests/evaluation/e2e/engines \
		tests/evaluation/bench/test_baselines.py

engine-test-sglang: .venv-sglang/.made
	PYTHONPATH=tests/engines/stubs .venv-sglang/bin/python $(ENGINE_TESTS) tests/patches/sglang \
		tests/evaluation/e2e/engines/test_engine_arms.py

.venv-vllm/.made: constraints-vllm.txt
.venv-sglang/.made: constraints-sglang.txt
$(ENGINES): pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(PIP) torch==2.13.0
	$(PIP) --no-deps -r $(filter constraints%,$^)
	rm -rf fastkernels.egg-info
	$(PIP) --no-deps --no-build-isolation -e .
	$(if $(findstring vllm,$@),$(@D)/bin/python tests/engines/alias_vllm.py)
	touch $@

# The same tests with the newest transformers that we have seen.
test-newest: $(NEWEST)
	.venv-newest/bin/python -m pytest

clean:
	rm -rf .venv .venv-newest .venv-vllm .venv-sglang *.egg-info build .pytest_cache .mypy_cache .ruff_cache
