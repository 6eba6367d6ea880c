"""The node's configuration: a TOML file, every key of which is checked. ``deploy/node.toml`` is an example."""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from client.access import AccessError, trust
from pipeline.method.options import OPTIONS, InvalidRequest, check_for_some_preset, check_seed
from pipeline.presets import PRESETS
from pipeline.spec import PRIORITIES
from pipeline.tokens import TokenError, read_token

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Check = Callable[[Any], Any]
"""Returns the value to use; raises ValueError, whose message is what is allowed."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the key and what is allowed."""


def rule(allowed: str, fits: Callable[[Any], bool], use: Callable[[Any], Any] = lambda value: value) -> Check:
    """Return a check of the values that fit, which returns ``use`` of them."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(allowed)
        return use(value)

    return check


def is_text(value: Any, pattern: str = r".*\S.*") -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None


def whole(low: int, high: int) -> Check:
    return rule(f"{low}–{high}", lambda value: type(value) is int and low <= value <= high)


def one_of(*allowed: str) -> Check:
    return rule(" or ".join(map(repr, allowed)), lambda value: value in allowed)


def list_of(check: Check) -> Check:
    return rule(
        "a list of strings",
        lambda values: isinstance(values, list),
        lambda values: tuple(check(value) for value in values),
    )


text = rule("a string that is not empty", is_text)
path = rule("a string that is not empty", is_text, Path)
yes_or_no = rule("true or false", lambda value: isinstance(value, bool))
seconds = rule(
    "a number of seconds, more than 0 and at most 86400",
    lambda value: type(value) in (int, float) and 0 < value <= 86400,
    float,
)
title = rule(
    "an AE title of 1–16 characters of ASCII without backslash",
    lambda value: is_text(value) and is_text(value, r"[ -\[\]-~]{1,16}"),
    str.strip,
)
code = rule("up to 16 of A–Z, 0–9, space and underscore", lambda value: is_text(value, r"[A-Z0-9 _]{1,16}"))


def key(check: Check, default: Any = MISSING) -> Any:
    """Return a dataclass field for a key of the file; without a default, the file must have it."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class Listen:
    """Where and what the node receives."""

    ae_title: str = key(title)
    folder: Path = key(path)
    host: str = key(text, "127.0.0.1")
    port: int = key(whole(1, 65535), 11112)
    calling_ae_titles: tuple[str, ...] = key(list_of(title), ())
    modalities: tuple[str, ...] = key(list_of(code), ("CR", "DX", "OT"))
    body_parts: tuple[str, ...] = key(list_of(code), ("CHEST", "THORAX"))
    missing_body_part: bool = key(yes_or_no, True)
    associations: int = key(whole(1, 100), 10)
    tls_cert: Path | None = key(path, None)
    tls_key: Path | None = key(path, None)
    tls_ca: Path | None = key(path, None)


@dataclass(frozen=True)
class Server:
    """The Triton server."""

    url: str = key(text, "localhost:8001")
    protocol: str = key(one_of("grpc", "http"), "grpc")
    tls: bool = key(yes_or_no, False)
    ca: Path | None = key(path, None)
    token_file: Path | None = key(path, None)
    timeout: float = key(seconds, 600.0)
    priority: str = key(one_of(*PRIORITIES), "bulk")
    requests: int = key(whole(1, 64), 4)


@dataclass(frozen=True)
class Destination:
    """The PACS that gets the results."""

    ae_title: str = key(title)
    host: str = key(text)
    port: int = key(whole(1, 65535), 104)
    tls: bool = key(yes_or_no, False)
    tls_ca: Path | None = key(path, None)
    tls_cert: Path | None = key(path, None)
    tls_key: Path | None = key(path, None)


@dataclass(frozen=True)
class Output:
    """What the results are, apart from options of the server."""

    burn_in: bool = key(yes_or_no, False)
    uncertainty: bool = key(yes_or_no, False)
    downscale: int = key(whole(1, 64), 1)
    compress: str | None = key(one_of("jpeg2000", "jpeg-ls"), None)


@dataclass(frozen=True)
class Retry:
    """How often and when to try again."""

    tries: int = key(whole(1, 100), 5)
    first: float = key(seconds, 1.0)
    longest: float = key(seconds, 300.0)

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after this many failures in a row, twice as many each time."""
        return float(min(self.first * 2.0 ** min(failures - 1, 30), self.longest))


@dataclass(frozen=True)
class Status:
    """The HTTP interface."""

    host: str = key(text, "127.0.0.1")
    port: int = key(whole(1, 65535), 8104)


@dataclass(frozen=True)
class Config:
    """A checked configuration."""

    listen: Listen
    server: Server
    destination: Destination
    output: Output
    retry: Retry
    status: Status
    options: dict[str, Any]
    """Options of ``Client.upscale``, the seed included."""
    token: str | None
    listen_tls: ssl.SSLContext | None
    destination_tls: ssl.SSLContext | None


SECTIONS: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (Listen, Server, Destination, Output, Retry, Status)
}


def read_config(file: Path) -> Config:
    """Read and check a configuration.

    Raises:
        ConfigError: the file, or a file that it names, cannot be read or used.
    """
    try:
        with open(file, "rb") as stream:
            found = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{file}' is not TOML: {error}") from error
    check_names("section", found, (*SECTIONS, "options"))
    sections = {name: section(name, kind, found.get(name, {})) for name, kind in SECTIONS.items()}
    listen, server, destination = sections["listen"], sections["server"], sections["destination"]
    options = check_options(found.get("options", {}))
    if sections["output"].uncertainty and all(
        preset.band.scale(options.get("samples") or 1) is None for preset in PRESETS.values()
    ):
        raise ConfigError("'output.uncertainty' requires 'options.samples' of 2 or more")
    try:
        token = None if server.token_file is None else read_token(server.token_file)
        if server.ca is not None:
            trust(server.ca, server.protocol)
    except (TokenError, AccessError) as error:
        raise ConfigError(f"[server]: {error}") from None
    return Config(
        **sections,
        options=options,
        token=token,
        listen_tls=listening_tls(listen),
        destination_tls=sending_tls(destination),
    )


def check_names(what: str, found: Any, allowed: tuple[str, ...]) -> None:
    for name in found:
        if name not in allowed:
            raise ConfigError(f"unknown {what} '{name}', must be one of {', '.join(allowed)}")


def section(name: str, kind: type[T], values: Any) -> T:
    """Return a checked section of the file."""
    if not isinstance(values, dict):
        raise ConfigError(f"'{name}' must be a section, got {values!r}")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    check_names(f"key in [{name}]", values, tuple(known))
    for item in known.values():
        if item.default is MISSING and item.name not in values:
            raise ConfigError(f"'{name}.{item.name}' is missing")
    checked = {}
    for item_name, value in values.items():
        try:
            checked[item_name] = known[item_name].metadata["check"](value)
        except ValueError as error:
            raise ConfigError(f"'{name}.{item_name}' must be {error}, got {value!r}") from None
    return kind(**checked)


def check_options(options: Any) -> dict[str, Any]:
    """Return options that some preset allows; which one the server runs is not known yet."""
    if not isinstance(options, dict):
        raise ConfigError(f"'options' must be a section, got {options!r}")
    check_names("key in [options]", options, ("seed", *OPTIONS))
    rest = {name: value for name, value in options.items() if name != "seed"}
    try:
        check_seed(options.get("seed", 0))
        check_for_some_preset(lambda _: rest)
    except InvalidRequest as error:
        raise ConfigError(f"[options]: {error}") from None
    return options


def listening_tls(listen: Listen) -> ssl.SSLContext | None:
    """Return the settings for TLS of the node's own port; None: without TLS."""
    if listen.tls_cert is None and listen.tls_key is None:
        if listen.tls_ca is not None:
            raise ConfigError("[listen]: 'tls_ca' requires 'tls_cert' and 'tls_key'")
        return None
    return with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "listen", listen)


def sending_tls(destination: Destination) -> ssl.SSLContext | None:
    """Return the settings for TLS towards the destination; None: without TLS."""
    if not destination.tls:
        given = [name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(destination, name) is not None]
        if given:
            raise ConfigError(f"[destination]: '{given[0]}' requires 'tls = true'")
        return None
    own = destination.tls_ca is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if own else ssl.create_default_context()
    return with_files(context, "destination", destination)


def with_files(context: ssl.SSLContext, name: str, place: Listen | Destination) -> ssl.SSLContext:
    """Return the settings for TLS 1.2 or later with the certificates of a section."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    cert, private, ca = place.tls_cert, place.tls_key, place.tls_ca
    if (cert is None) != (private is None):
        raise ConfigError(f"[{name}]: 'tls_cert' and 'tls_key' go together")
    if cert is not None:
        try:
            context.load_cert_chain(cert, private)
        except OSError as error:  # that of TLS is one
            problem = f"'{cert}' and '{private}' cannot be used as certificate and key: {error.strerror or error}"
            raise ConfigError(f"[{name}]: {problem}") from None
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except OSError as error:
            why = "no certificates" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"'{name}.tls_ca' must be a file of certificates (PEM), got '{ca}' ({why})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context
