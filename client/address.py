"""Parse a server's address, host:port, and diagnose connection problems."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading

PORTS = {"grpc": 8001, "http": 8000}
"""Triton's default ports."""
NAMES = {"grpc": "gRPC", "http": "HTTP"}
PROBE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""Request that Triton's metrics, HTTP and gRPC ports answer with metrics, an error and HTTP/2 frames, respectively."""
HTTP2_SETTINGS = b"\x04"
"""Type of an HTTP/2 server's first frame, in the frame's fourth byte."""


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


def diagnose(host: str, port: int, protocol: str, limit: float) -> str | None:
    """Diagnose within ``limit`` seconds why a client of ``protocol``, "grpc" or "http", cannot reach a server.

    Returns:
        The problem; None if something there speaks the protocol.
    """
    found: list[str | None] = []
    # in a thread, because name resolution has no timeout
    thread = threading.Thread(target=lambda: found.append(_diagnose(host, port, protocol, limit / 2)), daemon=True)
    thread.start()
    thread.join(limit)
    problem = found[0] if found else "nothing answers"
    variable = proxy_variable(host) if protocol == "grpc" else None
    if variable is None:
        return problem
    return f"gRPC calls it through the proxy of the variable {variable}: add {host} to no_proxy to call it directly" + (
        f"; without it, {problem}" if problem else ""
    )


def _diagnose(host: str, port: int, protocol: str, limit: float) -> str | None:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"the host name '{host}' cannot be resolved ({getattr(error, 'strerror', None) or error})"
    try:
        connection = socket.create_connection((host, port), limit)
    except ConnectionRefusedError:
        return "connection refused, nothing listens there; start a server with `python -m pipeline.serve`"
    except OSError as error:
        return f"it cannot be reached ({error.strerror or 'no connection'})"
    with connection:
        answer = _ask(connection)
    if not answer:
        return "nothing answers, though something accepts connections there"
    if answer.startswith(b"HTTP/1"):
        if b"nv_" in answer or b"# HELP" in answer:
            return (
                f"that is its metrics port: give the {NAMES[protocol]} port ({PORTS[protocol]} unless chosen otherwise)"
            )
        return None if protocol == "http" else "that port speaks HTTP: give the gRPC port, or choose protocol http"
    if answer[3:4] == HTTP2_SETTINGS:
        return None if protocol == "grpc" else "that port speaks gRPC: give the HTTP port, or choose protocol grpc"
    return "what answers there speaks neither HTTP nor gRPC"


def _ask(connection: socket.socket) -> bytes:
    """Send the probe and return the beginning of the answer, empty if there is none."""
    answer = b""
    try:
        connection.sendall(PROBE)
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
