"""Start a Triton Inference Server: find it, check its setup, supervise it, drain it."""


class ServeError(Exception):
    """The server cannot be started; the message states the problem and the remedy."""
