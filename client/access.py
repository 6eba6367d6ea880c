"""What a client needs for a protected server: the certificates it trusts, and its token."""

from __future__ import annotations

import os
import re
import ssl

VARIABLE = "CXR_TOKEN"
"""Environment variable with the command's token."""
MAX_TOKEN = 4096
"""Maximum characters of a token."""
ALPN = {"grpc": ["h2"], "http": ["http/1.1"]}
"""Protocol ⇒ what a client asks for in the TLS handshake; a port may offer both."""


class AccessError(ValueError):
    """The token or the file of certificates cannot be used; the message states the problem, never the token."""


def check_token(token: object, source: str = "'token'") -> str:
    """Return the token.

    Raises:
        AccessError: it cannot be sent in a header.
    """
    if not isinstance(token, str):
        raise AccessError(f"{source} must be a string, got a {type(token).__name__}")
    if not token:
        raise AccessError(f"{source} must be a token, got an empty one")
    if len(token) > MAX_TOKEN:
        raise AccessError(f"{source} must be a token of up to {MAX_TOKEN} characters, got {len(token)}")
    if not re.fullmatch(r"[!-~]+", token):
        found = "several lines" if re.search(r"[\r\n]", token) else "spaces or other characters"
        raise AccessError(f"{source} must be a token of one line of printable ASCII without spaces, got {found}")
    return token


def read_token(path: str | os.PathLike[str]) -> str:
    """Return the token in a file, in which a newline may follow it.

    Raises:
        AccessError: the file cannot be read or holds no token.
    """
    source = f"the token file '{os.fspath(path)}'"
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TOKEN + 3)  # with "\r\n", and one more to tell a token that is too long
    except OSError as error:
        raise AccessError(f"{source} cannot be read ({error.strerror or error})") from error
    # not by "replace": the wrong characters must not be in the token, nor in an error with its bytes
    text = data.decode("latin-1")
    return check_token(text.removesuffix("\n").removesuffix("\r"), source)


def trust(ca: str | os.PathLike[str] | None, protocol: str) -> ssl.SSLContext:
    """Return the settings for TLS 1.2 or later that trust the certificates in the file ``ca``; None: the system's.

    Raises:
        AccessError: the file cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise AccessError(f"'ca' must be a file of certificates (PEM), got '{os.fspath(ca or '')}'") from error
    except OSError as error:
        raise AccessError(f"the file of certificates '{ca}' cannot be read ({error.strerror or error})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN[protocol])
    return context
