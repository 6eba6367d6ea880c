"""Code shared by the server, training and the tools: specification, method, networks, export, serving."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The root of this clone or, when installed, the directory of the packages."""
