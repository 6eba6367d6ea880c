"""The systems: networks, schedule, sampler and calibrated band of each. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.spec import INT8_FILE, SCALE, Condition, Prediction, SamplerName, ScheduleName, Start


@dataclass(frozen=True)
class DataSpec:
    """The paper's data protocol."""

    original_size: int = 1024
    hr_size: int = 256
    lr_size: int = 64
    channels: int = 3
    range: tuple[float, float] = (-1.0, 1.0)


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
    see ``method.upscale.Samples``. The band holds for the preset's own sampler, steps, start and ``faithful``.
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
class Preset:
    """One complete system."""

    name: str
    band: Band
    data: DataSpec = field(default_factory=DataSpec)
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
