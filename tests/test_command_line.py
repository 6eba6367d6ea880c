"""The help of commands."""

from __future__ import annotations

import pytest

from pipeline.command_line import count, make_parser, one_line_errors

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


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [(ValueError("no such file"), 1, "error: no such file\n"), (KeyboardInterrupt(), 130, "stopped\n"), (None, 0, "")],
)
def test_errors_and_interruptions_are_one_line_and_an_exit_status(
    raised: BaseException | None, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @one_line_errors(ValueError, interrupted="stopped")
    def main() -> None:
        if raised is not None:
            raise raised

    assert main() == status
    assert capsys.readouterr().err == line


def test_other_errors_are_not_hidden() -> None:
    @one_line_errors(ValueError)
    def main() -> None:
        raise TypeError("a mistake in the program")

    with pytest.raises(TypeError):
        main()


def test_counts_are_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser(DOC)
    parser.add_argument("--rounds", type=count)
    assert parser.parse_args(["--rounds", "1"]).rounds == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", "0"])
    assert "argument --rounds: must be 1 or more, got 0" in capsys.readouterr().err
