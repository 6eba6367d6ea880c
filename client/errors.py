"""Why an image was not upscaled."""

from __future__ import annotations


class UpscaleError(Exception):
    """Base class of all errors that prevent upscaling."""


class BadRequest(UpscaleError):
    """An argument, the image or an option is invalid, as found here or by the server; the message names what is
    allowed."""


class ServerError(UpscaleError):
    """The server reported a failure, or did not answer in time."""


class ServerUnavailable(UpscaleError):
    """No ready server at the address within the limit; the message states the problem."""


class ServerLost(UpscaleError):
    """The server went away during a request and did not serve it within the limit."""


class NotAllowed(UpscaleError):
    """The server refuses the token, needs one, or does not allow the call."""


class ClientClosed(UpscaleError):
    """The client was closed before or during the request."""
