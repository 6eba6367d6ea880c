"""Names, limits, and tensor and model types shared by the whole system. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["FP32", "INT32", "INT64", "BOOL", "STRING"]
SamplerName = Literal["ddpm", "ddim"]
Start = Literal["noise", "lr"]
ScheduleName = Literal["linear", "cosine"]
Prediction = Literal["eps", "v"]
Condition = Literal["latent", "lr"]
Output = Literal["sample", "mean"]
ReductionName = Literal["cubic", "area", "bilinear", "bicubic", "lanczos", "nearest"]

SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim")
STARTS: tuple[Start, ...] = ("noise", "lr")
OUTPUTS: tuple[Output, ...] = ("sample", "mean")
DENOISERS: tuple[str, ...] = ("auto", "onnx", "trt")
REDUCTIONS: tuple[ReductionName, ...] = ("cubic", "area", "bilinear", "bicubic", "lanczos", "nearest")
"""Ways to reduce an image fourfold: OpenCV's cubic, as in the paper; area means; Pillow's three antialiased kernels;
every fourth pixel."""
PROTOCOL: ReductionName = "cubic"
OTHER = "other"
"""Name of any other reduction."""
DEGRADATIONS: tuple[str, ...] = ("auto", *REDUCTIONS)
"""Degradations a request may state; "auto": detected by the restorer or, without one, the paper's."""
HISTORY = len(REDUCTIONS) + 2
"""Values per LR image: the probability of each reduction and of any other, and the effect of noise and JPEG."""

PRESENTATIONS = tuple((turns, inverted) for inverted in (False, True) for turns in range(4))
"""Possible presentations of an image: (counterclockwise quarter turns, inverted). The networks expect the first."""

MIN_PIXELS = 32 * 32
"""Minimum size of an LR image from which its history and presentation are estimated."""

ESTIMATES = HISTORY + len(PRESENTATIONS)
"""Values that models estimate per LR image: its history and the probability of each presentation."""

SCALE = 4
"""Upscaling factor: an H×W image becomes 4H×4W."""

INT8_FILE = "model_int8.onnx"
"""File beside ``model.onnx`` with the same network, its convolutions in INT8."""

MIN_SIDE, MAX_SIDE = 2, 512
"""Range of a low-resolution image's sides, in pixels. Reflection padding needs 2; 512 needs 5 GiB (paper's decoder)."""

MAX_TILED_SIDE = 2048
"""Maximum side of images that are upscaled in tiles (``pipeline.method.tiles``), where the preset's networks can."""

MAX_BATCH = 16
"""Maximum images per network call, and requests per server batch."""

MAX_BATCH_PIXELS = MAX_SIDE**2
"""Maximum LR pixels per network call: one image of the largest size, or many small ones."""

UNROLLED_STEPS = 10
"""Denoising steps per call of model ``denoise``."""

MAX_WORK = 2**27
"""Maximum work of a request: LR pixels × samples × denoising steps over all its images; minutes on two cores."""

MAX_WORK_VARIABLE = "CXR_SUPERRES_MAX_WORK"
"""Environment variable of the server with another maximum."""

MAX_QUEUE, QUEUE_TIMEOUT = 128, 600
"""Maximum requests that wait for a model, and seconds that one waits for ``superres``; more are refused at once."""

PRIORITIES = {"interactive": 1, "bulk": 2}
"""Priority ⇒ Triton's level: a waiting interactive request overtakes all bulk ones."""

INSTANCES = 2
"""Processes of ``superres``: images of different shapes or options run concurrently."""
RESTARTS_VARIABLE = "CXR_SUPERRES_RESTARTS"
"""Environment variable of the server with its restarts by reason, such as ``process=2 server=1``."""
PROBE_VARIABLE = "CXR_SUPERRES_PROBE"
"""Environment variable of the server with the ID of the supervisor's requests, a secret of every start."""
CACHE_VARIABLE = "CXR_SUPERRES_CACHE_MB"
"""Environment variable of the server with the memory for results of earlier requests, in MB; 0: none."""
AUDIT_VARIABLE = "CXR_SUPERRES_AUDIT"
"""Environment variable of the server with the file of one JSON line per result."""
CALLER = "cxr-caller"
"""Header, and parameter of a request, with the name of the token that a proxy accepted."""

REQUEST = "cxr-request"
"""Header in which the proxy gives every request an ID, and the parameter of requests that Triton makes of it."""
REQUEST_ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
GONE_VARIABLE = "CXR_SUPERRES_GONE"
"""Environment variable with a folder of empty files, whose names are IDs of requests whose callers are gone."""

MAX_SAMPLES = 16
"""Maximum samples per image in a request."""

NOISY = 1.5 / 255
"""Standard deviation of noise and compression, in [0, 1] of gray, above which an image counts as noisy."""

PIXEL_MM = (0.01, 50.0)
"""Plausible range of an LR image's pixel spacing, in mm."""

UNKNOWN = -1.0
"""Value sent for a spread or expected error that is not available; JSON has no NaN."""

MAX_SEED = 2**63 - 1

MODEL_VARIABLE = "CXR_SUPERRES_MODEL"
"""Environment variable of the server with its model hash (``pipeline.hashes``); "" or missing: unknown."""


@dataclass(frozen=True)
class Tensor:
    """A model's input or output in Triton: ``dims`` exclude the batch axis; -1 is any size."""

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
    """Dims of each input in the warm-up request that Triton runs before it reports the model ready."""
    preset: str | None = None
    """For the models that run the method: the preset they implement."""
    max_batch: int = MAX_BATCH
    decoupled: bool = False
    """Whether a request gets several responses."""

    @property
    def input_names(self) -> list[str]:
        return [tensor.name for tensor in self.inputs]
