"""Upscale arrays on the server: ``with Client() as c: c.upscale(image)``. NumPy and tritonclient, no torch."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from client import access, address, wire
from client.errors import (
    BadRequest,
    ClientClosed,
    NotAllowed,
    ServerError,
    ServerLost,
    ServerUnavailable,
    UpscaleError,
)
from client.results import Event, Request, Tiles, Upscaled
from pipeline.method.options import (
    InvalidRequest,
    Options,
    check_pixel_mm,
    check_seconds,
    check_seed,
    gray_image,
    whole_number,
)
from pipeline.models import superres_model, superres_stream_model
from pipeline.presets import DEFAULT, PRESETS, Preset
from pipeline.spec import MAX_SIDE, PRIORITIES, Model
from pipeline.tokens import TokenError, check_token

T = TypeVar("T")

MODEL = superres_model(DEFAULT)
"""Model ``superres``, whose name and tensors are the same for every preset."""

STREAM = superres_stream_model(DEFAULT)

DEFAULT_URL = {protocol: f"localhost:{port}" for protocol, port in address.PORTS.items()}
ATTEMPT = (0.5, 10.0)
"""Minimum (even if ``wait`` is shorter) and maximum seconds for a server to report that it is ready."""
PAUSES = (0.05, 1.0)
"""First and longest pause between attempts, in seconds; each is twice the previous one."""
PROBE_LIMIT = 1.0
"""Maximum seconds to diagnose an address."""


class Client:
    """A thread-safe connection to the server. ``preset`` is the preset that the server runs.

    Args:
        url: host:port; default: localhost with Triton's default port for the protocol.
        protocol: "grpc" or "http".
        wait: maximum seconds to wait for the server, when connecting and after it went away; 0: one attempt.
        timeout: maximum seconds per request. Both may be infinite.
        tls: whether to encrypt, by TLS 1.2 or later, and to verify the server's certificate and host name.
        ca: file of certificates (PEM) to trust instead of the system's; implies ``tls``.
        priority: "interactive", or "bulk" for requests that wait while interactive ones do.
        token: sent with every call, as ``authorization: Bearer TOKEN``. Without ``tls``, others can read it on the way.

    Raises:
        BadRequest: an argument is not allowed.
        ServerUnavailable: no ready server within ``wait``, or at once if only one side uses TLS or the certificate is
            not accepted.
        NotAllowed: the server refuses the token, or needs one.
        ServerError: the server's preset is unknown to this client.
    """

    preset: Preset

    def __init__(
        self,
        url: str | None = None,
        *,
        protocol: Literal["grpc", "http"] = "grpc",
        wait: float = 10,
        timeout: float = 600,
        tls: bool = False,
        ca: Path | str | None = None,
        token: str | None = None,
        priority: Literal["interactive", "bulk"] = "interactive",
    ) -> None:
        if protocol not in ("grpc", "http"):
            raise BadRequest(f"'protocol' must be 'grpc' or 'http', got {protocol!r}")
        if not isinstance(url, (str, type(None))):
            raise BadRequest(f"'url' must be host:port, such as '{DEFAULT_URL[protocol]}', got {url!r}")
        self.protocol = protocol
        self.url = url or DEFAULT_URL[protocol]
        self.wait = validated(check_seconds, "wait", wait, zero=True)
        self.timeout = validated(check_seconds, "timeout", timeout, zero=False)
        try:
            self._address = address.split(self.url, protocol)
        except address.AddressError as error:
            raise ServerUnavailable(f"no server ready at {self.url} ({protocol}): {error}") from error
        if not isinstance(tls, bool):
            raise BadRequest(f"'tls' must be True or False, got {tls!r}")
        if not isinstance(ca, (str, os.PathLike, type(None))):
            raise BadRequest(f"'ca' must be the path of a file, got {ca!r}")
        try:
            self._context = access.trust(ca, protocol) if tls or ca is not None else None
            token = None if token is None else check_token(token)
        except (access.AccessError, TokenError) as error:
            raise BadRequest(str(error)) from None  # whose cause may quote what it read
        if priority not in PRIORITIES:
            raise BadRequest(f"'priority' must be {' or '.join(map(repr, PRIORITIES))}, got {priority!r}")
        # interactive is the server's default
        level = 0 if priority == "interactive" else PRIORITIES[priority]
        self._closed = threading.Event()
        secure = self._context is not None
        self._wire = (
            wire.Grpc(self.url, secure, None if ca is None else os.fspath(ca), token, level)
            if protocol == "grpc"
            else wire.Http(*self._address, self._context, token, level)
        )
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; requests in progress in other threads raise ``ClientClosed``."""
        self._closed.set()
        self._wire.close()

    def _ask(self, function: Callable[[], T]) -> T:
        """Call ``function``, of the wire, whose errors are those of a closed client if it is closed."""
        try:
            if not self._closed.is_set():
                return function()
        except Exception:
            if not self._closed.is_set():  # otherwise the cause of any error
                raise
        raise ClientClosed(f"the client of {self.url} is closed")

    def _pause(self, pause: float, deadline: float) -> float:
        """Wait, but not beyond the deadline, and return the next pause."""
        self._closed.wait(max(0.0, min(pause, deadline - time.monotonic())))
        return min(2 * pause, PAUSES[1])

    def wait_until_ready(self) -> None:
        """Wait until the server can upscale.

        Raises:
            ServerUnavailable: the server is not ready within ``wait`` seconds, or TLS cannot work with it.
            NotAllowed: the server refuses the token, or needs one.
            ServerError: the server's preset is unknown to this client.
        """
        self._wait_until_ready(time.monotonic() + self.wait)

    def _wait_until_ready(self, deadline: float) -> None:
        pause, shortest, longest = PAUSES[0], *ATTEMPT
        while True:
            limit = min(max(shortest, deadline - time.monotonic()), longest)
            try:
                config = self._ask(partial(self._wire.config, MODEL.name, limit))
                if config is not None:
                    break
            except (ClientClosed, NotAllowed):
                raise
            except wire.NotServing as error:
                if problem := self._diagnosed(lasting=True):
                    raise ServerUnavailable(f"no server ready at {self.url} ({self.protocol}): {problem}") from error
            except UpscaleError:
                pass  # diagnosed after the last attempt
            if time.monotonic() >= deadline:
                raise ServerUnavailable(
                    f"no server ready at {self.url} ({self.protocol}) within {self.wait:g} s: {self._problem()}"
                )
            pause = self._pause(pause, deadline)
        name = config.get("parameters", {}).get("preset", {}).get("string_value", "")
        if name not in PRESETS:
            raise ServerError(f"server {self.url} must run one of the presets {', '.join(PRESETS)}, got '{name}'")
        self.preset = PRESETS[name]
        # servers before this output was introduced do not have it
        self._tells_model = "model" in [output["name"] for output in config.get("output", [])]

    def _diagnosed(self, *, lasting: bool = False) -> str | None:
        """See ``client.address.diagnose``."""
        return address.diagnose(*self._address, self.protocol, PROBE_LIMIT, self._context, lasting=lasting)

    def _problem(self) -> str:
        """Return the problem at the address."""
        if problem := self._diagnosed():
            return problem
        try:
            index = self._ask(lambda: self._wire.index(PROBE_LIMIT))
        except NotAllowed:  # as by a proxy, which lets nobody see the repository
            return f"its model '{MODEL.name}' is not ready"
        except (wire.NotServing, UpscaleError) as error:
            return " ".join(str(error).split())
        models = [entry for entry in index if entry["name"] == MODEL.name]
        if not models:
            return f"it has no model '{MODEL.name}'"
        reason = models[0].get("reason") or models[0].get("state") or "not loaded"
        return f"its model '{MODEL.name}' is not ready ({' '.join(reason.split())})"

    def _answers(self, ask: Callable[[], Generator[T, None, None]], preset: Preset) -> Iterator[T]:
        """Yield the answers to a request; while the server is not serving, ask again, from the first answer on.

        Raises:
            ServerLost: the server is not back within ``wait`` seconds, or runs another preset.
            UpscaleError: any other error.
        """
        gone = f"server {self.url} went away during a request and"
        deadline, pause = math.inf, PAUSES[0]
        while True:
            try:
                with closing(ask()) as answers:
                    while (found := self._ask(partial(next, answers, None))) is not None:
                        yield found
                return
            except wire.NotServing as error:
                lost, late = error, f"within {self.wait:g} s: {' '.join(str(error).split())}"
            deadline = min(deadline, time.monotonic() + self.wait)
            if time.monotonic() >= deadline:
                raise ServerLost(f"{gone} did not serve it {late}") from lost
            pause = self._pause(pause, deadline)
            try:
                self._wait_until_ready(deadline)
            except ServerUnavailable as error:
                raise ServerLost(f"{gone} was not back {late}") from error
            if self.preset != preset:
                raise ServerLost(f"{gone} runs preset '{self.preset.name}' now, not '{preset.name}'")

    def _infer(
        self, model: Model, arrays: wire.Arrays, outputs: Sequence[str], preset: Preset
    ) -> dict[str, NDArray[Any]]:
        """Run a model on the server; see ``_answers``."""

        def ask() -> Generator[dict[str, NDArray[Any]], None, None]:
            yield self._wire.infer(model, arrays, outputs, self.timeout)

        return next(self._answers(ask, preset))

    def check(self, seed: int = 0, **options: Any) -> Options:
        """Return the options of ``upscale`` with the defaults of the server's preset.

        Raises:
            BadRequest: an option is not allowed.
        """
        validated(check_seed, seed)
        return validated(Options.of, self.preset, **options)

    def upscale(
        self,
        image: Any,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        start: str | None = None,
        samples: int | None = None,
        output: str | None = None,
        faithful: bool | None = None,
        degradation: str | None = None,
        pixel_mm: float | None = None,
        denoiser: str | None = None,
    ) -> Upscaled:
        """Upscale one image ×4.

        If the server goes away or is temporarily unavailable, the request is resent as soon as it is ready, until
        ``wait`` seconds have passed. This is safe: a request changes nothing on the server, and the same input, seed
        and options give the same image. Other errors and timeouts are never retried.

        Args:
            image: floating point [H, W] in [0, 1], 2 to ``preset.max_side`` pixels per side (2,048, or 512 for preset
                paper), or anything ``numpy.asarray`` converts. Above 512, in tiles, and by gRPC only.
            seed: noise seed, 0 … 2^63-1.
            steps: denoising steps, 1 … T; default: the preset's number for "ddim", T for "ddpm".
            sampler: "ddim" (default) or "ddpm" (the paper's).
            start: "noise" or, for preset paper, "lr", the noised LR latent.
            samples: number of samples, 1 … 16; the spread of two or more shows where detail was guessed.
            output: "sample" (the first) or "mean".
            faithful: whether reducing the result must give ``image``, exactly if it is clean; default: the preset's.
            degradation: how the image was reduced, one of ``pipeline.spec.DEGRADATIONS``; "auto" (default): detected.
            pixel_mm: pixel spacing of the image, in mm, if known; outside the trained range, the band is wider.
            denoiser: "auto", "onnx" or "trt".

        Raises:
            UpscaleError: see ``client.errors``.
        """
        request = self._request(
            image,
            seed,
            pixel_mm,
            steps=steps,
            sampler=sampler,
            start=start,
            samples=samples,
            output=output,
            faithful=faithful,
            degradation=degradation,
            denoiser=denoiser,
        )
        if max(request.image.shape) > MAX_SIDE:
            *_, last = self._events(request, 0)
            assert last.result is not None
            return last.result
        began = time.monotonic()
        found = self._infer(MODEL, request.arrays, request.outputs, request.preset)
        return request.result(found, time.monotonic() - began)

    def stream(
        self, image: Any, *, previews: int = 0, seed: int = 0, pixel_mm: float | None = None, **options: Any
    ) -> Iterator[Event]:
        """Upscale one image ×4 like ``upscale``, and yield events while the server works, by gRPC only.

        Closing the iterator cancels the work on the server. If the server goes away, it starts anew.

        Args:
            image: as for ``upscale``.
            previews: number of intermediate images to send; none of images with a side above 512 pixels.
            seed: as for ``upscale``.
            pixel_mm: as for ``upscale``.
            options: the other options of ``upscale``.

        Raises:
            UpscaleError: see ``client.errors``; at once for what the client checks, otherwise while iterating.
        """
        request = self._request(image, seed, pixel_mm, **options)
        validated(whole_number, "previews", previews, 0, request.preset.diffusion.T)
        return self._events(request, previews)

    def _request(self, image: Any, seed: int, pixel_mm: float | None, **options: Any) -> Request:
        chosen, preset = self.check(seed, **options), self.preset
        array = validated(gray_image, image, preset.max_side)
        size = None if pixel_mm is None else validated(check_pixel_mm, pixel_mm)
        return Request(array, int(seed), size, chosen, preset, self._tells_model)

    def _events(self, request: Request, previews: int) -> Iterator[Event]:
        """Return the events of a request; raise BadRequest at once if the protocol cannot carry them."""
        if not isinstance(self._wire, wire.Grpc):
            raise BadRequest(
                f"'protocol' must be 'grpc' for progress and for images with a side above {MAX_SIDE} pixels, got "
                f"'{self.protocol}'"
            )
        return self._receive(self._wire, request, previews)

    def _receive(self, connection: wire.Grpc, request: Request, previews: int) -> Iterator[Event]:
        arrays = {**request.arrays, "previews": np.array([[previews]])}
        outputs = [*request.outputs, "step", "steps", "top", "left", *(["preview"] if previews else [])]
        large = max(request.image.shape) > MAX_SIDE
        began, tiles = time.monotonic(), Tiles(request.image.shape)
        ask = partial(connection.stream, STREAM, arrays, outputs, self.timeout)
        for found in self._answers(ask, request.preset):
            step, steps = int(found["step"][0, 0]), int(found["steps"][0, 0])
            if "upscaled" in found and large:
                tiles.add(found)
            if "upscaled" in found and step == steps:
                whole = tiles.whole() if large else found
                yield Event(step, steps, result=request.result(whole, time.monotonic() - began))
            else:
                yield Event(step, steps, found["preview"][0] if "preview" in found else None)


def validated(check: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call a function of ``pipeline.method.options``, translating its error to ``BadRequest``."""
    try:
        return check(*args, **options)
    except InvalidRequest as error:
        raise BadRequest(str(error)) from error
