"""The trainings on tiny data: they learn, resume where they were killed, share a batch, and write what export reads."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from pipeline import ROOT
from pipeline.method.upscale import upscale
from pipeline.networks import eager
from pipeline.networks.vae import load_vae, set_latent_scale, vae_path
from pipeline.networks.weights import load_unet
from pipeline.presets import Preset
from pipeline.serving.local_server import free_ports
from tests.recipes import run_recipe
from tests.tiny import BEST, PAPER
from train import loop, tune, unet, vae
from train.loop import learning_rate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny_presets")]


def vae_config(data: Path, folder: Path, **changes: Any) -> vae.VAETraining:
    config = vae.VAETraining(
        data=data, out=folder, run_dir=folder / "run-vae", steps=2, batch=1, crop=64, precision="fp32", device="cpu",
        preset="paper",
    )  # fmt: skip
    return replace(config, **changes)


@pytest.fixture(scope="module")
def weights(data: Path, tiny_presets: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("weights")
    vae.train_vae(vae_config(data, folder))
    return folder


def unet_config(data: Path, weights: Path, out: Path, **changes: Any) -> unet.UNetTraining:
    config = unet.UNetTraining(
        data=data, weights=weights, out=out, run_dir=out / "run", steps=6, validate_every=2, batch=4, passes=1, ema=0.5,
        precision="fp32", device="cpu", preset="paper",
    )  # fmt: skip
    return replace(config, **changes)


def state_of(folder: Path | None, preset: Preset = PAPER) -> dict[str, torch.Tensor]:
    assert folder is not None
    return load_unet(folder, preset).state_dict()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(a[name], b[name]) for name in a)


def interrupt_after_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains now is stopped where the second checkpoint would be written."""
    save = loop.TrainingRun.save

    def stop_after_the_first(run: loop.TrainingRun) -> None:
        if run.step > 1:
            raise KeyboardInterrupt
        save(run)

    monkeypatch.setattr(loop.TrainingRun, "save", stop_after_the_first)


def test_vae_training_writes_a_loadable_autoencoder_with_its_scale(weights: Path) -> None:
    loaded = load_vae(weights / "vae", PAPER.vae)
    metadata = json.loads((weights / "vae.json").read_text())
    assert isinstance(loaded, AutoencoderKL)
    assert loaded.config.scaling_factor == pytest.approx(1 / metadata["latent_std"][0])
    assert loaded.config.shift_factor == pytest.approx(metadata["latent_mean"][0])
    assert metadata["config"]["steps"] == 2


def test_a_pretrained_autoencoder_is_taken_as_it_is(data: Path, weights: Path, tmp_path: Path) -> None:
    vae.train_vae(vae_config(data, tmp_path, vae=str(weights / "vae"), steps=0))
    ours, given = (load_vae(folder / "vae", PAPER.vae).state_dict() for folder in (tmp_path, weights))
    assert_equal(ours, given)


def test_unet_training_learns_and_writes_weights_logs_and_pictures(data: Path, weights: Path, tmp_path: Path) -> None:
    unet.train_unet(
        unet_config(data, weights, tmp_path, steps=40, validate_every=20, augment=True, rate=0.01, warmup=5)
    )
    state_of(tmp_path)
    metadata = json.loads((tmp_path / "unet.json").read_text())
    assert metadata["validation_loss"] < 0.8, "a network that predicts nothing has 1"
    assert (tmp_path / "vae" / "config.json").exists(), "the two networks belong together"
    assert [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())] == ["000020.png", "000040.png"]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_the_best_validated_weights_are_saved(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, seen = iter([0.5, 0.2, 0.9]), []

    def validation_loss(network: torch.nn.Module, *_: object) -> float:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(values)

    monkeypatch.setattr(unet, "validation_loss", validation_loss)
    unet.train_unet(unet_config(data, weights, tmp_path, steps=6, warmup=0))
    assert json.loads((tmp_path / "unet.json").read_text())["best_step"] == 4
    assert_equal(state_of(tmp_path), seen[1])
    assert not torch.equal(seen[1]["stem.weight"], seen[2]["stem.weight"])


def command(config: unet.UNetTraining, *extra: str) -> list[str]:
    return [
        f"--data={config.data}", f"--weights={config.weights}", f"--out={config.out}",
        f"--run-dir={config.run_dir}", f"--steps={config.steps}", f"--validate-every={config.validate_every}",
        f"--batch={config.batch}", "--passes=1", f"--ema={config.ema}", "--precision=fp32", "--device=cpu",
        "--preset=paper", *extra,
    ]  # fmt: skip


def test_a_killed_training_continues_to_the_same_bits(data: Path, weights: Path, tmp_path: Path) -> None:
    straight = unet_config(data, weights, tmp_path / "straight", steps=8)
    unet.train_unet(straight)
    killed = replace(straight, out=tmp_path / "killed", run_dir=tmp_path / "killed" / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tiny", "train.unet", *command(killed)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed.run_dir / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match=r"already has a run: continue it with --resume, or use another --run-dir"):
        unet.train_unet(killed)
    unet.train_unet(replace(killed, resume=True))
    assert_equal(state_of(straight.out), state_of(killed.out))


def gradients_of(config: unet.UNetTraining) -> list[torch.Tensor]:
    """Of the first step, by Adam's first moment, which is then a tenth of them; unclipped."""
    state = torch.load(config.run_dir / "checkpoint.pt", weights_only=True)
    assert state["step"] == 1
    return [parameter["exp_avg"] for parameter in state["optimiser"]["state"].values()]


def assert_same_training(a: unet.UNetTraining, b: unet.UNetTraining) -> None:
    for one, other in zip(gradients_of(a), gradients_of(b), strict=True):
        assert one.norm() > 0
        assert (one - other).norm() < 1e-3 * one.norm()
    one, other = (torch.cat([value.flatten() for value in state_of(config.out).values()]) for config in (a, b))
    # Adam's first step is the gradient's sign: where that is next to nothing, rounding decides
    assert torch.isclose(one, other, atol=1e-5).float().mean() > 0.999


def one_step(data: Path, weights: Path, out: Path, **changes: Any) -> unet.UNetTraining:
    return unet_config(data, weights, out, **{"steps": 1, "warmup": 0, "ema": 0.0, "clip": 1e9, "batch": 8, **changes})


def test_two_processes_train_as_one(data: Path, weights: Path, tmp_path: Path) -> None:
    alone = one_step(data, weights, tmp_path / "alone")
    shared = replace(alone, out=tmp_path / "shared", run_dir=tmp_path / "shared" / "run")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_ports(1)[0]}"]
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.tiny", "train.unet", *command(shared, "--warmup=0", "--clip=1e9")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "on 2 x cpu" in result.stdout
    unet.train_unet(alone)
    assert_same_training(alone, shared)


def test_accumulated_gradients_are_those_of_the_whole_batch(data: Path, weights: Path, tmp_path: Path) -> None:
    whole = one_step(data, weights, tmp_path / "whole")
    parts = one_step(data, weights, tmp_path / "parts", accumulate=4)
    for config in (whole, parts):
        unet.train_unet(config)
    assert_same_training(whole, parts)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    rates = learning_rate

    def explode(step: int, *args: Any) -> float:
        return float("nan") if step == 3 else rates(step, *args)

    monkeypatch.setattr(loop, "learning_rate", explode)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 5; the last checkpoint, '.*', is kept"):
        unet.train_unet(unet_config(data, weights, tmp_path, validate_every=3))
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 6, "accumulate": 4}, r"--batch must be a multiple of 1 process\(es\) times --accumulate 4, got 6"),
        ({"device": "cuda"}, r"--device must be auto or cpu, got cuda: PyTorch finds no GPU"),
        ({"precision": "fp16"}, r"--precision must be bf16 or fp32 on the CPU, got fp16"),
        ({"split": "70/30"}, r"the split must be three percentages such as 70/20/10, got '70/30'"),
        ({"split": "98/1/1"}, r"10 patients are too few to give val a share of 0\.01"),
        ({"split": "80/0/20"}, r"the split 80/0/20 gives val no patients"),
        ({"steps": 0}, r"--steps must be at least 1, got 0"),
        ({"accumulate": 0}, r"--batch, --accumulate and --validate-every must be at least 1, and --clip above 0"),
        ({"passes": 0}, r"--passes must be at least 1, got 0"),
    ],
)
def test_impossible_settings(data: Path, weights: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("the messages are those of a machine with no GPU")
    with pytest.raises(ValueError, match=message):
        unet.train_unet(unet_config(data, weights, tmp_path, **changes))


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a full disk, writing fails where a file would grow larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = unet_config(data, weights, tmp_path, steps=1)
    unet.train_unet(config)
    latents, checkpoint = ((config.run_dir / name).stat().st_size for name in ("latents.pt", "checkpoint.pt"))
    assert latents < checkpoint
    shutil.rmtree(config.run_dir)
    capsys.readouterr()
    with no_file_beyond((latents + checkpoint) // 2):
        assert unet.main(command(config)) == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith(f"error: cannot write '{config.run_dir}/checkpoint.pt': ")
    assert "Traceback" not in errors
    assert not (config.run_dir / "checkpoint.pt").exists()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("preset", [PAPER, BEST], ids=lambda p: p.name)
def test_the_whole_recipe_trains_all_networks_and_continues(
    data: Path, tmp_path: Path, preset: Preset, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "train" / "runs" / f"{preset.name}.sh"
    sizes = {f"{stage}_STEPS": "1" for stage in ("VAE", "UNET", "RESTORE", "TUNE", "DOUBT", "PRESENTATION")}
    sizes |= {"DEVICE": "cpu", "RUNS": str(tmp_path / "runs"), "STAGES": "vae unet restore tune doubt presentation"}
    for _ in range(2):
        result = run_recipe(script, data, tmp_path / "out", **sizes)
        said = capsys.readouterr()
        assert result.returncode == 0, said.err[-3000:] + result.stderr[-3000:]
    assert said.out.count("continuing") == (2 if preset == PAPER else 6), "finished parts are not repeated"
    eager.load(tmp_path / "out", preset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 24}, r"--crop must be a multiple of 8, 32–256, got 24"),
        ({"crop": 100}, r"--crop must be a multiple of 8, 32–256, got 100"),
        ({"steps": 0}, r"--steps 0 needs a pretrained --vae"),
        ({"latent_drop": 1.1}, r"--latent-drop must be 0–1, got 1\.1"),
        ({"latent_noise": -1.0}, r"--latent-noise must be at least 0, got -1"),
        ({"latent_drop": 0.1}, r"--latent-drop must be 0 for preset 'paper', whose decoder sees only the latent"),
    ],
)
def test_impossible_settings_of_the_autoencoder(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vae.train_vae(vae_config(data, tmp_path, **changes))


def test_another_autoencoder_is_not_replaced(data: Path, weights: Path, tmp_path: Path) -> None:
    vae.train_vae(vae_config(data, tmp_path, steps=1))
    with pytest.raises(ValueError, match=r"has another autoencoder than '.*': use another --out"):
        unet.train_unet(unet_config(data, weights, tmp_path))


def test_latents_of_another_scale_are_not_taken(data: Path, weights: Path, tmp_path: Path) -> None:
    mine = tmp_path / "weights"
    shutil.copytree(weights / "vae", mine / "vae")
    config = unet_config(data, mine, mine, run_dir=tmp_path / "run", steps=1, validate_every=1)
    unet.train_unet(config)
    rescaled = load_vae(mine / "vae", PAPER.vae)
    assert isinstance(rescaled, AutoencoderKL)
    set_latent_scale(rescaled, 3 * torch.randn(1, 4, 8, 8))
    rescaled.save_pretrained(mine / "vae")
    with pytest.raises(ValueError, match=r"latents\.pt' belongs to another run \(vae "):
        unet.train_unet(replace(config, resume=True))
    with pytest.raises(ValueError, match=r"was trained on the latents of another autoencoder"):
        eager.load(mine, PAPER)


@pytest.fixture(scope="module")
def best_weights(data: Path, tiny_presets: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """Both networks of preset best, hardly trained."""
    folder = tmp_path_factory.mktemp("best")
    spoilt = {"latent_noise": 0.5, "latent_drop": 0.2, "vgg": 0.1, "whole_every": 0}
    vae.train_vae(vae_config(data, folder, preset="best", **spoilt))
    unet.train_unet(unet_config(data, folder, folder, preset="best", steps=2, augment=True))
    return folder


def tuning(data: Path, weights: Path, out: Path, **changes: Any) -> tune.Tuning:
    config = tune.Tuning(
        data=data, weights=weights, out=out, run_dir=out / "run", steps=3, batch=2, crop=64, validate_every=1,
        precision="fp32", device="cpu", ema=0.5,
    )  # fmt: skip
    return replace(config, **changes)


def test_the_trainings_of_best_make_a_system(best_weights: Path, rng: np.random.Generator) -> None:
    metadata = json.loads((best_weights / "vae.json").read_text())
    assert len(metadata["latent_std"]) == 4, "every channel has a scale of its own"
    system = eager.load(best_weights, BEST)
    (result,) = upscale([rng.random((32, 32), dtype=np.float32)], [0], system.generator(), BEST)
    assert result.upscaled.shape == (128, 128)


def test_tuning_changes_unet_and_decoder_together_and_not_the_encoder(
    data: Path, best_weights: Path, tmp_path: Path
) -> None:
    tune.tune(tuning(data, best_weights, tmp_path, warmup=0))
    before, after = (load_vae(vae_path(f, BEST.vae), BEST.vae).state_dict() for f in (best_weights, tmp_path))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("encoder.", "latent_", "doubt.", "presentation."))}
    assert not torch.equal(state_of(best_weights, BEST)["out.weight"], state_of(tmp_path, BEST)["out.weight"])
    eager.load(tmp_path, BEST)


def test_the_networks_before_the_tuning_are_kept(data: Path, best_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--out must differ from --weights, which are needed to resume, got '.*'"):
        tune.tune(replace(tuning(data, best_weights, tmp_path), out=best_weights))


def test_a_stopped_tuning_continues_to_the_same_bits(
    data: Path, best_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = tuning(data, best_weights, tmp_path / "straight")
    tune.tune(straight)
    stopped = replace(straight, out=tmp_path / "stopped", run_dir=tmp_path / "stopped" / "run")
    interrupt_after_the_first_checkpoint(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(stopped)
    monkeypatch.undo()
    tune.tune(replace(stopped, resume=True))
    assert_equal(state_of(straight.out, BEST), state_of(stopped.out, BEST))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "paper"}, r"--preset must be one whose U-Net sees the LR image itself, got paper"),
        ({"crop": 96}, r"--crop must be a multiple of 64 up to 224, got 96"),
        ({"sampler_steps": "1,0"}, r"--sampler-steps must be numbers 1–300, such as 1,2,4, got '1,0'"),
        ({"sampler_steps": "few"}, r"--sampler-steps must be numbers 1–300, such as 1,2,4, got 'few'"),
        ({"diversity": 2.0}, r"--diversity must be 0–1, got 2"),
        ({"faithful_share": 1.5}, r"--faithful-share must be 0–1, got 1\.5"),
        ({"freeze_decoder": True, "only_restorer": True}, r"--freeze-decoder and --only-restorer leave nothing"),
    ],
)
def test_impossible_settings_of_tuning(
    data: Path, best_weights: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tune.tune(tuning(data, best_weights, tmp_path, **changes))


def test_a_full_gpu_is_one_line_of_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(unet, "train_unet", full)
    assert unet.main(["--data", str(tmp_path), "--batch", "512"]) == 1
    assert capsys.readouterr().err == (
        "error: the GPU's memory is full: lower --batch (now 512), or raise --accumulate (now 1), "
        "which splits the same batch into more parts\n"
    )


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 1000, 1.0, 50) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[50:]))


@pytest.mark.parametrize("main", [vae.main, unet.main, tune.main])
def test_missing_data_is_one_line(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path), "--run-dir", str(tmp_path / "r"), "--device=cpu", "--precision=fp32"]) == 1
    assert capsys.readouterr().err == (
        f"error: '{tmp_path}' has no HR_256/ and LR_64/: run  python -m train.pairs IMAGES {tmp_path}\n"
    )
