"""MkDocs hooks: put commands' help and files from outside docs/ into pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COLUMNS = 100
HELP = re.compile(r"^<!-- help: (\S+) -->$", re.MULTILINE)
"""Replaced by the help of a module."""
INCLUDE = re.compile(r"^\[[^\]]*\]\((?P<path>(?:\.\./)+[^)]+\.md)\)$", re.MULTILINE)
"""A line that only links to a file outside docs/, which GitHub shows as a link. Replaced by the file."""
LINK = re.compile(r"\]\((?![a-z]+:|#)(?P<path>[^)#\s]+)")
PAGES = {
    ROOT / "weights" / "best" / "MODEL_CARD.md": DOCS / "model-cards" / "best.md",
    ROOT / "weights" / "paper" / "MODEL_CARD.md": DOCS / "model-cards" / "paper.md",
    ROOT / "CONTRIBUTING.md": DOCS / "contributing.md",
    ROOT / "CHANGELOG.md": DOCS / "changelog.md",
    ROOT / "README.md": DOCS / "index.md",
}
"""Files outside docs/ and the pages that stand for them."""


PRINT_HELP = """
import contextlib, io, json, runpy, sys
found = {}
for module in sys.argv[1:]:
    printed = io.StringIO()
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    found[module] = printed.getvalue()
print(json.dumps(found))
"""
"""One process for all commands: most import PyTorch, which takes seconds."""


def helps_of(modules: list[str]) -> dict[str, str]:
    """Return what ``python -m MODULE --help`` prints, by module, without this machine's paths."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HELP, *modules], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"a command's --help failed:\n{done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    if broken := [module for module, text in found.items() if not text.startswith("usage:")]:
        raise RuntimeError(f"no help from {', '.join(broken)}")
    return {module: wrapped(text.replace(f"{ROOT}/", "")) for module, text in found.items()}


def wrapped(text: str) -> str:
    """Wrap a help's description, which argparse leaves as one long line."""
    lines = text.strip().splitlines()
    return "\n".join(line if line.startswith((" ", "usage:")) else textwrap.fill(line, COLUMNS) for line in lines)


def included(source: Path, page: Path) -> str:
    """The text of a file, with its links as they must be in ``page``."""

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / match["path"]).resolve()
        return "](" + os.path.relpath(PAGES.get(target, target), page.parent)

    return LINK.sub(moved, source.read_text(encoding="utf-8"))


def on_pre_build(**_: Any) -> None:
    """MkDocs calls this first. Checks the links of files outside docs/ as they are, which MkDocs does not."""
    for source in PAGES:
        targets = [match["path"] for match in LINK.finditer(source.read_text(encoding="utf-8"))]
        if missing := [target for target in targets if not (source.parent / target).exists()]:
            raise RuntimeError(f"{source.relative_to(ROOT)} links to what is not there: {', '.join(missing)}")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs calls this with the text of every page."""
    path = DOCS / page.file.src_uri
    if modules := HELP.findall(markdown):
        helps = helps_of(modules)
        markdown = HELP.sub(lambda match: f"```text\n{helps[match[1]]}\n```", markdown)
    return INCLUDE.sub(lambda match: included((path.parent / match["path"]).resolve(), path), markdown)
