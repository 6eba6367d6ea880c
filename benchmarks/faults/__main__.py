"""Kill and abuse parts of a real server under load, and count what happens to the images.

python -m benchmarks.faults
python -m benchmarks.faults --only process server --seconds 20
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.faults import attacks, proxy, scenarios, surroundings
from benchmarks.faults.load import Row
from benchmarks.faults.server import FaultError
from client import UpscaleError
from pipeline.command_line import make_parser

SCENARIOS = attacks.SCENARIOS | scenarios.SCENARIOS | proxy.SCENARIOS | surroundings.SCENARIOS


def line_of(row: Row) -> str:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items()) if count)
    recovered = "" if row.recovered is None else f"{row.recovered:.1f} s"
    memory = "" if row.memory is None else f"{row.memory[0]:.0f} → {row.memory[1]:.0f} MB"
    return (
        f"| {row.name} | {counts} | {row.lost} | {recovered} | {memory} | {row.note} | {'ok' if row.good else 'BAD'} |"
    )


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m benchmarks.faults")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="default: all")
    parser.add_argument("--seconds", type=float, default=16, help="seconds under load (default: %(default)s)")
    args: argparse.Namespace = parser.parse_args(argv)
    good = True
    print("| fault | images | lost | longest gap | memory | | |\n|---|---|---|---|---|---|---|")
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for row in SCENARIOS[name](Path(folder), args.seconds):
                    print(line_of(row), flush=True)
                    good &= row.good
            except (FaultError, UpscaleError, OSError) as error:
                print(f"error: {name}: {error}", file=sys.stderr)
                good = False
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return 130
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
