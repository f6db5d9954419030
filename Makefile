# The two commands of the README are `make demo` and `make test`; both set up everything they need.
CONFIG ?=
GPU ?= 0
ADDRESS ?= auto
PYTHON ?= python3
YES ?=
config_flag = $(if $(CONFIG),-C $(CONFIG),)
# What takes more than 24 hours begins with YES=1 only.
yes_flag = $(if $(YES),--yes,)
py = .venv/bin/python
# Idle OpenMP threads that spin take the core that another group of models needs.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-browser test-slow lint setup worker cluster bench gpu-check robustness kills clean

demo: setup  ## digits, end to end: data, models, datamodels, verification by retraining, a page
	$(py) -m datamodels -C configs/digits.yaml

test: setup  ## the test suite, in three processes: those that train wait little, those that start commands much
	$(py) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-browser: setup  ## the page in Chromium; part of `test` where that is found
	$(py) -m pytest tests/report/test_browser.py -rs

test-slow: setup  ## what `test` leaves out for its time: kills, some clusters (one of network namespaces, which takes root), larger cases of others
	$(py) -m pytest -m slow -rs

lint: setup  ## ruff and mypy
	$(py) -m ruff check .
	$(py) -m ruff format --check .
	$(py) -m mypy

setup:  ## .venv with everything in it; quick when nothing has changed
	@PYTHON="$(PYTHON)" .ci/setup.sh

worker: setup  ## train models on one GPU (GPU=0), on several (GPU=0,1 or all), a process each, or on the processor (GPU=cpu)
	$(py) -m datamodels.worker $(config_flag) --gpu $(GPU) $(yes_flag)

cluster: setup  ## train models on all nodes of the Ray cluster that this machine is a node of; of several: ADDRESS=IP:port of its head
	$(py) -m datamodels.worker $(config_flag) --engine ray --ray.address $(ADDRESS) $(yes_flag)

bench: setup  ## measure training, on digits or CONFIG, the store and the regression; the results go into tests/benchmarks/results/
	$(py) -m datamodels.bench train -C $(or $(CONFIG),configs/digits.yaml) --out tests/benchmarks/results
	$(py) -m datamodels.bench accuracy -C $(or $(CONFIG),configs/digits.yaml) --out tests/benchmarks/results
	$(py) -m datamodels.bench store --run.dir runs/bench --out tests/benchmarks/results
	$(py) -m datamodels.bench regress --run.dir runs/bench --out tests/benchmarks/results

gpu-check: setup  ## whether GPU, and this package on it, does what it should; within 8 minutes, exit code 1 where it does not
	$(py) -m datamodels.bench gpu-check $(config_flag) --gpu $(GPU) --out tests/benchmarks/results

robustness: setup  ## hostile inputs and faults of the environment against every reader; the table goes into tests/benchmarks/results/
	$(py) -m tests.robustness

kills: setup  ## 40 kills of parents and children over the whole road: the end is that of a run that nobody disturbed
	$(py) -m tests.verify.kills --kills 40

clean:  ## forget the runs and the environment
	rm -rf runs .venv
