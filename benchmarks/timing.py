"""How every benchmark is timed."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pkgutil import resolve_name
from typing import Any, NamedTuple
from unittest import mock

RUNS = 5


class Row(NamedTuple):
    """One measurement: how much of `unit` it took to do `what`, and how many times the reference that is."""

    what: str
    amount: float
    reference: str
    ratio: float
    unit: str = "s"

    def __str__(self) -> str:
        return f"{self.what:66s} {self.amount:9.4g} {self.unit:2s}   {self.ratio:9.4g} x {self.reference}"


def medians(works: Sequence[Callable[[], object]], runs: int = RUNS) -> list[float]:
    """Return the median CPU seconds of each over several runs, all in turn, after one that does not count."""
    times: list[list[float]] = []
    for _ in range(runs + 1):
        times.append([])
        for work in works:
            start = time.process_time()
            work()
            times[-1].append(time.process_time() - start)
    return [statistics.median(own) for own in zip(*times[1:], strict=True)]


def median_seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """Return the median CPU seconds of `work` over several runs, after one that does not count."""
    return medians([work], runs)[0]


def compared(what: str, work: Callable[[], object], reference: str, other: Callable[[], object]) -> Row:
    """Time `work` and what it is measured by, in turn: a machine that slows down meanwhile slows both."""
    seconds, base = medians([work, other])
    return Row(what, seconds, reference, seconds / base)


class Phases:
    """CPU seconds by phase; a phase within another is not counted in that."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._phase, self._since = "other", time.process_time()

    @property
    def total(self) -> float:
        """All seconds so far."""
        return self.spent.total()

    def _enter(self, phase: str) -> str:
        """Go over to `phase`, and return the one before."""
        before, now = self._phase, time.process_time()
        self.spent[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done within to `name`."""
        before = self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def watching(self, functions: Mapping[str, Sequence[str]]) -> Iterator[None]:
        """Count to each phase what is done in the functions that it lists by their full names."""
        with ExitStack() as stack:
            for name, paths in functions.items():
                for path in paths:
                    stack.enter_context(mock.patch(path, self._counted(name, resolve_name(path))))
            yield


def median_phases(work: Callable[[Phases], object], runs: int) -> Counter[str]:
    """Return the phases of the run of median total, after one that does not count (if there are several)."""
    done = []
    for number in range(runs + (runs > 1)):
        phases = Phases()
        with phases.phase("other"):
            work(phases)
        if number or runs == 1:
            done.append(phases)
    return sorted(done, key=lambda phases: phases.total)[len(done) // 2].spent
