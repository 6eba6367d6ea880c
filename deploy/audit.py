"""Look up the pinned releases of constraints.txt in PyPI's list of known vulnerabilities, with pip-audit.

python deploy/audit.py
python deploy/audit.py --if-reachable    # exit 0, and say so, if the list cannot be asked

pip-audit counts a release that it could not ask about as one without vulnerabilities. Here it counts as not audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
LIMIT = 300
"""Maximum seconds for all look-ups."""


def look_up(program: str) -> list[dict[str, Any]]:
    """Return pip-audit's findings for every release, in its JSON format; an empty list if it fails."""
    command = [program, "--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json", "-r", str(CONSTRAINTS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, TypeError, KeyError):
        return []
    return found


def judge(releases: list[dict[str, Any]]) -> tuple[bool, list[str]]:
    """Return whether anything was audited, and a line for each vulnerability, after one that sums up."""
    audited = [release for release in releases if "vulns" in release]
    if not audited:
        return False, ["not audited: the list of vulnerabilities cannot be reached"]
    known = [
        f"{release['name']} {release['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none'}"
        for release in audited
        for flaw in release["vulns"]
    ]
    unknown = [release["name"] for release in releases if "vulns" not in release]
    tail = f"; not audited, as PyPI does not know them: {', '.join(unknown)}" if unknown else ""
    return True, [f"{len(audited)} releases audited, {len(known)} known vulnerabilities{tail}", *known]


def main(argv: list[str] | None = None) -> int:
    summary, _, *examples = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=summary,
        epilog="\n".join(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pip-audit", default="pip-audit", help="program to run (default: %(default)s)")
    parser.add_argument("--if-reachable", action="store_true", help="exit 0 if the list cannot be reached")
    args = parser.parse_args(argv)
    try:
        reached, lines = judge(look_up(args.pip_audit))
    except OSError as error:
        print(f"error: cannot run '{args.pip_audit}': {error.strerror}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    if not reached:
        return 0 if args.if_reachable else 1
    return 1 if len(lines) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
