"""Run the benchmarks: `make bench`, or `make bench ARGS="--json FILE"`.

Each row is a ratio: the median CPU time of what onebasin does over that of a reference in the same process, on the same
input, after one run to warm up. Seconds are printed beside it for orientation; they are those of the machine at hand.
"""

import argparse
import json
from pathlib import Path

import onebasin as ob
from benchmarks import discovery, matching, path

BENCHMARKS = (discovery.run, matching.run, path.run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write a record of the run here")
    args = parser.parse_args()
    rows = []
    for benchmark in BENCHMARKS:
        for row in benchmark():
            rows.append(row)
            print(f"{row.what:62s} {row.seconds:9.4f} s   {row.ratio:8.3f} x {row.reference}", flush=True)
    if args.json:
        results = {"rows": [row._asdict() for row in rows]}
        made = ob.record("make bench", {}, results, sum(row.seconds for row in rows))
        args.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
