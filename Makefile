# Everything lives in .venv (uv users: `uv run --no-sync` shares it).
BIN := .venv/bin
# `make demo ARGS="--out DIR"`, `make test ARGS="tests/laws -x"`
ARGS ?=
N ?= 1000

demo: .venv/.ready ; $(BIN)/onebasin demo $(ARGS)
test: .venv/.ready ; $(BIN)/python -m pytest $(ARGS)
check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
bench: .venv/.ready ; $(BIN)/python -m benchmarks $(ARGS)
# `make zoo ARGS="--part torchvision --json FILE"`, `make fuzz N=10000 ARGS="--first 5000"`
zoo: .venv/.ready ; $(BIN)/python -m zoo $(ARGS)
fuzz: .venv/.ready ; $(BIN)/python -m zoo.fuzz $(N) $(ARGS)

.venv/.ready: pyproject.toml
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

.PHONY: demo test check bench zoo fuzz
