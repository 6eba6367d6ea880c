"""Client of the super-resolution server: ``from client import Client``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.errors import (
    BadRequest,
    ClientClosed,
    NotAllowed,
    ServerError,
    ServerLost,
    ServerUnavailable,
    UpscaleError,
)

if TYPE_CHECKING:
    from client.api import Client
    from client.results import Event, Upscaled

__all__ = [
    "BadRequest",
    "Client",
    "ClientClosed",
    "Event",
    "NotAllowed",
    "ServerError",
    "ServerLost",
    "ServerUnavailable",
    "UpscaleError",
    "Upscaled",
]


def __getattr__(name: str) -> Any:
    """Import ``client.api`` lazily: processes that only read files start in a third of the time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from client import api

    return getattr(api, name)
