# `make demo`, `make run`, `make test`: each sets up what it needs in .venv.
PYTHON ?= python3
BIN = .venv/bin
# What runs the tests; the coverage run in .ci/run changes it.
TRIAL ?= $(BIN)/python -m twisted.trial
TESTS ?= tests

.PHONY: demo run test lint coverage bench bench-tls bench-udp bench-ws install uninstall clean

# The cache of Twisted's plugins is written now, by who installs: another user could not, and twistd would say so.
.venv/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/twistd --help >/dev/null
	touch $@

demo: .venv/ready
	$(BIN)/python examples/demo.py

run: .venv/ready
	$(BIN)/twistd -n --pidfile= plumberd $(OPTIONS)

test: .venv/ready
	$(TRIAL) $(TESTS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: .venv/ready
	rm -f .coverage .coverage.*
	$(MAKE) test TRIAL='$(BIN)/python -m coverage run -m twisted.trial'
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

bench: .venv/ready
	gcc -O2 -Wall -Wextra -pthread -o bench/load bench/load.c
	$(BIN)/python bench/bench.py

bench-tls: .venv/ready
	gcc -O2 -Wall -Wextra -pthread -o bench/load bench/load.c
	$(BIN)/python bench/tls.py

bench-udp: .venv/ready
	gcc -O2 -Wall -Wextra -pthread -o bench/load bench/load.c
	gcc -O2 -Wall -Wextra -o bench/udp_load bench/udp_load.c
	$(BIN)/python bench/udp.py

bench-ws: .venv/ready
	gcc -O2 -Wall -Wextra -pthread -o bench/load bench/load.c
	gcc -O2 -Wall -Wextra -pthread -o bench/ws_load bench/ws_load.c
	cd tests/node && npm ci --silent --ignore-scripts --no-audit --no-fund
	$(BIN)/python bench/ws.py

install:
	$(PYTHON) -m pip install .
	$(PYTHON) -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'

uninstall:
	$(PYTHON) -m pip uninstall --yes plumberd

clean:
	rm -rf .venv build dist *.egg-info _trial_temp* .coverage* .hypothesis .mypy_cache .ruff_cache bench/load bench/udp_load bench/ws_load tests/node/node_modules
