"""Five MNIST networks merged into one, and 32 that saw half of the data each.

ainsworth2023, appendix A.10: MergeMany (algorithm 3) of five networks trained on all of MNIST is expected to have a
test loss far below every member's (paper: 0.073 against 0.111 to 0.153) and an accuracy of 98.3 %; of 32 networks that
were each trained on a random half, to be far better calibrated than any of them and about as well as the ensemble of
their logits, which costs 32 times as much to run.

    python experiments/gitrebasin_merge_many.py --data DIR

DIR holds the four idx files. Networks: 784-512-512-512-10, Adam 1e-3, batches of 500; 100 epochs for the five, 25 for
the 32 (paper: 100).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import onebasin as ob
from collection import NETS, measured
from data import Split, batches, mnist
from running import command, judged, keep, options
from training import trained

NAME = "gitrebasin_merge_many"
BINS = 10


def networks(name: str, split: Split, count: int, folder: Path | None) -> list[ob.Params]:
    """Return `count` trained networks."""
    net = NETS[name]
    return [trained(name, net.make, split, net.recipe, seed, folder)[0] for seed in range(count)]


def ensemble(model: nn.Module, members: Sequence[ob.Params]) -> Callable[[Tensor], Tensor]:
    """Return the mean of the logits of all members; the weights of `model` are overwritten."""

    def logits(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), 10)
        for params in members:
            model.load_state_dict(params)
            total += model(x)
        return total / len(members)

    return logits


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return loss and accuracy on both sets, a line per network."""
    lines = [f"{'':10}  train loss  accuracy  test loss  accuracy"]
    for name, row in rows.items():
        numbers = [row[split][metric] for split in ("train", "test") for metric in ("loss", "accuracy")]
        lines.append("{:10}  {:10.4f}  {:8.4f}  {:9.4f}  {:8.4f}".format(name, *numbers))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train, merge both families, measure, write record and figure."""
    parser = options(__doc__, data="folder of the MNIST idx files")
    parser.add_argument("--members", type=int, default=32, help="networks that saw half of the data; default: 32")
    args = parser.parse_args(arguments)
    data, model = mnist(args.data), NETS["mnist_mlp"].make()
    five = networks("mnist_mlp", data["train"], 5, args.models)
    many = networks("mnist_mlp_part", data["train"], args.members, args.models)

    begin = time.perf_counter()
    spec = ob.permutation_spec(model, (data["test"][0][:2],))
    evaluations = {split: ob.classification(batches(data[split], 5000)) for split in data}

    def both(params: ob.Params) -> dict[str, dict[str, float]]:
        return {split: measured(model, params, evaluate) for split, evaluate in evaluations.items()}

    merges = {"five": ob.merge_many(spec, five), "half": ob.merge_many(spec, many)}
    naive = {name: mean_of(members) for name, members in (("five", five), ("half", many))}
    rows = {f"seed {seed}": both(params) for seed, params in enumerate(five)}
    rows |= {"mean as is": both(naive["five"]), "merged": both(merges["five"].params)}
    print(merges["five"], table(rows), sep="\n\n", flush=True)
    halves = {f"seed {seed}": both(params) for seed, params in enumerate(many)}
    halves |= {"mean as is": both(naive["half"]), "merged": both(merges["half"].params)}
    together = ensemble(NETS["mnist_mlp"].make(), many)
    with torch.no_grad():
        halves["ensemble"] = {split: evaluate(together) for split, evaluate in evaluations.items()}
    print(table(halves), flush=True)

    # Calibration on the test set: every member, the merged network, the ensemble.
    test = batches(data["test"], 5000)
    alone = []
    for params in many:
        model.load_state_dict(params)
        alone.append(ob.calibration(model, test, BINS))
    model.load_state_dict(merges["half"].params)
    merged, joint = ob.calibration(model, test, BINS), ob.calibration(together, test, BINS)
    errors = sorted(one.error for one in alone)
    middle = next(one for one in alone if one.error == errors[len(errors) // 2])
    print(
        f"calibration error: members {errors[0]:.4f} to {errors[-1]:.4f}", "merged", merged, "ensemble", joint, sep="\n"
    )

    tests = [rows[f"seed {seed}"]["test"] for seed in range(5)]
    expected = {
        "five merged: test loss below every member's": rows["merged"]["test"]["loss"] < min(t["loss"] for t in tests),
        "five merged: test loss at least 30 % below the members' mean (paper: 43 %)": rows["merged"]["test"]["loss"]
        < 0.7 * sum(t["loss"] for t in tests) / 5,
        "five merged: test accuracy within 0.5 points of 98.3 %": abs(rows["merged"]["test"]["accuracy"] - 0.983)
        < 5e-3,
        "half data: the merged network is better calibrated than every member": merged.error < errors[0],
        "half data: its calibration error is within 0.005 of the ensemble's": merged.error < joint.error + 5e-3,
    }
    recipes = {name: asdict(NETS[name].recipe) for name in ("mnist_mlp", "mnist_mlp_part")}
    results = {
        "expected": judged(expected),
        "five": rows,
        "half": halves,
        "spread": {name: merge.spread for name, merge in merges.items()},
        "calibration": {
            "members": [one.error for one in alone],
            "median member": middle.to_json(),
            "merged": merged.to_json(),
            "ensemble": joint.to_json(),
        },
    }
    settings = {"members": args.members, "bins": BINS, "training": recipes}
    keep(args.out, NAME, command(NAME, parser, args), settings, results, time.perf_counter() - begin)
    lines = {"median member": middle, f"{args.members} merged": merged, f"ensemble of {args.members}": joint}
    ob.reliability_figure(lines).savefig(args.out / f"{NAME}.png", dpi=110)


def mean_of(members: Sequence[ob.Params]) -> ob.Params:
    """Return the plain mean, nobody's units moved."""
    return {name: torch.stack([params[name] for params in members]).mean(0) for name in members[0]}


if __name__ == "__main__":
    main()
