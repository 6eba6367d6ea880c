"""Upscale arrays on the server: ``with Client() as c: c.upscale(image)``. NumPy and tritonclient, no torch.

Errors, all of them ``UpscaleError``:

    UpscaleError
    ├── BadRequest         the image or an option is not allowed (found here or by the server); nothing to retry
    ├── ServerError        the server answered that it failed
    ├── ServerUnavailable  nothing ready at that address within the limit
    └── ServerLost         the connection broke during a request, and again when it was sent once more
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, Literal

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.http
from geventhttpclient.response import HTTPParseError
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from pipeline import request
from pipeline.images import Image
from pipeline.spec import DEFAULT, PRESETS, Preset, superres_model

MODEL = superres_model(DEFAULT)
"""Its name and tensors are the same for every preset."""

DEFAULT_URL = {"grpc": "localhost:8001", "http": "localhost:8000"}
LOST_STATUS = {"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"}
BAD_STATUS = {"StatusCode.INVALID_ARGUMENT", "400"}


class UpscaleError(Exception):
    """Anything that kept an image from being upscaled."""


class BadRequest(UpscaleError):
    """The image or an option is not allowed; the message names it and what is allowed."""


class ServerError(UpscaleError):
    """The server answered that it failed, or did not answer in time."""


class ServerUnavailable(UpscaleError):
    """No ready server at the address within the limit."""


class ServerLost(UpscaleError):
    """The connection broke during a request, and again when it was sent once more."""


class _ConnectionLost(Exception):
    """The request got no answer because the connection could not be made or broke."""


@dataclass(frozen=True)
class Upscaled:
    """An upscaled image and what made it."""

    image: Image
    """float32 [4H, 4W] in [0, 1]"""
    spread: Image | None
    """float32 [4H, 4W], half the width of the band around the samples' mean that holds nine of ten true pixels; None
    for one sample"""
    lr_error: float
    """largest difference, of [0, 1], between the LR image and the result's reduction to its size"""
    preset: str
    seed: int
    options: request.Options
    seconds: float
    """from sending the request to holding the answer"""


class Client:
    """A connection to the server; it may be used from several threads at once. ``preset`` is what the server runs.

    Args:
        url: host:port; by default localhost with Triton's default port of the protocol.
        protocol: "grpc" or "http".
        wait: seconds to wait for the server to be ready, when connecting and when it went away.
        timeout: seconds that one request may take.

    Raises:
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
        self.protocol = protocol
        self.url = url or DEFAULT_URL[protocol]
        self.wait, self.timeout = wait, timeout
        self._local = threading.local()
        self._opened: list[Any] = []
        self.wait_until_ready()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        while self._opened:
            self._opened.pop().close()

    @property
    def _library(self) -> ModuleType:
        return tritonclient.grpc if self.protocol == "grpc" else tritonclient.http

    def _connection(self) -> Any:
        """This thread's connection: tritonclient's HTTP client must not be shared."""
        if not hasattr(self._local, "connection"):
            options = {} if self.protocol == "grpc" else {"network_timeout": self.timeout}
            self._local.connection = self._library.InferenceServerClient(self.url, **options)
            self._opened.append(self._local.connection)
        return self._local.connection

    def _ask(self, function: Callable[[], Any]) -> Any:
        """Call tritonclient and translate whatever it raises."""
        try:
            return function()
        except InferenceServerException as error:
            status, message = str(error.status()), str(error.message())
            if status in LOST_STATUS:
                raise _ConnectionLost(message) from error
            if status == "StatusCode.DEADLINE_EXCEEDED":
                raise ServerError(f"no answer from {self.url} within {self.timeout:g} s") from error
            if status in BAD_STATUS:
                raise BadRequest(message) from error
            raise ServerError(f"server {self.url}: {message}") from error
        except grpc.RpcError as error:
            raise _ConnectionLost(str(error)) from error
        except TimeoutError as error:
            raise ServerError(f"no answer from {self.url} within {self.timeout:g} s") from error
        except (
            OSError,
            HTTPParseError,
            RuntimeError,
        ) as error:  # RuntimeError: geventhttpclient cannot resolve the host
            raise _ConnectionLost(str(error)) from error

    def _ready_preset(self, limit: float) -> str | None:
        """The preset of the model, None where it is not ready; an answer that takes over ``limit`` s counts as none."""
        options = {} if self.protocol == "grpc" else {"connection_timeout": limit, "network_timeout": limit}
        with self._library.InferenceServerClient(self.url, **options) as connection:
            timeout = {"client_timeout": limit} if self.protocol == "grpc" else {}
            if not connection.is_model_ready(MODEL.name, **timeout):
                return None
            if self.protocol == "grpc":
                config = connection.get_model_config(MODEL.name, as_json=True, **timeout)["config"]
            else:
                config = connection.get_model_config(MODEL.name)
            return str(config.get("parameters", {}).get("preset", {}).get("string_value", ""))

    def wait_until_ready(self) -> None:
        """Return when the server can upscale.

        Raises:
            ServerUnavailable: it could not within ``wait`` seconds.
            ServerError: its preset is not known here.
        """
        deadline = time.monotonic() + self.wait
        while True:
            limit = max(0.2, deadline - time.monotonic())
            try:
                name = self._ask(partial(self._ready_preset, limit))
                if name is not None:
                    break
                reason = f"its model '{MODEL.name}' is not ready"
            except (_ConnectionLost, UpscaleError):
                reason = "nothing answers"
            if time.monotonic() >= deadline:
                raise ServerUnavailable(
                    f"no server ready at {self.url} ({self.protocol}) within {self.wait:g} s: {reason}; "
                    "start one with `python -m pipeline.serve`"
                )
            time.sleep(0.1)
        if name not in PRESETS:
            raise ServerError(f"server {self.url} runs preset '{name}', known here are {', '.join(PRESETS)}")
        self.preset = PRESETS[name]

    def _inputs(self, image: Image, options: dict[str, Any]) -> list[Any]:
        values = {"image": image[None], **{name: np.array([[value]]) for name, value in options.items()}}
        inputs = []
        for tensor in MODEL.inputs:
            if tensor.name in values:
                dtype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
                array = values[tensor.name].astype(tritonclient.utils.triton_to_np_dtype(dtype))
                inputs.append(self._library.InferInput(tensor.name, array.shape, dtype))
                inputs[-1].set_data_from_numpy(array)
        return inputs

    def _infer(self, inputs: list[Any], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        limit = {"client_timeout": self.timeout} if self.protocol == "grpc" else {}
        wanted = [self._library.InferRequestedOutput(name) for name in outputs]
        answer = self._ask(lambda: self._connection().infer(MODEL.name, inputs, outputs=wanted, **limit))
        return {name: answer.as_numpy(name)[0] for name in outputs}

    def check(self, seed: int = 0, **options: Any) -> request.Options:
        """The options of ``upscale`` with the defaults of the server's preset.

        Raises:
            BadRequest: one is not allowed.
        """
        try:
            request.check_seed(seed)
            return request.Options.of(self.preset, **options)
        except request.BadRequest as error:
            raise BadRequest(str(error)) from error

    def upscale(
        self,
        image: NDArray[Any],
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        start: str | None = None,
        samples: int | None = None,
        output: str | None = None,
        faithful: bool | None = None,
        denoiser: str | None = None,
    ) -> Upscaled:
        """Upscale one image ×4.

        Where the connection breaks, the request is sent once more when the server is ready again. That is safe: a
        request changes nothing on the server, and the same input, seed and options give the same image. An answer
        that is an error, and a timeout, are never tried again.

        Args:
            image: floating point [H, W] in [0, 1], 2 to 512 pixels a side.
            seed: of the noise, 0 … 2^63-1.
            steps: denoising steps, 1 … T; unless given, the preset's few for "ddim" and T for "ddpm".
            sampler: "ddim", the default, or "ddpm", the paper's.
            start: "noise", or, of preset paper, "lr", the noised LR latent.
            samples: how many to draw, 1 … 16; from two on their spread tells where they were guessed.
            output: "sample", the first of them, or "mean".
            faithful: whether the result must downscale to ``image``; unless given, the preset's choice.
            denoiser: "auto", "onnx" or "trt".

        Raises:
            UpscaleError: see the module.
        """
        if image.ndim != 2:
            raise BadRequest(f"'image' has shape {image.shape}, needed is [H, W], one gray image")
        if not np.issubdtype(image.dtype, np.floating):
            raise BadRequest(f"'image' is {image.dtype}, needed is floating point from 0 to 1")
        options = self.check(
            seed,
            steps=steps,
            sampler=sampler,
            start=start,
            samples=samples,
            output=output,
            faithful=faithful,
            denoiser=denoiser,
        )
        try:
            request.check_image(image)
        except request.BadRequest as error:
            raise BadRequest(str(error)) from error
        preset = self.preset.name
        inputs = self._inputs(image, {"seed": seed, **asdict(options)})
        outputs = ["upscaled", "lr_error", *(["spread"] if options.samples > 1 else [])]
        began = time.monotonic()
        try:
            found = self._infer(inputs, outputs)
        except _ConnectionLost:
            try:
                self.wait_until_ready()
                if self.preset.name != preset:
                    raise ServerLost(
                        f"server {self.url} went away during a request and runs preset '{self.preset.name}' now, "
                        f"not '{preset}'"
                    )
                found = self._infer(inputs, outputs)
            except ServerUnavailable as error:
                raise ServerLost(
                    f"server {self.url} went away during a request and was not back within {self.wait:g} s"
                ) from error
            except _ConnectionLost as error:
                raise ServerLost(f"server {self.url} went away twice during a request: {error}") from error
        return Upscaled(
            found["upscaled"],
            found.get("spread"),
            float(found["lr_error"][0]),
            preset,
            seed,
            options,
            seconds=time.monotonic() - began,
        )
