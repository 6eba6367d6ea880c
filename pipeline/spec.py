"""What every part of the system agrees on: tensors, models, presets. Standard library only.

Everything that two places must know alike stands here once: the networks are built from it, the exporter
checks the ONNX graphs against it, the ``config.pbtxt`` files are generated from it, and the client reads
names and limits from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Dtype = Literal["FP32", "INT32", "INT64", "STRING"]
SamplerName = Literal["ddpm", "ddim"]
Start = Literal["noise", "lr"]

SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim")
STARTS: tuple[Start, ...] = ("noise", "lr")
DENOISERS: tuple[str, ...] = ("auto", "onnx", "trt")

SCALE = 4
"""Upscaling factor: an H×W image becomes 4H×4W."""

MIN_SIDE, MAX_SIDE = 2, 512
"""Sides of a low-resolution image, in pixels. Reflection padding needs two; at 512 the decoder takes 5 GiB."""

MAX_BATCH = 16
"""Images that the networks take in one call, and requests that the server batches."""

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
    backend: Literal["onnxruntime", "tensorrt", "python"]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    warmup: tuple[tuple[int, ...], ...] = ()
    """Input dims, one tuple an input, of a request that Triton runs before it calls the model ready."""
    queue_delay_us: int = 0
    """How long the dynamic batcher may hold a request back to fill a batch."""


@dataclass(frozen=True)
class DataSpec:
    """The paper's data protocol."""

    original_size: int = 1024
    hr_size: int = 256
    lr_size: int = 64
    channels: int = 3
    range: tuple[float, float] = (-1.0, 1.0)
    split: tuple[float, float, float] = (0.70, 0.20, 0.10)
    """Shares of the *patients* in training, validation and test."""


@dataclass(frozen=True)
class AugmentationSpec:
    """The paper's augmentation, LR and HR in step: ``share`` of the samples, each operation with its probability.

    Every augmented sample is turned by one of ``rotations``. The paper does not say how small a random resized crop
    may be: the crop's side is uniform in ``smallest_crop`` … 1 times the image's.
    """

    share: float = 0.70
    horizontal_flip: float = 0.50
    rotations: tuple[int, ...] = (90, 180, 270)
    random_resized_crop: float = 0.80
    smallest_crop: float = 0.80
    cutout: float = 0.30
    cutout_side: float = 0.20


@dataclass(frozen=True)
class VAESpec:
    """diffusers ``AutoencoderKL``: C×H×W in [-1, 1] ⇄ ``latent_channels``×H/``factor``×W/``factor``."""

    factor: int = 8
    channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (32, 64, 64, 96)
    layers_per_block: int = 1
    norm_groups: int = 8


@dataclass(frozen=True)
class UNetSpec:
    """The denoiser: noisy HR latent ⊕ LR latent and a timestep in, ε out."""

    in_channels: int = 8
    out_channels: int = 4
    base: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    middle_blocks: int = 2
    time_features: int = 32
    time_width: int = 128
    norm_groups: int = 8
    parameters: int = 813_220

    @property
    def factor(self) -> int:
        """What H and W of its input must be divisible by: each level halves them."""
        return 2 ** len(self.multipliers)


@dataclass(frozen=True)
class DiffusionSpec:
    """The paper's schedule, β linear over T steps, and how images are sampled unless a request says otherwise.

    The paper takes all T steps of DDPM from pure noise. With this schedule √ᾱ_T ≈ 0.22, so the network never saw pure
    noise in training, and the result is darker than the scan. Starting from the LR latent noised to T-1 mends that, and
    ten DDIM steps from there look nearer to the scan than T of DDPM (docs/results.md). So both are the default here,
    and the paper's "ddpm" and "noise" are an option each.
    """

    T: int = 300
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sampler: SamplerName = "ddim"
    ddim_steps: int = 10
    start: Start = "lr"

    def default_steps(self, sampler: SamplerName) -> int:
        """How many steps a sampler takes unless told: DDPM all T."""
        return self.T if sampler == "ddpm" else self.ddim_steps


@dataclass(frozen=True)
class Reported:
    """A row of the paper's Tables 1 and 2."""

    dataset: Literal["nih", "iu"]
    method: str
    lpips: float
    psnr: float
    ssim: float
    seconds: float | None = None


@dataclass(frozen=True)
class Preset:
    """One complete system."""

    name: str
    data: DataSpec = field(default_factory=DataSpec)
    augmentation: AugmentationSpec = field(default_factory=AugmentationSpec)
    vae: VAESpec = field(default_factory=VAESpec)
    unet: UNetSpec = field(default_factory=UNetSpec)
    diffusion: DiffusionSpec = field(default_factory=DiffusionSpec)
    reported: tuple[Reported, ...] = ()

    @property
    def lr_multiple(self) -> int:
        """What the sides of a low-resolution image are padded to: a multiple that every network can take."""
        return self.vae.factor * self.unet.factor // SCALE


PAPER = Preset(
    name="paper",
    reported=(
        Reported("nih", "bicubic", lpips=0.3472, psnr=29.59, ssim=0.9176),
        Reported("nih", "PyTorch", lpips=0.1232, psnr=27.34, ssim=0.8647, seconds=7.02),
        Reported("nih", "TensorRT", lpips=0.1223, psnr=27.11, ssim=0.8501, seconds=1.49),
        Reported("iu", "bicubic", lpips=0.3444, psnr=28.36, ssim=0.9019),
        Reported("iu", "PyTorch", lpips=0.1285, psnr=26.74, ssim=0.8621, seconds=7.11),
        Reported("iu", "TensorRT", lpips=0.1290, psnr=27.01, ssim=0.8280, seconds=1.70),
    ),
)

PRESETS = {preset.name: preset for preset in (PAPER,)}


def network_models(preset: Preset) -> tuple[Model, Model, Model]:
    """The three networks (denoiser, encoder, decoder) as models of the repository."""
    v, u, d = preset.vae, preset.unet, preset.data
    image = Tensor("image", "FP32", (v.channels, -1, -1), range=d.range)
    latent = Tensor("latent", "FP32", (v.latent_channels, -1, -1))
    z = d.hr_size // v.factor
    return (
        Model(
            "unet_onnx",
            "onnxruntime",
            inputs=(
                Tensor("x", "FP32", (u.in_channels, -1, -1)),
                Tensor("t", "FP32", (1,), range=(0.0, preset.diffusion.T - 1.0)),
            ),
            outputs=(Tensor("eps", "FP32", (u.out_channels, -1, -1)),),
            warmup=((u.in_channels, z, z), (1,)),
        ),
        Model(
            "vae_encoder",
            "onnxruntime",
            inputs=(image,),
            outputs=(latent,),
            warmup=((v.channels, d.hr_size, d.hr_size),),
        ),
        Model(
            "vae_decoder",
            "onnxruntime",
            inputs=(latent,),
            outputs=(image,),
            warmup=((v.latent_channels, z, z),),
        ),
    )


def unet_trt_model(preset: Preset) -> Model:
    """The denoiser as a TensorRT plan, which belongs to the GPU it was built on and is therefore not in git."""
    return replace(network_models(preset)[0], name="unet_trt", backend="tensorrt")


def superres_model(preset: Preset) -> Model:
    """The model that clients call: image and options in, upscaled image out."""
    return Model(
        "superres",
        "python",
        inputs=(
            Tensor("image", "FP32", (-1, -1), range=(0.0, 1.0)),
            Tensor("seed", "INT64", (1,), optional=True, range=(0, MAX_SEED)),
            Tensor("steps", "INT32", (1,), optional=True, range=(1, preset.diffusion.T)),
            Tensor("sampler", "STRING", (1,), optional=True),
            Tensor("start", "STRING", (1,), optional=True),
            Tensor("denoiser", "STRING", (1,), optional=True),
        ),
        outputs=(Tensor("upscaled", "FP32", (-1, -1), range=(0.0, 1.0)),),
        queue_delay_us=2000,
    )


def models(preset: Preset) -> tuple[Model, ...]:
    """Every model of the repository that is in git."""
    return (superres_model(preset), *network_models(preset))
