"""Tokens that callers of a server send, and files of one token."""

from __future__ import annotations

import os
import re

MAX_TOKEN = 4096
"""Maximum characters of a token."""


class TokenError(ValueError):
    """The token or its file cannot be used; the message states the problem, never the token."""


def check_token(token: object, source: str = "'token'") -> str:
    """Return the token.

    Raises:
        TokenError: it cannot be sent in a header.
    """
    if not isinstance(token, str):
        raise TokenError(f"{source} must be a string, got a {type(token).__name__}")
    if not token:
        raise TokenError(f"{source} must be a token, got an empty one")
    if len(token) > MAX_TOKEN:
        raise TokenError(f"{source} must be a token of up to {MAX_TOKEN} characters, got {len(token)}")
    if not re.fullmatch(r"[!-~]+", token):
        found = "several lines" if re.search(r"[\r\n]", token) else "spaces or other characters"
        raise TokenError(f"{source} must be a token of one line of printable ASCII without spaces, got {found}")
    return token


def read_token(path: str | os.PathLike[str]) -> str:
    """Return the token in a file, in which a newline may follow it.

    Raises:
        TokenError: the file cannot be read or holds no token.
    """
    source = f"the token file '{os.fspath(path)}'"
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TOKEN + 3)  # with "\r\n", and one more to tell a token that is too long
    except OSError as error:
        raise TokenError(f"{source} cannot be read ({error.strerror or error})") from error
    # not by "replace": the wrong characters must not be in the token, nor in an error with its bytes
    text = data.decode("latin-1")
    return check_token(text.removesuffix("\n").removesuffix("\r"), source)
