"""Start a Triton Inference Server: find it, check before the start, supervise it, drain it."""


class ServeError(Exception):
    """The server cannot be started; the message says what is wrong and what to do."""
