"""Presets: the networks, schedule, sampler and calibrated band of each system. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipeline.spec import (
    INT8_FILE,
    MAX_SIDE,
    MAX_TILED_SIDE,
    SCALE,
    Condition,
    Prediction,
    SamplerName,
    ScheduleName,
    Start,
)


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
    sees_lr: ClassVar[bool] = False
    """Whether encoder and decoder also take the LR image."""


@dataclass(frozen=True)
class RestorerSpec:
    """The restorer of LR images to what the paper's protocol would have given, and estimator of their history."""

    width: int = 48
    blocks: int = 4
    fold: int = 2
    """Side, in pixels, of the squares folded into channels."""
    hidden: int = 128
    """Width of the history head."""


@dataclass(frozen=True)
class DetailVAESpec:
    """An autoencoder of the detail missing from the LR image, which both encoder and decoder take as input."""

    factor: int = 8
    channels: int = 1
    latent_channels: int = 4
    width: int = 64
    encoder_blocks: int = 2
    decoder_blocks: int = 8
    tail: int = 8
    """Channels at full resolution."""
    restorer: RestorerSpec = field(default_factory=RestorerSpec)
    doubt: int = 16
    """Width of the head that estimates each pixel's error."""
    sees_lr: ClassVar[bool] = True


@dataclass(frozen=True)
class UNetSpec:
    """The denoiser: noisy HR latent ⊕ condition and a timestep in, ε or v out. By default the paper's."""

    in_channels: int = 8
    out_channels: int = 4
    base: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    middle_blocks: int = 2
    time_features: int = 32
    time_width: int = 128
    norm_groups: int = 8

    @property
    def factor(self) -> int:
        """Required divisor of the input's H and W: each level halves them."""
        return 2 ** len(self.multipliers)


@dataclass(frozen=True)
class DiffusionSpec:
    """The schedule, the U-Net's prediction type, and the default sampling options.

    "linear" is the paper's: β from ``beta_start`` to ``beta_end`` over T steps. "cosine" is Nichol & Dhariwal's (2021)
    ᾱ_t = cos²(π/2·(t+1)/T), which ends in pure noise. There v = √ᾱ_t·ε - √(1-ᾱ_t)·z_0 (Salimans & Ho 2022) is still
    informative; ε is not.

    The paper takes all T steps of DDPM from pure noise. With its schedule √ᾱ_T ≈ 0.22, so the network never saw pure
    noise in training, and the result is darker than the scan. Starting from the LR latent noised to T-1 fixes that, and
    ten DDIM steps from there look closer to the scan than T steps of DDPM (docs/results.md). Both are therefore the
    defaults here; the paper's "ddpm" and "noise" remain available as options.
    """

    T: int = 300
    schedule: ScheduleName = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: Prediction = "eps"
    sampler: SamplerName = "ddim"
    ddim_steps: int = 10
    starts: tuple[Start, ...] = ("lr", "noise")
    """Allowed starting points of sampling, the default first; "lr" requires the LR image as a latent."""

    @property
    def start(self) -> Start:
        return self.starts[0]

    def default_steps(self, sampler: SamplerName) -> int:
        """Return a sampler's default number of steps; all T for DDPM."""
        return self.T if sampler == "ddpm" else self.ddim_steps


@dataclass(frozen=True)
class Band:
    """Calibration of the 90 % band around the samples' mean: half-width = scale·doubt.

    The doubt is estimated per pixel by the decoder of a ``DetailVAE``; for other presets it is the scatter of the
    samples, see ``method.upscale.Samples``. The band is valid for the preset's default sampler, steps, start and
    ``faithful``. Calibrated on validation patients by ``train.calibrate`` (split conformal: ``scales`` are the 90 %
    quantiles of │HR - mean│ / doubt).
    """

    scales: tuple[tuple[int, float], ...]
    """(number of samples, scale) in ascending order; numbers in between take the scale of the next smaller one."""
    error: float | None = None
    """Ratio of an image's mean absolute error to its mean doubt; None: scatter does not predict it."""
    noisy: float = 1.0
    """Factor on the doubt of images with noise or compression above ``NOISY``."""
    strange: float = 1.0
    """Factor on the doubt of images whose stated pixel spacing is outside the trained range."""
    usual: float | None = None
    """99th percentile of the expected error of images like those trained on, in [0, 1] of gray."""

    def scale(self, samples: int) -> float | None:
        """Return the scale for this number of samples; None if there are too few for a band."""
        return next((scale for count, scale in reversed(self.scales) if count <= samples), None)


@dataclass(frozen=True)
class Preset:
    """A complete system."""

    name: str
    band: Band
    data: DataSpec = field(default_factory=DataSpec)
    vae: VAESpec | DetailVAESpec = field(default_factory=VAESpec)
    unet: UNetSpec = field(default_factory=UNetSpec)
    diffusion: DiffusionSpec = field(default_factory=DiffusionSpec)
    condition: Condition = "latent"
    """The U-Net's condition: the latent of the bicubic upsampling, or the LR pixels folded to the latent's size."""
    fused: Literal["denoise", "superres_onnx"] = "denoise"
    """The model that fuses calls: UNROLLED_STEPS denoising steps or, with default options, the whole pipeline."""
    bfloat16: tuple[str, ...] = ()
    """Models that pass the parity gate (``pipeline.export.parity``) in bfloat16."""
    sequential: tuple[str, ...] = ()
    """Those of them that process images sequentially on all cores: in bfloat16, results depend on the core count."""
    int8: tuple[str, ...] = ()
    """Those of them with a second file, ``INT8_FILE``, with convolutions in INT8, which also passes the gate."""
    faithful: bool = False
    """Whether results are projected to reduce to the LR image by default."""
    pixel_mm: tuple[float, float] | None = None
    """Range of pixel spacing, in mm, in the LR training images; None: unknown."""

    def is_unusual_spacing(self, pixel_mm: float | None) -> bool:
        """Whether the pixel spacing is known to be outside the range that the networks were trained on."""
        if pixel_mm is None or self.pixel_mm is None:
            return False
        return not self.pixel_mm[0] <= pixel_mm <= self.pixel_mm[1]

    def openvino_file(self, model: str) -> str:
        """Return the name of the file in a model's version folder that OpenVINO runs."""
        return INT8_FILE if model in self.int8 else "model.onnx"

    @property
    def max_side(self) -> int:
        """Maximum side of an LR image: larger ones are upscaled in tiles if the decoder has no normalisation."""
        return MAX_TILED_SIDE if self.vae.sees_lr else MAX_SIDE

    @property
    def lr_multiple(self) -> int:
        """The multiple to which the sides of a low-resolution image are padded for the networks."""
        return self.vae.factor * self.unet.factor // SCALE


PAPER = Preset(
    name="paper",
    band=Band(scales=((2, 4.323), (3, 3.41), (4, 3.175), (8, 2.466), (16, 2.357))),
    # not the encoder: its normalisation divides by almost zero in flat areas, which makes bfloat16 rounding visible
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
    sequential=("unet_onnx",),
    int8=("vae_decoder", "superres_onnx"),
    faithful=True,
    # chests of 340 to 430 mm, 64 to 256 pixels wide
    pixel_mm=(1.3, 7.0),
)

PRESETS = {preset.name: preset for preset in (BEST, PAPER)}
DEFAULT = BEST
