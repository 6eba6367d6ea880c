"""Triton model ``superres``: decodes requests, runs them together through the networks, answers each.

The method itself is ``pipeline.superres``; its networks are the models ``vae_encoder``, ``unet_onnx`` or ``unet_trt``
and ``vae_decoder`` of this server, called by BLS.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.request import BadRequest, Options, check_image, check_seed
from pipeline.spec import MAX_SIDE, PAPER
from pipeline.superres import Array, Networks, upscale

PRESET = PAPER
OPTIONS = ("seed", "steps", "sampler", "start", "denoiser")
MAX_BATCH_PIXELS = MAX_SIDE**2
"""LR pixels that go through the networks together: one image of the largest size, or many small ones."""


@dataclass(frozen=True)
class Job:
    """Image ``row`` of request ``request`` of a batch."""

    request: int
    row: int
    image: Array
    seed: int
    options: Options


def values(request: Any, name: str, count: int) -> list[Any]:
    """The values of an optional [B, 1] tensor, one an image, as Python objects; None where it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return [None] * count
    return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in tensor.as_numpy().reshape(-1).tolist()]


def call(model: str, output: str, **inputs: Array) -> Array:
    """Run a model of this server and return its output in CPU memory."""
    response = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    ).exec()
    if response.has_error():
        raise pb_utils.TritonModelException(f"{model}: {response.error().message()}")
    result: Array = pb_utils.get_output_tensor_by_name(response, output).as_numpy()
    return result


def networks(denoiser: str) -> Networks:
    """The networks as models of this server; "auto" is the ONNX U-Net."""
    unet = "unet_trt" if denoiser == "trt" else "unet_onnx"
    return Networks(
        encode=lambda image: call("vae_encoder", "latent", image=image),
        denoise=lambda x, t: call(unet, "eps", x=x, t=t),
        decode=lambda latent: call("vae_decoder", "image", latent=latent),
    )


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.plan = Path(args["model_repository"]).parent / "unet_trt" / "1" / "model.plan"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Upscale all images, together where shape and options agree; an error answers its own requests only."""
        errors: dict[int, Exception] = {}
        groups: dict[Any, list[Job]] = defaultdict(list)
        for index, request in enumerate(requests):
            try:
                for job in self._decode(index, request):
                    groups[job.image.shape, job.options].append(job)
            except Exception as error:  # whatever is wrong with a request is its own answer, not the batch's
                errors[index] = error
        results: dict[int, dict[int, Array]] = defaultdict(dict)
        for (shape, options), jobs in groups.items():
            size = max(1, MAX_BATCH_PIXELS // (shape[0] * shape[1]))
            for chunk in (jobs[i : i + size] for i in range(0, len(jobs), size)):
                try:
                    images = upscale(
                        [job.image for job in chunk],
                        [job.seed for job in chunk],
                        networks(options.denoiser),
                        PRESET,
                        steps=options.steps,
                        sampler=options.sampler,
                        start=options.start,
                    )
                except Exception as error:  # whatever fails is these requests' answer, and the server lives on
                    errors.update({job.request: error for job in chunk})
                else:
                    for job, image in zip(chunk, images, strict=True):
                        results[job.request][job.row] = image
        return [self._respond(errors.get(i), results[i]) for i in range(len(requests))]

    def _decode(self, index: int, request: Any) -> list[Job]:
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        check_image(images)
        seeds, *options = (values(request, n, len(images)) for n in OPTIONS)
        jobs = []
        for row, (image, seed, *chosen) in enumerate(zip(images, seeds, *options, strict=True)):
            check_seed(seed or 0)
            jobs.append(Job(index, row, image, seed or 0, Options.of(PRESET, *chosen)))
        if any(job.options.denoiser == "trt" for job in jobs) and not self.plan.is_file():
            raise BadRequest(
                "'denoiser' is 'trt', but the TensorRT plan is not built: build it on the server's GPU with trtexec "
                "--onnx=unet_onnx/1/model.onnx --saveEngine=unet_trt/1/model.plan and the shapes that README names"
            )
        return jobs

    @staticmethod
    def _respond(error: Exception | None, images: dict[int, Array]) -> Any:
        if error is None:
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor("upscaled", np.stack([images[row] for row in sorted(images)]))]
            )
        code = pb_utils.TritonError.INVALID_ARG if isinstance(error, BadRequest) else pb_utils.TritonError.INTERNAL
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
