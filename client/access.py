"""What a client needs for a protected server: the certificates it trusts, and where its token is."""

from __future__ import annotations

import os
import ssl

VARIABLE = "CXR_TOKEN"
"""Environment variable with the command's token."""
ALPN = {"grpc": ["h2"], "http": ["http/1.1"]}
"""Protocol ⇒ what a client asks for in the TLS handshake; a port may offer both."""


class AccessError(ValueError):
    """The file of certificates cannot be used; the message states the problem."""


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
