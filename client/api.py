"""Upscale arrays on the server: ``with Client() as c: c.upscale(image)``. NumPy and tritonclient, no torch.

Errors, all of them ``UpscaleError``:

    UpscaleError
    ├── BadRequest         an argument, the image or an option is not allowed (found here or by the server)
    ├── ServerError        the server answered that it failed, or did not answer in time
    ├── ServerUnavailable  no ready server at that address within the limit; the message says what is wrong there
    ├── ServerLost         the server went away during a request and did not serve it within the limit
    └── ClientClosed       the client was closed before the request or during it
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from client import address, wire
from pipeline.method.images import Image
from pipeline.method.options import InvalidRequest, Options, check_pixel_mm, check_seconds, check_seed, gray_image
from pipeline.models import superres_model
from pipeline.presets import DEFAULT, PRESETS, Preset
from pipeline.spec import NOISY, OTHER, UNKNOWN, Model

T = TypeVar("T")

MODEL = superres_model(DEFAULT)
"""Its name and tensors are the same for every preset."""

DEFAULT_URL = {protocol: f"localhost:{port}" for protocol, port in address.PORTS.items()}
ATTEMPT = (0.5, 10.0)
"""Seconds that a server may take to say that it is ready: at least, though ``wait`` is shorter, and at most."""
PAUSES = (0.05, 1.0)
"""Seconds between attempts: the first, and the longest; each is twice the one before."""
PROBE_LIMIT = 1.0
"""Seconds to find out what is wrong with an address."""


class UpscaleError(Exception):
    """Anything that kept an image from being upscaled."""


class BadRequest(UpscaleError):
    """An argument, the image or an option is not allowed; the message names it and what is allowed."""


class ServerError(UpscaleError):
    """The server answered that it failed, or did not answer in time."""


class ServerUnavailable(UpscaleError):
    """No ready server at the address within the limit."""


class ServerLost(UpscaleError):
    """The server went away during a request and did not serve it within the limit."""


class ClientClosed(UpscaleError):
    """The client was closed before the request or during it."""


@dataclass(frozen=True)
class Upscaled:
    """An upscaled image and what made it."""

    image: Image
    """float32 [4H, 4W] in [0, 1]"""
    spread: Image | None
    """float32 [4H, 4W], half the width of the band around the result that holds nine of ten true pixels; None where
    nothing tells it: of one sample, unless the preset's networks do"""
    lr_error: float
    """largest difference, of [0, 1], between the LR image and the result, reduced as the image was"""
    degradation: str
    """how the image was reduced, as told or found: one of ``pipeline.spec.REDUCTIONS``, or "other" """
    noise: float
    """standard deviation of what noise and compression changed in the image, as found, in [0, 1]"""
    expected_error: float | None
    """mean absolute error to be expected, in [0, 1]; None where nothing tells it"""
    pixel_mm: float | None
    """distance of the image's pixels, in mm, as told"""
    preset: str
    seed: int
    options: Options
    seconds: float
    """from sending the request to holding the answer"""

    def notes(self) -> list[str]:
        """What was unusual about the image, in words."""
        preset, found = PRESETS[self.preset], []
        if self.pixel_mm is not None and preset.pixel_mm is not None and preset.is_unusual_spacing(self.pixel_mm):
            low, high = preset.pixel_mm
            found.append(f"pixels of {self.pixel_mm:.3g} mm, the networks were trained on {low:g} to {high:g} mm")
        if self.noise > NOISY:
            found.append(f"noise or compression of {255 * self.noise:.1f} gray levels: not followed exactly")
        if self.degradation == OTHER:
            found.append("reduced in none of the known ways: not followed exactly")
        usual = preset.band.usual
        if self.expected_error is not None and usual is not None and self.expected_error > usual:
            found.append(
                f"unlike what the networks were trained on: expected error {255 * self.expected_error:.1f} gray levels"
            )
        return found


class Client:
    """A connection to the server; it may be used from several threads at once. ``preset`` is what the server runs.

    Args:
        url: host:port; by default localhost with Triton's default port of the protocol.
        protocol: "grpc" or "http".
        wait: seconds to wait for the server to be ready, when connecting and when it went away; 0: one attempt.
        timeout: seconds that one request may take. Both may be infinite.

    Raises:
        BadRequest: an argument is not allowed.
        ServerUnavailable: no ready server within ``wait``.
        ServerError: its preset is not known here.
    """

    preset: Preset

    def __init__(
        self,
        url: str | None = None,
        *,
        protocol: Literal["grpc", "http"] = "grpc",
        wait: float = 10,
        timeout: float = 600,
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
        self._closed = threading.Event()
        self._wire: wire.Wire = wire.Grpc(self.url) if protocol == "grpc" else wire.Http(*self._address)
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
        """Close all connections; requests under way in other threads end with ``ClientClosed``."""
        self._closed.set()
        self._wire.close()

    def _ask(self, function: Callable[[], T]) -> T:
        """What the server answers.

        Raises:
            NotServing: it is not there.
            UpscaleError: anything else.
        """
        try:
            if not self._closed.is_set():
                return function()
        except Exception as error:
            if self._closed.is_set():
                pass  # whatever it is, that is why
            elif isinstance(error, wire.Invalid):
                raise BadRequest(str(error)) from error
            elif isinstance(error, wire.TimedOut):
                raise ServerError(f"no answer from {self.url} within {self.timeout:g} s") from error
            elif isinstance(error, wire.Failed):
                raise ServerError(f"server {self.url}: {error}") from error
            else:
                raise
        raise ClientClosed(f"the client of {self.url} is closed")

    def _pause(self, pause: float, deadline: float) -> float:
        """Wait, but not beyond the deadline; returns how long to wait next time."""
        self._closed.wait(max(0.0, min(pause, deadline - time.monotonic())))
        return min(2 * pause, PAUSES[1])

    def wait_until_ready(self) -> None:
        """Return when the server can upscale.

        Raises:
            ServerUnavailable: it could not within ``wait`` seconds.
            ServerError: its preset is not known here.
        """
        self._wait_until_ready(time.monotonic() + self.wait)

    def _wait_until_ready(self, deadline: float) -> None:
        pause, least, most = PAUSES[0], *ATTEMPT
        while True:
            limit = min(max(least, deadline - time.monotonic()), most)
            try:
                config = self._ask(partial(self._wire.config, MODEL.name, limit))
                if config is not None:
                    break
            except ClientClosed:
                raise
            except (wire.NotServing, UpscaleError):
                pass  # what is wrong is found out in the end
            if time.monotonic() >= deadline:
                raise ServerUnavailable(
                    f"no server ready at {self.url} ({self.protocol}) within {self.wait:g} s: {self._problem()}"
                )
            pause = self._pause(pause, deadline)
        name = config.get("parameters", {}).get("preset", {}).get("string_value", "")
        if name not in PRESETS:
            raise ServerError(f"server {self.url} runs preset '{name}', known here are {', '.join(PRESETS)}")
        self.preset = PRESETS[name]

    def _problem(self) -> str:
        """What is wrong at the address."""
        problem = address.diagnose(*self._address, self.protocol, PROBE_LIMIT)
        if problem:
            return problem
        try:
            index = self._ask(lambda: self._wire.index(PROBE_LIMIT))
        except (wire.NotServing, UpscaleError) as error:
            return " ".join(str(error).split())
        models = [entry for entry in index if entry["name"] == MODEL.name]
        if not models:
            return f"it serves no model '{MODEL.name}'"
        reason = models[0].get("reason") or models[0].get("state") or "not loaded"
        return f"its model '{MODEL.name}' is not ready ({' '.join(reason.split())})"

    def _infer(
        self, model: Model, arrays: wire.Arrays, outputs: Sequence[str], preset: Preset
    ) -> dict[str, NDArray[Any]]:
        """Run a model of the server; as long as it is not serving, again, until ``wait`` is over."""
        deadline, pause = math.inf, PAUSES[0]
        while True:
            try:
                return self._ask(lambda: self._wire.infer(model, arrays, outputs, self.timeout))
            except wire.NotServing as error:
                lost = error
            gone = f"server {self.url} went away during a request and"
            late = f"within {self.wait:g} s: {' '.join(str(lost).split())}"
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

    def check(self, seed: int = 0, **options: Any) -> Options:
        """The options of ``upscale`` with the defaults of the server's preset.

        Raises:
            BadRequest: one is not allowed.
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

        Where the server goes away, or answers that it does not serve now, the request is sent again as soon as it is
        ready, until ``wait`` seconds have passed. That is safe: a request changes nothing on the server, and the same
        input, seed and options give the same image. Other errors, and a timeout, are never tried again.

        Args:
            image: floating point [H, W] in [0, 1], 2 to 512 pixels a side, or what ``numpy.asarray`` makes one of.
            seed: of the noise, 0 … 2^63-1.
            steps: denoising steps, 1 … T; unless given, the preset's few for "ddim" and T for "ddpm".
            sampler: "ddim", the default, or "ddpm", the paper's.
            start: "noise", or, of preset paper, "lr", the noised LR latent.
            samples: how many to draw, 1 … 16; from two on their spread tells where they were guessed.
            output: "sample", the first of them, or "mean".
            faithful: whether the result must reduce to ``image``, exactly where that is clean; unless given, the
                preset's choice.
            degradation: how the image was reduced, one of ``pipeline.spec.DEGRADATIONS``; "auto", the default: found
                out.
            pixel_mm: distance of the image's pixels, in mm, where it is known: where the networks were trained on
                others, the band is wider.
            denoiser: "auto", "onnx" or "trt".

        Raises:
            UpscaleError: see the module.
        """
        options = self.check(
            seed,
            steps=steps,
            sampler=sampler,
            start=start,
            samples=samples,
            output=output,
            faithful=faithful,
            degradation=degradation,
            denoiser=denoiser,
        )
        array = validated(gray_image, image)
        size = {} if pixel_mm is None else {"pixel_mm": validated(check_pixel_mm, pixel_mm)}
        preset = self.preset
        values = {name: np.array([[value]]) for name, value in {"seed": seed, **size, **asdict(options)}.items()}
        banded = preset.band.scale(options.samples) is not None
        outputs = ["upscaled", "lr_error", "found", "noise", "expected_error", *(["spread"] if banded else [])]
        began = time.monotonic()
        found = {
            name: of_all[0]
            for name, of_all in self._infer(MODEL, {"image": array[None], **values}, outputs, preset).items()
        }
        return Upscaled(
            found["upscaled"],
            found.get("spread"),
            float(found["lr_error"][0]),
            found["found"][0].decode(),
            float(found["noise"][0]),
            None if found["expected_error"][0] == UNKNOWN else float(found["expected_error"][0]),
            size.get("pixel_mm"),
            preset.name,
            int(seed),
            options,
            seconds=time.monotonic() - began,
        )


def validated(check: Callable[..., T], *args: Any, **options: Any) -> T:
    """What a function of ``pipeline.method.options`` returns, with its error as one of this module's."""
    try:
        return check(*args, **options)
    except InvalidRequest as error:
        raise BadRequest(str(error)) from error
