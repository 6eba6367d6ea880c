"""Who may import whom: one table, checked against the syntax trees of all files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import ROOT

SYSTEMS = ("pipeline.spec", "pipeline.presets", "pipeline.models")
COMMON = (
    *SYSTEMS,
    "pipeline.owner",
    "pipeline.atomic",
    "pipeline.command_line",
    "pipeline.hashes",
    "pipeline.interrupts",
    "pipeline.remote",
    "pipeline.tokens",
)
LAYERS: dict[str, tuple[str, ...]] = {
    "pipeline.spec": (),
    "pipeline.presets": ("pipeline.spec",),
    "pipeline.models": ("pipeline.spec", "pipeline.presets"),
    "pipeline.owner": (),
    "pipeline.atomic": ("pipeline.owner",),
    "pipeline.command_line": (),
    "pipeline.hashes": ("pipeline.atomic", "pipeline.command_line"),
    "pipeline.interrupts": (),
    "pipeline.remote": (),
    "pipeline.tokens": (),
    "pipeline.method": SYSTEMS,
    "pipeline.networks": (*COMMON, "pipeline.method"),
    "pipeline.runtimes": (*SYSTEMS, "pipeline.method"),
    "pipeline.backends": (*SYSTEMS, "pipeline.method", "pipeline.runtimes"),
    "pipeline.triton_config": COMMON,
    "pipeline.serving": (*COMMON, "pipeline.runtimes.processor", "pipeline.triton_config"),
    "pipeline.serve": ("pipeline.serving",),
    "pipeline.export": (*COMMON, "pipeline.method", "pipeline.networks", "pipeline.runtimes", "pipeline.triton_config"),
    "pipeline.tensorrt": (
        *(*COMMON, "pipeline.method", "pipeline.runtimes", "pipeline.serving", "pipeline.export.parity"),
        "pipeline.triton_config",
    ),
    "pipeline.plan": ("pipeline.tensorrt",),
    "client": (*COMMON, "pipeline.method", "pipeline.serving", "pipeline.triton_config"),
    "model_repository": (*SYSTEMS, "pipeline.method", "pipeline.backends", "pipeline.serving.drain"),
    "train": ("pipeline", "client"),
    "benchmarks": ("pipeline", "client", "train"),
}
"""A package, or a module of its own ⇒ what it may import of this project beside itself."""
TORCH = ("pipeline.networks", "pipeline.export", "train", "benchmarks")
"""Those that may import PyTorch."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name_of(path): path
    for folder in ("pipeline", "client", "train", "benchmarks", "model_repository")
    for path in (ROOT / folder).rglob("*.py")
}


def layer_of(module: str) -> str:
    return max((layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")), key=len)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; ``from package import module`` is that module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            yield from (f"{module}.{a.name}" if f"{module}.{a.name}" in FILES else module for a in node.names)


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"pipeline"}))
def test_imports_what_its_layer_may(module: str) -> None:
    layer = layer_of(module)
    ours = [
        n for n in imports(FILES[module]) if n != "pipeline" and is_in(n, ("pipeline", "client", "train", "benchmarks"))
    ]
    assert [name for name in ours if not is_in(name, (layer, *LAYERS[layer]))] == []
    if not is_in(module, TORCH):
        assert not any(is_in(name, ("torch", "diffusers")) for name in imports(FILES[module]))


def test_modules_import_in_no_circle() -> None:
    graph = {module: {name for name in imports(path) if name in FILES} - {module} for module, path in FILES.items()}
    while leaves := {module for module, names in graph.items() if not names}:
        graph = {module: names - leaves for module, names in graph.items() if module not in leaves}
    assert graph == {}
