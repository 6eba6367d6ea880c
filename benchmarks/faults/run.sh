#!/usr/bin/env bash
# Every fault against a real server: a table with counts, and exit status 0 only if no image was lost.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.faults "$@"
