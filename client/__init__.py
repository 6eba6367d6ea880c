"""Client of the super-resolution server: ``from client import Client``."""

from client.api import (
    BadRequest,
    Client,
    ClientClosed,
    ServerError,
    ServerLost,
    ServerUnavailable,
    Upscaled,
    UpscaleError,
)

__all__ = [
    "BadRequest",
    "Client",
    "ClientClosed",
    "ServerError",
    "ServerLost",
    "ServerUnavailable",
    "UpscaleError",
    "Upscaled",
]
