"""The help of commands."""

from __future__ import annotations

from pipeline.command_line import make_parser

DOC = """Make one from the other.

python -m this --fast
python -m this that
"""


def test_help_is_the_docstring_its_first_line_and_then_examples() -> None:
    help = make_parser(DOC, "this").format_help()
    assert help.startswith("usage: this [-h]\n\nMake one from the other.\n")
    assert help.endswith("examples:\n  python -m this --fast\n  python -m this that\n")


def test_description_may_say_more() -> None:
    help = make_parser(DOC, description="All of it.").format_help()
    assert "All of it." in help
    assert "Make one" not in help
