"""Client of the super-resolution server: ``from client import Client``."""

from client.api import BadRequest, Client, ServerError, ServerLost, ServerUnavailable, Upscaled, UpscaleError

__all__ = ["BadRequest", "Client", "ServerError", "ServerLost", "ServerUnavailable", "UpscaleError", "Upscaled"]
