"""What every part of the system agrees on: names, limits, and what a tensor and a model are. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["FP32", "INT32", "INT64", "BOOL", "STRING"]
SamplerName = Literal["ddpm", "ddim"]
Start = Literal["noise", "lr"]
ScheduleName = Literal["linear", "cosine"]
Prediction = Literal["eps", "v", "x0"]
Condition = Literal["latent", "lr"]
Output = Literal["sample", "mean"]
ReductionName = Literal["cubic", "area", "bilinear", "bicubic", "lanczos", "nearest"]

SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim")
STARTS: tuple[Start, ...] = ("noise", "lr")
OUTPUTS: tuple[Output, ...] = ("sample", "mean")
DENOISERS: tuple[str, ...] = ("auto", "onnx", "trt")
REDUCTIONS: tuple[ReductionName, ...] = ("cubic", "area", "bilinear", "bicubic", "lanczos", "nearest")
"""How an image is made four times smaller: OpenCV's cubic, the paper's; means of squares; Pillow's three, which look at
all pixels; every fourth pixel."""
PROTOCOL: ReductionName = "cubic"
OTHER = "other"
"""What a reduction is called that is none of these."""
DEGRADATIONS: tuple[str, ...] = ("auto", *REDUCTIONS)
"""What a request may say of its image; "auto": the restorer finds out, or, of a preset that has none, the paper's."""
HISTORY = len(REDUCTIONS) + 2
"""Numbers that tell how likely each reduction of an LR image is, and another, and what noise and JPEG changed."""

PRESENTATIONS = tuple((turns, inverted) for inverted in (False, True) for turns in range(4))
"""How an image may be presented: turned counterclockwise by so many times 90°, and inverted or not. The networks learnt
from the first."""

LEAST_PIXELS = 32 * 32
"""Of an LR image that tells how it was made and how it is presented."""

TOLD = HISTORY + len(PRESENTATIONS)
"""Numbers that models tell of an LR image: its history, and how likely each presentation is."""

SCALE = 4
"""Upscaling factor: an H×W image becomes 4H×4W."""

INT8_FILE = "model_int8.onnx"
"""Beside ``model.onnx``: the same network with its convolutions in INT8."""

MIN_SIDE, MAX_SIDE = 2, 512
"""Sides of a low-resolution image, in pixels. Reflection padding needs two; at 512 the paper's decoder takes 5 GiB."""

MAX_BATCH = 16
"""Images that the networks take in one call, and requests that the server batches."""

MAX_BATCH_PIXELS = MAX_SIDE**2
"""LR pixels that go through the networks together: one image of the largest size, or many small ones."""

LEAP = 10
"""Denoising steps that one call of model ``denoise`` takes."""

MAX_SAMPLES = 16
"""Samples of one image that a request may ask for."""

NOISY = 1.5 / 255
"""Standard deviation, in [0, 1], of what noise and compression changed in an image from which it is called noisy."""

PIXEL_MM = (0.01, 50.0)
"""Distances of an LR image's pixels that are believed, in mm."""

UNKNOWN = -1.0
"""The spread of a single sample, where it has no scatter, and an error that is not expected; JSON has no NaN."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Tensor:
    """A model input or output as Triton sees it: ``dims`` without the batch axis, -1 for any size."""

    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    optional: bool = False
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Model:
    """A directory of the model repository."""

    name: str
    backend: Literal["onnxruntime", "openvino", "tensorrt", "python"]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    warmup: tuple[tuple[int, ...], ...] = ()
    """Input dims, one tuple an input, of a request that Triton runs before it calls the model ready."""
    preset: str | None = None
    """The preset whose method the model runs, of the model that runs it."""

    @property
    def input_names(self) -> list[str]:
        return [tensor.name for tensor in self.inputs]
