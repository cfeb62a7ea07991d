"""Set-up shared by all tests: few threads, no display, and slow tests only on request."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes run side by side
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from onebasin.matching import assignment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long or much memory; run with --slow")
    config.addinivalue_line("filterwarnings", "ignore:.*weight_norm. is deprecated:FutureWarning")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(params=["with numba", "without numba"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: as it is, and as if the extra [fast] were not installed."""
    if request.param == "without numba":
        monkeypatch.setattr(assignment, "has_numba", lambda: False)
    elif not assignment.has_numba():
        pytest.skip("numba is not installed")
    return str(request.param)
