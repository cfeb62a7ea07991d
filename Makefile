# Everything lives in .venv (uv users: `uv run --no-sync` shares it).
BIN := .venv/bin
# `make demo ARGS="--out DIR"`, `make test ARGS="tests/laws -x"`
ARGS ?=

demo: .venv/.ready ; $(BIN)/onebasin demo $(ARGS)
test: .venv/.ready ; $(BIN)/python -m pytest $(ARGS)
check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
bench: .venv/.ready ; $(BIN)/python -m benchmarks $(ARGS)

.venv/.ready: pyproject.toml
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

.PHONY: demo test check bench
