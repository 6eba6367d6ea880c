"""Upscale with a single call to the server's model ``superres_onnx``, bypassing the Python model ``superres``.

With a native backend for the networks, the server runs no Python. Noise, padding and error estimates are computed here,
so that images equal those of ``Client`` with default options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.api import Client, validated
from client.errors import BadRequest, ServerError
from pipeline.method.options import check_seed, gray_image
from pipeline.method.upscale import Array, Result, fused_generator, upscale
from pipeline.models import fused_model


@contextlib.contextmanager
def connect(
    url: str | None = None,
    *,
    wait: float = 10,
    timeout: float = 600,
    tls: bool = False,
    ca: Path | str | None = None,
    token: str | None = None,
) -> Iterator[Callable[[Sequence[Any], Sequence[int]], list[Result]]]:
    """Yield a function that upscales images of one shape, as for ``Client.upscale``, with one seed per image.

    Args:
        url: gRPC address, host:port.
        wait: maximum seconds to wait for the server, when connecting and after it went away.
        timeout: maximum seconds per request.
        tls: whether to use TLS.
        ca: file of certificates to trust, as for ``Client``.
        token: sent with every call.

    Raises:
        UpscaleError: there is no ready server, or its preset has no such model. The function raises it if an image
            is invalid or the server fails.
    """
    with Client(url, wait=wait, timeout=timeout, tls=tls, ca=ca, token=token) as client:
        preset = client.preset
        if preset.fused != "superres_onnx":
            raise ServerError(f"preset '{preset.name}' has no model superres_onnx: use client.Client")
        model = fused_model(preset)
        outputs = [tensor.name for tensor in model.outputs]

        def call(**arrays: Array) -> tuple[Array, ...]:
            found = client._infer(model, arrays, outputs, preset)
            return tuple(found[name] for name in outputs)

        def upscale_all(images: Sequence[Any], seeds: Sequence[int]) -> list[Result]:
            for name, values in (("images", images), ("seeds", seeds)):
                if not isinstance(values, Iterable):
                    raise BadRequest(f"'{name}' must be a list, got a {type(values).__name__}")
            arrays = [validated(gray_image, image).astype(np.float32) for image in images]
            numbers = [validated(check_seed, seed) for seed in seeds]
            if not arrays:
                raise BadRequest("there must be at least one image, got none")
            if len(arrays) != len(numbers):
                raise BadRequest(f"there must be one seed per image, got {len(numbers)} for {len(arrays)}")
            if len(shapes := {array.shape for array in arrays}) > 1:
                shown = ", ".join(f"{height}×{width}" for height, width in sorted(shapes))
                raise BadRequest(f"all images must have the same shape, got {shown} pixels")
            return upscale(arrays, numbers, fused_generator(call, preset), preset)

        yield upscale_all
