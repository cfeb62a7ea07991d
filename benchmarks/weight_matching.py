"""Weight matching against the published schedule: per phase, against its own matrix products, against scipy.

Both start from the same order, visit the groups alike and end at the same objective, which a row of each table shows.

    python -m benchmarks --only weight_matching
    python -m benchmarks.weight_matching A.safetensors B.safetensors       # two MLPs of your own
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from experiments.networks import mlp

import onebasin as ob
from benchmarks.models import Pair, mlp_pair, resnet_pair
from benchmarks.published import weight_matching
from benchmarks.timing import Phases, Row, median_phases

# Which functions make up each phase; what is in none of them is "other".
PHASES = {
    "products": ["torch.Tensor.addmm_", "onebasin.matching.terms.Term.contract"],
    "permuting": [
        "onebasin.matching.products.Product.add_to",
        "onebasin.matching.products.Product.add_change_to",
        "onebasin.matching.terms.Term.moved",
    ],
    "assignment": ["onebasin.matching.coordinate_descent.solve"],
    "objective": [
        "onebasin.matching.objective.Objective.value",
        "onebasin.matching.objective.Objective.scale",
        "onebasin.matching.gains.FamilyGains.change",
    ],
    "checks": ["onebasin.matching.gains.FamilyGains.renew"],
}
PUBLISHED = ("products", "permuting", "assignment")


def measure(pair: Pair, runs: int) -> Iterator[Row]:
    """Match a pair both ways."""
    plainly, ours = [], []

    def publish(phases: Phases) -> None:
        plainly.append(weight_matching(pair.spec, pair.a, pair.b, phases))

    def match(phases: Phases) -> None:
        with phases.watching(PHASES):
            ours.append(ob.align(pair.spec, pair.a, pair.b, ob.WeightMatching(seed=0)))

    base, spent = median_phases(publish, min(runs, 3)), median_phases(match, max(runs, 3))
    value, found = plainly[-1][1], ours[-1]
    total, seconds = base.total(), spent.total()
    sweeps = f"{plainly[-1][2]} and {len(found.objective) - 1} sweeps"
    yield Row(f"{pair.name}: published schedule", total, "onebasin's", total / seconds)
    yield Row(f"{pair.name}: weight matching", seconds, "its own matrix products", seconds / spent["products"])
    for phase in PUBLISHED:
        yield Row(f"{pair.name}: {phase}", spent[phase], f"{phase} of that", spent[phase] / base[phase])
    for phase in ("objective", "checks", "other"):
        yield Row(f"{pair.name}: {phase}", spent[phase], "the whole", spent[phase] / seconds)
    yield Row(f"{pair.name}: objective ({sweeps})", found.objective[-1], "published", found.objective[-1] / value, "")
    yield Row(f"{pair.name}: duality gap", found.certificate.gap, "one", found.certificate.gap, "")
    yield from measure_without_numba(pair, base, seconds, match, min(runs, 3))


def measure_without_numba(
    pair: Pair, base: Counter[str], seconds: float, match: Callable[[Phases], object], runs: int
) -> Iterator[Row]:
    """Match a pair once more as it is done where the extra [fast] is not installed."""
    with mock.patch("onebasin.matching.assignment.has_numba", return_value=False):
        spent = median_phases(match, runs)
    title = f"{pair.name}, without [fast]"
    yield Row(f"{title}: published schedule", base.total(), "onebasin's", base.total() / spent.total())
    yield Row(f"{title}: weight matching", spent.total(), "with it", spent.total() / seconds)
    yield Row(
        f"{title}: assignment", spent["assignment"], "assignment of that", spent["assignment"] / base["assignment"]
    )


def run(large: bool = False) -> Iterator[Row]:
    for make in (lambda: mlp_pair(512), lambda: mlp_pair(2048), lambda: resnet_pair(8)):
        pair = make()
        for one in (pair, pair.planted()):
            yield from measure(one, runs=5 if pair.name.startswith("MLP 3x512") else 1)


def read_mlps(files: list[Path]) -> Pair:
    a, b = map(ob.load, files)
    shapes = [tuple(x.shape) for x in a.values() if x.dim() == 2]
    bias = len(a) > len(shapes)
    model = mlp(shapes[0][1], [shape[0] for shape in shapes[:-1]], shapes[-1][0], bias)
    spec = ob.permutation_spec(model, (torch.randn(2, shapes[0][1]),))
    return Pair(f"{files[0].stem}, trained", spec, a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs=2, help="checkpoints of two MLPs")
    pair = read_mlps(parser.parse_args().models)
    for one in (pair, pair.planted()):
        for row in measure(one, runs=5):
            print(row, flush=True)


if __name__ == "__main__":
    main()
