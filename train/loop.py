"""The training loop, on accelerate: steps, weight averaging, validation, sample images, logs and checkpoints.

Each step's random numbers depend on the seed and the step only; every process draws them for the whole batch and takes
its share. So results depend neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL.Image import Image as Picture
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import checkpoint
from train.checkpoint import EMA
from train.config import Paused, settings
from train.setup import CHECKPOINT, Training, compiles, workers_of

LOG_STEPS = 10
AHEAD = 2
"""Batches that each worker prepares ahead."""

Arguments = tuple[Any, ...]
"""Arguments of a loss."""


@dataclass(frozen=True)
class Task:
    """A network to train, with its loss, data and validation."""

    name: str
    loss: nn.Module
    """Module whose ``forward(*batch(step, share))`` returns terms including "loss"."""
    network: str
    """Name of the submodule of ``loss`` to average, validate and save."""
    batch: Callable[[int, slice], Arguments]
    """(step, slice of the step's batch) ⇒ arguments of ``loss``, on the CPU."""
    validate: Callable[[Any], float]
    """Averaged network ⇒ validation loss."""
    picture: Callable[[Any], Picture]
    """Averaged network ⇒ sample image for inspection."""
    inputs: dict[str, Any]
    """Everything besides the options that the result depends on."""
    regions: tuple[tuple[nn.Module, str], ...] = ()
    """(module, method) pairs to compile separately, as a loss that calls its networks several times would take too long
    to compile. (): the ``forward`` of ``loss``."""


class Batches(Dataset[Arguments]):
    """Dataset whose item i is part i mod P of the batch of step ``first`` + i div P, for P ``shares``."""

    def __init__(self, task: Task, shares: list[slice], first: int, steps: int) -> None:
        self.batch, self.shares, self.first, self.steps = task.batch, shares, first, steps

    def __len__(self) -> int:
        return (self.steps - self.first) * len(self.shares)

    def __getitem__(self, i: int) -> Arguments:
        step, part = divmod(i, len(self.shares))
        return self.batch(self.first + step, self.shares[part])


@dataclass(frozen=True)
class Result:
    network: Any
    """Averaged network at its lowest validation loss."""
    step: int
    validation: float
    seconds: float

    @property
    def metadata(self) -> dict[str, object]:
        return {"validation_loss": self.validation, "best_step": self.step, "seconds": round(self.seconds)}


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the rate at a step: linear warm-up, then cosine decay to 0 at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple | list):  # pinning makes lists of tuples
        return tuple(to_device(v, device) for v in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def as_it_is(item: Any) -> Any:
    return item


def use_one_thread(_worker: int) -> None:
    """Keep OpenCV from its thread pool, which does not survive the fork."""
    cv2.setNumThreads(0)


def load_batches(batches: Batches, workers: int, pin: bool) -> Iterator[Arguments]:
    """Yield the items in order, prepared ahead by processes if ``workers`` > 0; their number does not affect the items.

    Threads would take the GIL from the one that launches the GPU's kernels.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        pin_memory=pin,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=use_one_thread,
    )
    return iter(loader)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"


class TrainingRun:
    """Training run: a task on its device, with the complete state of a checkpoint."""

    def __init__(self, task: Task, config: Training, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.network = task.loss.get_submodule(task.network)
        task.loss.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(self.network, config.ema)
        learning = [p for p in task.loss.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            learning, lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=self.on_gpu or None
        )
        self.loss, self.optimiser = accelerator.prepare(task.loss, optimiser)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Any] = {"step": 0, "value": math.inf, "weights": self.ema.module.state_dict()}
        self.path = config.run_dir / CHECKPOINT
        self.key = settings(config) | task.inputs
        if compiles(config):
            for module, method in task.regions or ((task.loss, "forward"),):
                setattr(module, method, torch.compile(getattr(module, method), dynamic=False))
        self.batches: Iterator[Arguments] = iter(())

    @property
    def on_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda"

    def load(self) -> bool:
        """Load the run's checkpoint and return whether there is one.

        Raises:
            ValueError: the checkpoint belongs to another run, or the processes find different ones.
        """
        state = checkpoint.load(self.path, self.key) if self.config.resume else None
        if len(set(gather_object([state["step"] if state else None]))) > 1:
            raise ValueError(f"'{self.config.run_dir}' must be a folder shared by all machines")
        if state is None:
            return False
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        for group in state["optimiser"]["param_groups"]:
            group["fused"] = self.on_gpu or None  # it may have been saved on another device
        self.optimiser.load_state_dict(state["optimiser"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        return True

    def save(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }
        checkpoint.save(self.path, self.key, state)

    def share(self, part: int) -> slice:
        """Return the slice of this process's samples in one part of the batch."""
        processes = self.accelerator.num_processes
        size = self.config.batch // (processes * self.config.accumulate)
        first = (part * processes + self.accelerator.process_index) * size
        return slice(first, first + size)

    def prepare(self) -> None:
        """Start preparing the batches of the remaining steps."""
        shares = [self.share(part) for part in range(self.config.accumulate)]
        workers = workers_of(self.config, self.accelerator.num_processes)
        self.batches = load_batches(Batches(self.task, shares, self.step, self.config.steps), workers, self.on_gpu)

    def gradients(self) -> dict[str, Any]:
        """Run the next step's forward and backward passes; return the terms of this process's last part."""
        terms: dict[str, Any] = {}
        for given in islice(self.batches, self.config.accumulate):
            batch = to_device(given, self.accelerator.device)
            with self.accelerator.accumulate(self.loss):
                terms = self.loss(*batch)
                self.accelerator.backward(terms["loss"])
        return {name: term.detach() for name, term in terms.items() if term.ndim == 0}

    def zero_grad(self) -> None:
        self.task.loss.zero_grad(set_to_none=True)

    def update(self) -> Tensor | None:
        """Step the optimiser; return the gradient norm, without waiting for a GPU."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.config.steps, self.config.rate, self.config.warmup)
        norm: Tensor | None = self.accelerator.clip_grad_norm_(self.loss.parameters(), self.config.clip)
        self.optimiser.step()
        self.zero_grad()
        self.ema.update(self.network, self.step)
        return norm

    def seconds_per_step(self) -> float:
        """Time the second of two trial steps that change nothing; their batches are put back."""
        elapsed, seen = 0.0, []
        for _ in range(min(2, self.config.steps - self.step)):
            began, ahead = time.monotonic(), self.batches
            given = list(islice(ahead, self.config.accumulate))
            seen += given
            self.batches = iter(given)
            float(self.gradients()["loss"])
            self.batches, elapsed = ahead, time.monotonic() - began
        self.batches = chain(seen, self.batches)
        self.zero_grad()
        return elapsed

    def late(self, began: float) -> bool:
        """Return whether --minutes have passed since ``began`` in any process."""
        alone = self.accelerator.num_processes == 1
        if not self.config.minutes or not (alone or self.step % LOG_STEPS == 0):
            return False
        passed = time.monotonic() - began > 60 * self.config.minutes
        return any(gather_object([passed]))

    def check_finite(self, name: str, value: float) -> None:
        """Raise FloatingPointError if the value is not finite."""
        if not math.isfinite(value):
            kept = (
                f"the last checkpoint, '{self.path}', is kept" if self.path.exists() else "there is no checkpoint yet"
            )
            raise FloatingPointError(f"the {name} is {value} at step {self.step}; {kept}; a lower --rate may help")

    def log_terms(self, log: SummaryWriter, terms: dict[str, Any], norm: Tensor | None) -> dict[str, float]:
        """Log the terms of a step and its gradient norm; return the terms, the loss of which must be finite."""
        values = {name: float(term) for name, term in terms.items()}
        self.check_finite("loss", values["loss"])
        for name, value in {**values, "gradient_norm": 0.0 if norm is None else float(norm)}.items():
            log.add_scalar(f"train/{name}", value, self.step)
        return values

    def validate(self, log: SummaryWriter | None) -> None:
        """Validate the averaged network, keep it if it is the best, and write samples."""
        if log is None:
            return
        with torch.compiler.set_stance("force_eager"):
            value, picture = self.task.validate(self.ema.module), self.task.picture(self.ema.module)
        self.check_finite("validation loss", value)
        if value < self.best["value"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.ema.module.state_dict().items()}
            self.best = {"step": self.step, "value": value, "weights": weights}
        samples = self.config.run_dir / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        picture.save(samples / f"{self.step:06}.png")
        log.add_scalar("validation", value, self.step)
        pixels = np.asarray(picture)
        log.add_image("samples", pixels, self.step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        tqdm.write(f"step {self.step}: validation {value:.4f}, best {self.best['value']:.4f} at {self.best['step']}")


def train(task: Task, config: Training, accelerator: Accelerator) -> Result:
    """Train a task to the end, from the start or its checkpoint.

    Raises:
        ValueError: see ``TrainingRun.load``.
        Paused: --minutes have passed, and a checkpoint is written.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
        OSError: a checkpoint cannot be written; the previous one is kept.
    """
    began = time.monotonic()
    run = TrainingRun(task, config, accelerator)
    resumed = run.load()
    main = accelerator.is_main_process
    if main and resumed:
        tqdm.write(f"continuing '{run.path}' at step {run.step}")
    run.prepare()
    step_seconds = run.seconds_per_step()
    if main:
        left = duration(step_seconds * (config.steps - run.step))
        tqdm.write(f"expected time: {left} plus validation, at {step_seconds:.2g} s per step")
    log = SummaryWriter(str(config.run_dir), purge_step=run.step + 1) if main else None
    with tqdm(
        initial=run.step, total=config.steps, desc=task.name, unit="step", mininterval=2, disable=not main, leave=False
    ) as bar:
        before = time.monotonic() - run.seconds
        while run.step < config.steps:
            terms = run.gradients()
            norm = run.update()
            run.step += 1
            due = run.step % config.validate_every == 0 or run.step == config.steps
            if log is not None and (run.step % LOG_STEPS == 0 or due):
                values = run.log_terms(log, terms, norm)
                bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()}, refresh=False)
            bar.update()
            if due:
                run.validate(log)
            late = run.step < config.steps and run.late(began)
            if due or late:
                run.seconds = time.monotonic() - before
                if main:
                    run.save()
                accelerator.wait_for_everyone()
            if late:
                break
    if log is not None:
        log.close()
    if run.step < config.steps:
        raise Paused(
            f"stopped at step {run.step} of {config.steps} after {config.minutes:g} minutes; "
            "run the same command with --resume to continue"
        )
    run.ema.module.load_state_dict(run.best["weights"])
    return Result(run.ema.module, run.best["step"], run.best["value"], run.seconds)
