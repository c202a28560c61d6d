# Everything here works from a clean clone; what it needs it installs into .venv.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE ?=

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

.venv/.installed: requirements-bootstrap.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing what requirements-dev.txt locks into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bootstrap.txt
	@# Where Python may not write bytecode beside its source, each start would compile TensorFlow anew: 10 s.
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements-dev.txt
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: install
install: .venv/.installed  ## install what the project needs into .venv

.PHONY: lock
lock: .venv/.installed  ## resolve the requirements files anew (versions and hashes)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements-bootstrap.in -o requirements-bootstrap.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml --extra confluent --extra cpu --extra training -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml --extra confluent --extra cpu --extra openvino --extra training --group dev -c requirements.txt -o requirements-dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml --extra confluent --extra gpu --extra training -c requirements.txt -o deploy/docker/requirements-gpu.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml --extra confluent --extra cpu --extra openvino --extra training -c requirements.txt -o deploy/docker/requirements-openvino.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c requirements-dev.txt deploy/docker/requirements-build.in -o deploy/docker/requirements-build.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate tests/bench/peers/requirements.in -o tests/bench/peers/requirements.txt

.PHONY: demo
demo: install  ## from MNIST to verdicts, with a real Kafka (KEEP=1: until Ctrl-C)
	@$(BIN)/python -m deploy.demo $(if $(KEEP),--keep)

.PHONY: fit
fit: install  ## fit the default model on the sample: a bundle in build/bundles, its figures in build/fit.json
	@$(BIN)/reconstream-train fit
	@$(BIN)/reconstream-train evaluate build/bundles/current --json build/fit.json

.PHONY: test
test: check  ## check, then all tests, with a real Apache Kafka
	@$(MAKE) --no-print-directory -j2 test-models test-streams

# Side by side: these take all the processor time that they get, the others mostly wait for Kafka.
.PHONY: test-models
test-models: install
	@mkdir -p build
	@nice -n 10 $(BIN)/python -m pytest -m models >build/test-models.txt 2>&1; ended=$$?; cat build/test-models.txt; exit $$ended

.PHONY: test-streams
test-streams: install
	$(BIN)/python -m pytest -m "not models and not confluent"

.PHONY: coverage
coverage: install  ## all tests once more, and which lines they ran; half as long again
	$(BIN)/coverage run -m pytest
	@$(BIN)/coverage report --skip-covered --skip-empty

.PHONY: test-confluent
test-confluent: install  ## the integration tests and the short fault rows with --kafka.client confluent
	$(BIN)/python -m pytest -m confluent

.PHONY: faults
faults: install  ## the fault campaign (SCALE=0.02 ROW=name MODE=exactly_once SEED=n)
	$(BIN)/python -m tests.faults $(if $(SCALE),--scale $(SCALE)) $(if $(ROW),--row $(ROW)) $(if $(MODE),--mode $(MODE)) $(if $(SEED),--seed $(SEED))

# The peers need other versions of some packages.
.venv-peers/.installed: .venv/.installed tests/bench/peers/requirements.txt
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-peers
	@echo "installing the peers into .venv-peers ..."
	@VIRTUAL_ENV=.venv-peers $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r tests/bench/peers/requirements.txt
	@touch $@

.PHONY: bench
bench: .venv-peers/.installed  ## throughput against the bare model and what people would use instead (QUICK=1: 5 minutes)
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick)

.PHONY: bench-scorers
bench-scorers: install  ## what an image costs by backend, precision and threads; no Kafka
	$(BIN)/python -m tests.bench.scorers

.PHONY: quality
quality: install  ## presets against PCA and 1-NN, digit by digit (QUICK=1 PRESET=default DIGITS=2,8 SEEDS=5 DATA=mnist.npz SURFACES=1 POOLING=mean ROBUST=1 JSON=file)
	$(BIN)/reconstream-train benchmark $(if $(QUICK),--quick) $(if $(PRESET),--presets $(PRESET)) $(if $(DIGITS),--digits $(DIGITS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(DATA),--data $(DATA)) $(if $(SURFACES),--surfaces) $(if $(POOLING),--pooling $(POOLING)) $(if $(ROBUST),--robust) $(if $(JSON),--json $(JSON))

.PHONY: bench-fit
bench-fit: install  ## how long a fit to 20,000 surfaces of 256x256 takes, and its memory; an hour (IMAGES=2000 MINUTES=10)
	$(BIN)/python -m tests.bench.large_fit $(if $(IMAGES),--images $(IMAGES)) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: choice
choice: install  ## what the default preset was chosen by: normal images and anomalies made from them (DIGITS=2,8 DATA=mnist.npz)
	$(BIN)/python -m tests.bench.choice $(if $(DIGITS),--digits $(DIGITS)) $(if $(DATA),--data $(DATA))

.PHONY: interval-coverage
interval-coverage: install  ## how often the stated intervals of false-positive rates hold; half an hour (DRAWS=2000)
	$(BIN)/python -m tests.bench.intervals $(if $(DRAWS),--draws $(DRAWS))

.PHONY: report-check
report-check: install  ## the last fit's report in Chromium, 1280 and 400 pixels wide: nothing may stick out (REPORT=path)
	$(BIN)/python -m tests.browser $(REPORT)

.PHONY: soak
soak: install  ## one worker under a steady load for an hour: nothing may grow (MINUTES=60 RATE=2000 CLIENT=confluent)
	$(BIN)/python -m tests.bench.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE)) $(if $(CLIENT),--client $(CLIENT))

.PHONY: dashboards
dashboards: install  ## write Grafana's dashboards and their reading guide anew
	$(BIN)/python -m deploy.grafana

.PHONY: dashboards-check
dashboards-check: install  ## rules, alerts and every panel's query, with a real Prometheus and a worker under load
	$(BIN)/python -m tests.dashboards

.PHONY: compose-check
compose-check: install  ## build, start, scale, break and stop docker-compose.yml (COMPOSE="docker compose")
	$(BIN)/python -m tests.compose

.PHONY: check
check: install  ## format, lint, strict types, import contracts; no tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install  ## format the code, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: audit
audit: install  ## look for known vulnerabilities in what the lock files name
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements.txt

.PHONY: clean
clean:  ## remove what the targets made, .venv and build included
	rm -rf .venv .venv-peers build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
