"""Upscale by one call of the server's model ``superres_onnx``, past its Python model ``superres``.

No Python runs on the server where its backend for the networks is a native one. Noise, padding and what is known of the
result are made here, so that images are those of ``Client`` with the preset's own options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from client.api import DEFAULT_URL, BadRequest, Client, ServerError
from pipeline.images import Image
from pipeline.request import check_image
from pipeline.spec import fused_model
from pipeline.superres import Array, Result, Whole, upscale


@contextlib.contextmanager
def connect(
    url: str | None = None, *, wait: float = 10
) -> Iterator[Callable[[Sequence[Image], Sequence[int]], list[Result]]]:
    """Yields the function that upscales images, [H, W] of one shape, with a seed each.

    Args:
        url: gRPC address, host:port.
        wait: seconds to wait for the server.

    Raises:
        UpscaleError: no ready server, or not one of a preset with such a model; of the function: an image is not
            allowed, or the server fails.
    """
    with Client(url, wait=wait) as client:
        preset = client.preset
    if preset.fused != "superres_onnx":
        raise ServerError(f"preset '{preset.name}' has no model superres_onnx: use client.Client")
    model = fused_model(preset)
    with tritonclient.grpc.InferenceServerClient(url or DEFAULT_URL["grpc"]) as server:

        def call(**arrays: Array) -> Array:
            inputs = [
                tritonclient.grpc.InferInput(t.name, arrays[t.name].shape, t.dtype).set_data_from_numpy(arrays[t.name])
                for t in model.inputs
            ]
            result: Array = server.infer(model.name, inputs).as_numpy(model.outputs[0].name)
            return result

        def upscale_all(images: Sequence[Image], seeds: Sequence[int]) -> list[Result]:
            try:
                for image in images:
                    check_image(image)
                return upscale(images, seeds, Whole(call, preset), preset)
            except ValueError as error:
                raise BadRequest(str(error)) from error
            except InferenceServerException as error:
                raise ServerError(f"server {url or DEFAULT_URL['grpc']}: {error.message()}") from error

        yield upscale_all
