"""What the server, training and the tools share: specification, method, networks, export, serving."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""This clone; of an installed package, where the packages lie."""
