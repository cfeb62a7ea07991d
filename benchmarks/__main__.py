"""Run the benchmarks: `make bench`, or `make bench ARGS="--only weight_matching --large --json FILE"`.

Each row is a ratio: the median CPU time of what onebasin does over that of a reference in the same process, on the same
input, after one run to warm up. Amounts are printed beside it for orientation; they are those of the machine at hand.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import onebasin as ob
from benchmarks import activation, assignment, discovery, growth, matching, memory, nested, path, peers, weight_matching
from benchmarks.timing import Row

BENCHMARKS = {
    "discovery": discovery.run,
    "matching": matching.run,
    "assignment": assignment.run,
    "weight_matching": weight_matching.run,
    "nested": nested.run,
    "peers": peers.run,
    "growth": growth.run,
    "memory": memory.run,
    "path": path.run,
    "activation": activation.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=BENCHMARKS, nargs="+", default=list(BENCHMARKS))
    parser.add_argument("--large", action="store_true", help="those that take minutes, too")
    parser.add_argument("--json", type=Path, help="write a record of the run here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    rows: list[Row | str] = []
    for name in args.only:
        for row in BENCHMARKS[name](args.large):  # a row, or why there is none
            rows.append(row)
            print(row, flush=True)
    if args.json:
        results = {"rows": [row._asdict() if isinstance(row, Row) else row for row in rows]}
        options = {"only": args.only, "large": args.large}
        made = ob.record("make bench", options, results, time.process_time() - begun)
        args.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
