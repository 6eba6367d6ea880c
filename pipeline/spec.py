"""What every part of the system agrees on: tensors, models, presets. Standard library only.

Everything that two places must know alike stands here once: the networks are built from it, the exporter
checks the ONNX graphs against it, the ``config.pbtxt`` files are generated from it, and the client reads
names and limits from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
    """Augmentation, by default the paper's, LR and HR in step: ``share`` of the samples, each operation by chance.

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

    @property
    def sees_lr(self) -> bool:
        """Whether encoder and decoder take the LR image too."""
        return False


@dataclass(frozen=True)
class RestorerSpec:
    """What makes of any LR image the one that the paper's protocol would have given, and tells how it was made."""

    width: int = 48
    blocks: int = 4
    fold: int = 2
    """It works on squares of so many pixels each way."""
    hidden: int = 128
    """Width of what tells the history."""


@dataclass(frozen=True)
class DetailVAESpec:
    """An autoencoder of what an image has beyond its LR image, which encoder and decoder both see."""

    factor: int = 8
    channels: int = 1
    latent_channels: int = 4
    width: int = 64
    encoder_blocks: int = 2
    decoder_blocks: int = 8
    tail: int = 8
    """Features at full resolution."""
    restorer: RestorerSpec = field(default_factory=RestorerSpec)
    doubt: int = 16
    """Width of what tells how far each pixel may be off."""

    @property
    def sees_lr(self) -> bool:
        return True


@dataclass(frozen=True)
class UNetSpec:
    """The denoiser: noisy HR latent ⊕ condition and a timestep in, ε, v or z_0 out. By default the paper's."""

    in_channels: int = 8
    out_channels: int = 4
    base: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    middle_blocks: int = 2
    time_features: int = 32
    time_width: int = 128
    norm_groups: int = 8
    attention_heads: int = 0
    """of the cross-attention between the middle blocks, features ask the condition; 0: none"""

    @property
    def factor(self) -> int:
        """What H and W of its input must be divisible by: each level halves them."""
        return 2 ** len(self.multipliers)


@dataclass(frozen=True)
class DiffusionSpec:
    """The schedule, what the U-Net predicts, and how images are sampled unless a request says otherwise.

    "linear" is the paper's: β from ``beta_start`` to ``beta_end`` over T steps. "cosine" is Nichol & Dhariwal's (2021)
    ᾱ_t = cos²(π/2·(t+1)/T), which ends in pure noise. v = √ᾱ_t·ε - √(1-ᾱ_t)·z_0 (Salimans & Ho 2022) says something
    there too, as does z_0 itself ("x0"); ε does not.

    The paper takes all T steps of DDPM from pure noise. With its schedule √ᾱ_T ≈ 0.22, so the network never saw pure
    noise in training, and the result is darker than the scan. Starting from the LR latent noised to T-1 mends that, and
    ten DDIM steps from there look nearer to the scan than T of DDPM (docs/results.md). So both are the default here,
    and the paper's "ddpm" and "noise" are an option each.
    """

    T: int = 300
    schedule: ScheduleName = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: Prediction = "eps"
    sampler: SamplerName = "ddim"
    ddim_steps: int = 10
    starts: tuple[Start, ...] = ("lr", "noise")
    """Where sampling may start, the default first; "lr" needs the LR image as a latent."""

    @property
    def start(self) -> Start:
        return self.starts[0]

    def default_steps(self, sampler: SamplerName) -> int:
        """How many steps a sampler takes unless told: DDPM all T."""
        return self.T if sampler == "ddpm" else self.ddim_steps


@dataclass(frozen=True)
class Band:
    """How the doubt of samples becomes the half-width of the 90 % band around their mean: scale·doubt.

    The doubt of a ``DetailVAE`` is what its decoder tells of each pixel; that of other presets the scatter of samples,
    see ``method.superres.Samples``. The band holds for the preset's own sampler, steps, start and ``faithful``.
    Calibrated on validation patients by ``train.calibrate`` (split conformal: ``scales`` are 90 % quantiles of
    │HR - mean│ over the doubt).
    """

    scales: tuple[tuple[int, float], ...]
    """(number of samples, scale), ascending; a number between two takes the scale of the smaller."""
    error: float | None = None
    """Mean absolute error of an image over its mean doubt; None: scatter does not tell it."""
    noisy: float = 1.0
    """Factor on doubt where noise or compression changed more than ``NOISY`` of an image."""
    strange: float = 1.0
    """Factor on doubt where an image's pixels are told to be of another size than those trained on."""
    usual: float | None = None
    """Expected error, in [0, 1] of gray, that 99 of 100 images as trained on are below."""

    def scale(self, samples: int) -> float | None:
        """The scale for so many samples; None where they are too few for a band."""
        return next((scale for count, scale in reversed(self.scales) if count <= samples), None)


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
    band: Band
    data: DataSpec = field(default_factory=DataSpec)
    augmentation: AugmentationSpec = field(default_factory=AugmentationSpec)
    vae: VAESpec | DetailVAESpec = field(default_factory=VAESpec)
    unet: UNetSpec = field(default_factory=UNetSpec)
    diffusion: DiffusionSpec = field(default_factory=DiffusionSpec)
    condition: Condition = "latent"
    """What the U-Net sees of the LR image: its bicubic upsampling's latent, or its pixels folded to a latent's size."""
    fused: Literal["denoise", "superres_onnx"] = "denoise"
    """The model that does in one call what would take many: LEAP denoising steps, or with the preset's own options
    everything from image to image."""
    bfloat16: tuple[str, ...] = ()
    """The models that pass the parity gate (``pipeline.export.parity``) in bfloat16."""
    alone: tuple[str, ...] = ()
    """Those of them that take one image after another there, on all cores: in bfloat16 their number would show."""
    int8: tuple[str, ...] = ()
    """Those of them that have a second file, ``INT8_FILE``, with convolutions in INT8, which passes the gate too."""
    faithful: bool = False
    """Whether results are made to reduce to the LR image unless a request says otherwise."""
    pixel_mm: tuple[float, float] | None = None
    """Least and greatest distance of pixels, in mm, in the LR images trained on; None: not stated."""
    reported: tuple[Reported, ...] = ()

    def is_strange(self, pixel_mm: float | None) -> bool:
        """Whether pixels of that size, where it is told, are none that the networks were trained on."""
        if pixel_mm is None or self.pixel_mm is None:
            return False
        return not self.pixel_mm[0] <= pixel_mm <= self.pixel_mm[1]

    def openvino_file(self, model: str) -> str:
        """The file in a model's version folder that OpenVINO runs."""
        return INT8_FILE if model in self.int8 else "model.onnx"

    @property
    def lr_multiple(self) -> int:
        """What the sides of a low-resolution image are padded to: a multiple that every network can take."""
        return self.vae.factor * self.unet.factor // SCALE


PAPER = Preset(
    name="paper",
    band=Band(scales=((2, 4.323), (3, 3.41), (4, 3.175), (8, 2.466), (16, 2.357))),
    reported=(
        Reported("nih", "bicubic", lpips=0.3472, psnr=29.59, ssim=0.9176),
        Reported("nih", "PyTorch", lpips=0.1232, psnr=27.34, ssim=0.8647, seconds=7.02),
        Reported("nih", "TensorRT", lpips=0.1223, psnr=27.11, ssim=0.8501, seconds=1.49),
        Reported("iu", "bicubic", lpips=0.3444, psnr=28.36, ssim=0.9019),
        Reported("iu", "PyTorch", lpips=0.1285, psnr=26.74, ssim=0.8621, seconds=7.11),
        Reported("iu", "TensorRT", lpips=0.1290, psnr=27.01, ssim=0.8280, seconds=1.70),
    ),
    # not the encoder: in flat areas its normalisation divides by next to nothing, and bfloat16's rounding shows
    bfloat16=("unet_onnx", "denoise", "vae_decoder"),
)

BEST = Preset(
    name="best",
    band=Band(
        scales=((1, 1.024), (2, 1.001), (3, 0.993), (4, 0.989), (8, 0.983), (16, 0.98)),
        error=0.466,
        noisy=0.957,
        strange=1.25,
        usual=0.0229,
    ),
    data=DataSpec(channels=1),
    augmentation=AugmentationSpec(share=0.5, horizontal_flip=1.0, rotations=(0,), random_resized_crop=0.0, cutout=0.0),
    vae=DetailVAESpec(),
    unet=UNetSpec(base=48),
    diffusion=DiffusionSpec(schedule="cosine", prediction="v", ddim_steps=1, starts=("noise",)),
    condition="lr",
    fused="superres_onnx",
    bfloat16=("unet_onnx", "vae_encoder", "vae_decoder", "superres_onnx", "restorer"),
    alone=("unet_onnx",),
    int8=("vae_decoder", "superres_onnx"),
    faithful=True,
    # chests of 340 to 430 mm, 64 to 256 pixels wide
    pixel_mm=(1.3, 7.0),
)

PRESETS = {preset.name: preset for preset in (BEST, PAPER)}
DEFAULT = BEST


@dataclass(frozen=True)
class NetworkModels:
    """The networks of a preset as models of the repository."""

    denoiser: Model
    encoder: Model
    decoder: Model
    fused: Model
    restorer: Model | None = None

    def __iter__(self) -> Iterator[Model]:
        """Those that there are."""
        every = (self.denoiser, self.encoder, self.decoder, self.fused, self.restorer)
        return (model for model in every if model is not None)


def onnx_models(preset: Preset) -> NetworkModels:
    """The models of the repository that are ONNX files: the networks, and what fuses them."""
    v, u, d = preset.vae, preset.unet, preset.data
    image = Tensor("image", "FP32", (v.channels, -1, -1), range=d.range)
    latent = Tensor("latent", "FP32", (v.latent_channels, -1, -1))
    z = d.hr_size // v.factor
    image_size, latent_size = (v.channels, d.hr_size, d.hr_size), (v.latent_channels, z, z)
    lr_size = (v.channels, d.lr_size, d.lr_size)
    lr = Tensor("lr", "FP32", (v.channels, -1, -1), range=d.range)
    lrs, lr_sizes, doubts = ((lr,), (lr_size,), (DOUBT,)) if v.sees_lr else ((), (), ())
    history = Tensor("history", "FP32", (TOLD,))
    return NetworkModels(
        denoiser=Model(
            "unet_onnx",
            "onnxruntime",
            inputs=(
                Tensor("x", "FP32", (u.in_channels, -1, -1)),
                Tensor("t", "FP32", (1,), range=(0.0, preset.diffusion.T - 1.0)),
            ),
            outputs=(Tensor(preset.diffusion.prediction, "FP32", (u.out_channels, -1, -1)),),
            warmup=((u.in_channels, z, z), (1,)),
        ),
        encoder=Model("vae_encoder", "onnxruntime", (image, *lrs), (latent,), (image_size, *lr_sizes)),
        decoder=Model("vae_decoder", "onnxruntime", (latent, *lrs), (image, *doubts), (latent_size, *lr_sizes)),
        fused=fused_model(preset),
        restorer=Model("restorer", "onnxruntime", (lr,), (replace(lr, name="restored"), history), (lr_size,))
        if v.sees_lr
        else None,
    )


DOUBT = Tensor("doubt", "FP32", (-1, -1))


def fused_model(preset: Preset) -> Model:
    """``preset.fused``: an ONNX model of the networks together; ``pipeline.networks.fused`` has what it computes."""
    z, d = preset.vae.latent_channels, preset.data
    c = preset.unet.in_channels - z
    side = d.hr_size // preset.vae.factor
    if preset.fused == "denoise":
        latent, condition = Tensor("z", "FP32", (z, -1, -1)), Tensor("condition", "FP32", (c, -1, -1))
        rows, noise = Tensor("coefficients", "FP32", (LEAP, 4)), Tensor("noise", "FP32", (LEAP, z, -1, -1))
        return Model(
            "denoise",
            "onnxruntime",
            inputs=(latent, condition, rows, noise),
            outputs=(Tensor("z_after", "FP32", (z, -1, -1)),),
            warmup=((z, side, side), (c, side, side), (LEAP, 4), (LEAP, z, side, side)),
        )
    steps = preset.diffusion.ddim_steps
    return Model(
        "superres_onnx",
        "onnxruntime",
        inputs=(
            Tensor("image", "FP32", (-1, -1), range=(0.0, 1.0)),
            Tensor("noise", "FP32", (z, -1, -1)),
            Tensor("coefficients", "FP32", (steps, 4)),
        ),
        outputs=(Tensor("upscaled", "FP32", (-1, -1)), DOUBT, Tensor("history", "FP32", (TOLD,))),
        warmup=((d.lr_size, d.lr_size), (z, side, side), (steps, 4)),
    )


def plan_models(preset: Preset) -> NetworkModels:
    """The same as TensorRT plans, which belong to the GPU they were built on and are therefore not in git."""
    return NetworkModels(
        *(
            replace(model, name=model.name.removesuffix("_onnx") + "_trt", backend="tensorrt")
            for model in onnx_models(preset)
        )
    )


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
            Tensor("samples", "INT32", (1,), optional=True, range=(1, MAX_SAMPLES)),
            Tensor("output", "STRING", (1,), optional=True),
            Tensor("faithful", "BOOL", (1,), optional=True),
            Tensor("degradation", "STRING", (1,), optional=True),
            Tensor("pixel_mm", "FP32", (1,), optional=True, range=PIXEL_MM),
            Tensor("denoiser", "STRING", (1,), optional=True),
        ),
        outputs=(
            Tensor("upscaled", "FP32", (-1, -1), range=(0.0, 1.0)),
            Tensor("spread", "FP32", (-1, -1)),
            Tensor("lr_error", "FP32", (1,)),
            Tensor("found", "STRING", (1,)),
            Tensor("noise", "FP32", (1,)),
            Tensor("expected_error", "FP32", (1,)),
        ),
        preset=preset.name,
    )


def models(preset: Preset) -> tuple[Model, ...]:
    """Every model of the repository that is in git."""
    return (superres_model(preset), *onnx_models(preset))
