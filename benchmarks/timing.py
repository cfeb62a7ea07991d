"""How every benchmark is timed."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

RUNS = 5


class Row(NamedTuple):
    """One measurement: median CPU seconds of `what`, and how many times the reference that is."""

    what: str
    seconds: float
    reference: str
    ratio: float


def median_seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """Return the median CPU seconds of `work` over several runs, after one that does not count."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def compared(what: str, work: Callable[[], object], reference: str, other: Callable[[], object]) -> Row:
    """Time `work` and what it is measured by."""
    seconds, base = median_seconds(work), median_seconds(other)
    return Row(what, seconds, reference, seconds / base)
