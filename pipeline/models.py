"""The models of each preset's repository and their tensors. Standard library only.

The exporter checks the ONNX graphs against them, ``pipeline.triton_config`` generates the ``config.pbtxt`` files from
them, and clients read names and limits from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.presets import Preset
from pipeline.spec import ESTIMATES, MAX_SAMPLES, MAX_SEED, PIXEL_MM, UNROLLED_STEPS, Model, Tensor


@dataclass(frozen=True)
class NetworkModels:
    """A preset's networks as models of the repository."""

    denoiser: Model
    encoder: Model
    decoder: Model
    fused: Model
    restorer: Model | None = None

    def __iter__(self) -> Iterator[Model]:
        """Iterate over the models that the preset has."""
        every = (self.denoiser, self.encoder, self.decoder, self.fused, self.restorer)
        return (model for model in every if model is not None)


def onnx_models(preset: Preset) -> NetworkModels:
    """Return the repository's ONNX models: the networks and the fused model."""
    v, u, d = preset.vae, preset.unet, preset.data
    image = Tensor("image", "FP32", (v.channels, -1, -1), range=d.range)
    latent = Tensor("latent", "FP32", (v.latent_channels, -1, -1))
    z = d.hr_size // v.factor
    image_size, latent_size = (v.channels, d.hr_size, d.hr_size), (v.latent_channels, z, z)
    lr_size = (v.channels, d.lr_size, d.lr_size)
    lr = Tensor("lr", "FP32", (v.channels, -1, -1), range=d.range)
    lrs, lr_sizes, doubts = ((lr,), (lr_size,), (DOUBT,)) if v.sees_lr else ((), (), ())
    history = Tensor("history", "FP32", (ESTIMATES,))
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
    """Return the ONNX model ``preset.fused``, whose computation is defined in ``pipeline.networks.fused``."""
    z, d = preset.vae.latent_channels, preset.data
    c = preset.unet.in_channels - z
    side = d.hr_size // preset.vae.factor
    if preset.fused == "denoise":
        latent, condition = Tensor("z", "FP32", (z, -1, -1)), Tensor("condition", "FP32", (c, -1, -1))
        rows, noise = (
            Tensor("coefficients", "FP32", (UNROLLED_STEPS, 4)),
            Tensor("noise", "FP32", (UNROLLED_STEPS, z, -1, -1)),
        )
        return Model(
            "denoise",
            "onnxruntime",
            inputs=(latent, condition, rows, noise),
            outputs=(Tensor("z_after", "FP32", (z, -1, -1)),),
            warmup=((z, side, side), (c, side, side), (UNROLLED_STEPS, 4), (UNROLLED_STEPS, z, side, side)),
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
        outputs=(Tensor("upscaled", "FP32", (-1, -1)), DOUBT, Tensor("history", "FP32", (ESTIMATES,))),
        warmup=((d.lr_size, d.lr_size), (z, side, side), (steps, 4)),
    )


def plan_models(preset: Preset) -> NetworkModels:
    """Return the same models as TensorRT plans, which are specific to a GPU and therefore not in git."""
    return NetworkModels(
        *(
            replace(model, name=model.name.removesuffix("_onnx") + "_trt", backend="tensorrt")
            for model in onnx_models(preset)
        )
    )


def superres_model(preset: Preset) -> Model:
    """Return the model that clients call: image and options in, upscaled image out."""
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
            Tensor("model", "STRING", (1,)),
        ),
        preset=preset.name,
    )


def superres_stream_model(preset: Preset) -> Model:
    """Return the model that also tells its progress and takes larger images, which it returns in tiles."""
    one = superres_model(preset)
    return replace(
        one,
        name="superres_stream",
        inputs=(*one.inputs, Tensor("previews", "INT32", (1,), optional=True, range=(0, preset.diffusion.T))),
        outputs=(
            *one.outputs,
            Tensor("step", "INT32", (1,)),
            Tensor("steps", "INT32", (1,)),
            Tensor("preview", "FP32", (-1, -1)),
            Tensor("top", "INT32", (1,)),
            Tensor("left", "INT32", (1,)),
        ),
        max_batch=1,
        decoupled=True,
    )


def models(preset: Preset) -> tuple[Model, ...]:
    """Return every model of the repository that is in git."""
    return (superres_model(preset), superres_stream_model(preset), *onnx_models(preset))
