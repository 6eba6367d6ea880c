"""Parse a server's address, host:port, and diagnose connection problems, including those of TLS."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading

PORTS = {"grpc": 8001, "http": 8000}
"""Triton's default ports."""
NAMES = {"grpc": "gRPC", "http": "HTTP"}
PROBE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""Request that Triton's metrics, HTTP and gRPC ports answer with metrics, an error and HTTP/2 frames, respectively."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How HTTP/2 begins, after which every server of it answers with its settings."""
HTTP2_SETTINGS = b"\x04"
"""Type of an HTTP/2 server's first frame, in the frame's fourth byte."""
CERTIFICATE_PROBLEMS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is not signed by a trusted CA but by itself: give its CA (ca, --ca)",
    19: "is not signed by a trusted CA: give its CA (ca, --ca)",
    20: "is not signed by a trusted CA: give its CA (ca, --ca)",
    21: "is not signed by a trusted CA: give its CA (ca, --ca)",
    62: "is for another host name than '{host}'",
    64: "is for another address than {host}",
}
"""OpenSSL's code ⇒ what is wrong with a certificate."""


class AddressError(ValueError):
    """The address is not host:port; the message states the problem."""


def split(url: str, protocol: str) -> tuple[str, int]:
    """Split host:port into host, without the brackets of IPv6, and port.

    Raises:
        AddressError: the address is not host:port.
    """
    example = f"localhost:{PORTS[protocol]}"
    scheme, separator, rest = url.rpartition("://")
    if separator:
        raise AddressError(
            f"it must not begin with '{scheme}://': give only host:port, such as {rest.strip('/') or example}"
        )
    host, port = url, ""
    if ":" in url and not url.endswith("]"):
        host, _, port = url.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise AddressError(f"an IPv6 address must be in brackets, such as [::1]:{PORTS[protocol]}")
    if not host:
        raise AddressError(f"it has no host: give host:port, such as {example}")
    if not port:
        raise AddressError(f"it has no port: give host:port, such as {host}:{PORTS[protocol]}")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise AddressError(f"its port must be 1–65535, got '{port}'")
    return host.removeprefix("[").removesuffix("]"), int(port)


def diagnose(
    host: str,
    port: int,
    protocol: str,
    limit: float,
    context: ssl.SSLContext | None = None,
    *,
    lasting: bool = False,
) -> str | None:
    """Find out, within ``limit`` seconds, why a client of ``protocol``, "grpc" or "http", cannot reach a server.

    Args:
        context: settings for TLS; None: the client does not use it.
        lasting: whether to look only for what trying again does not solve: a certificate that is not accepted, or that
            only one of client and server uses TLS.

    Returns:
        The problem; None if something there speaks the protocol or, with ``lasting``, has no such problem.
    """
    found: list[tuple[str | None, bool]] = []
    # in a thread, because name resolution has no timeout
    thread = threading.Thread(
        target=lambda: found.append(_diagnose(host, port, protocol, limit / 3, context)), daemon=True
    )
    thread.start()
    thread.join(limit)
    problem, lasts = found[0] if found else ("nothing answers", False)
    if lasting:
        return problem if lasts else None
    variable = proxy_variable(host) if protocol == "grpc" else None
    if variable is None:
        return problem
    return f"gRPC calls it through the proxy of the variable {variable}: add {host} to no_proxy to call it directly" + (
        f"; without it, {problem}" if problem else ""
    )


def _diagnose(
    host: str, port: int, protocol: str, limit: float, context: ssl.SSLContext | None
) -> tuple[str | None, bool]:
    """Return the problem, and whether it lasts; see ``diagnose``."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"the host name '{host}' cannot be resolved ({getattr(error, 'strerror', None) or error})", False
    try:
        answer = _greet(host, port, context, limit)
    except ConnectionRefusedError:
        return "connection refused, nothing listens there; start a server with `python -m pipeline.serve`", False
    except ssl.SSLCertVerificationError as error:
        problem = CERTIFICATE_PROBLEMS.get(error.verify_code, f"is refused ({error.verify_message})")
        return f"its certificate {problem.format(host=host)}", True
    except OSError as error:
        if context is not None and _speaks_plainly(host, port, limit):
            return "that port does not speak TLS: leave it out (tls, ca)", True
        if isinstance(error, ssl.SSLError):
            return f"TLS fails there ({error.reason or error})", False
        return f"it cannot be reached ({error.strerror or 'no connection'})", False
    if spoken := _protocol_of(answer):
        return _misunderstanding(answer, spoken, protocol), False
    if context is None and _speaks_tls(host, port, limit):
        return "that port speaks TLS: use it (tls, --tls)", True
    if answer:
        return "what answers there speaks neither HTTP nor gRPC", False
    return "nothing answers, though something accepts connections there", False


def _protocol_of(answer: bytes) -> str | None:
    """Return the protocol of an answer, "grpc" or "http"; None if it is another."""
    if answer.startswith(b"HTTP/1"):
        return "http"
    return "grpc" if answer[3:4] == HTTP2_SETTINGS else None


def _misunderstanding(answer: bytes, spoken: str, protocol: str) -> str | None:
    """Return why a client of ``protocol`` has no use for an answer in the protocol ``spoken``; None if it has."""
    if b"nv_" in answer or b"# HELP" in answer:
        return f"that is its metrics port: give the {NAMES[protocol]} port ({PORTS[protocol]} unless chosen otherwise)"
    if spoken == protocol:
        return None
    return f"that port speaks {NAMES[spoken]}: give the {NAMES[protocol]} port, or choose protocol {spoken}"


def _speaks_plainly(host: str, port: int, limit: float) -> bool:
    """Whether HTTP or gRPC is spoken there without TLS."""
    try:
        return _protocol_of(_greet(host, port, None, limit)) is not None
    except OSError:
        return False


def _speaks_tls(host: str, port: int, limit: float) -> bool:
    """Whether a handshake succeeds there, with any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _greet(host, port, context, limit)
    except OSError:
        return False
    return True


def _greet(host: str, port: int, context: ssl.SSLContext | None, limit: float) -> bytes:
    """Return the beginning of what answers there.

    Raises:
        OSError: it cannot be reached, or TLS fails.
    """
    with socket.create_connection((host, port), limit) as connection:
        if context is None:
            return _ask(connection, PROBE)
        with context.wrap_socket(connection, server_hostname=host) as secure:
            return _ask(secure, PREFACE if secure.selected_alpn_protocol() == "h2" else PROBE)


def _ask(connection: socket.socket, question: bytes) -> bytes:
    """Send a question and return the beginning of the answer, empty if there is none."""
    answer = b""
    try:
        connection.sendall(question)
        while len(answer) < 4096 and (more := connection.recv(4096)):
            answer += more
            if answer[3:4] == HTTP2_SETTINGS:
                break
    except OSError:
        pass  # the data received so far is enough
    return answer


def proxy_variable(host: str) -> str | None:
    """Return the environment variable by which gRPC uses a proxy for ``host``; None if it connects directly."""
    variable = next((name for name in ("grpc_proxy", "https_proxy", "http_proxy") if name in os.environ), None)
    exempt = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if name in os.environ), "")
    if variable is None or not os.environ[variable] or any(_covers(e.strip(), host) for e in exempt.split(",")):
        return None
    return variable


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of no_proxy, a domain suffix or a network, covers the host."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.lower().endswith(entry.lower().removeprefix("."))
