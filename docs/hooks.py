"""MkDocs hooks: put commands' help and files from outside docs/ into pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
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


@cache
def help_of(module: str) -> str:
    """What ``python -m MODULE --help`` prints, without this machine's paths."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"python -m {module} --help failed:\n{done.stderr}")
    lines = done.stdout.replace(f"{ROOT}/", "").strip().splitlines()
    # argparse leaves descriptions as they are: one long line
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
    with ThreadPoolExecutor(2) as pool:  # every help takes seconds: most commands import PyTorch
        list(pool.map(help_of, HELP.findall(markdown)))
    markdown = HELP.sub(lambda match: f"```text\n{help_of(match[1])}\n```", markdown)
    return INCLUDE.sub(lambda match: included((path.parent / match["path"]).resolve(), path), markdown)
