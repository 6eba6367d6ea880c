"""The frame of the trainings: steps, averages, validation, pictures, logs, checkpoints. Engine: accelerate.

Every step's random numbers are a function of the seed and the step, drawn for the whole batch by every process, which
then takes its share. So a result depends neither on the number of processes nor on where a run was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL.Image import Image as Picture
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import checkpoint
from train.checkpoint import EMA
from train.config import settings
from train.plan import CHECKPOINT, Training, samples_a_part
from train.schedule import learning_rate

LOG_STEPS = 10


@dataclass(frozen=True)
class Task:
    """What is trained, on what."""

    name: str
    loss: nn.Module
    """``forward(*batch(step, share))`` returns terms, "loss" among them; what requires gradients learns."""
    network: str
    """Name of the submodule of ``loss`` that is averaged, validated and saved."""
    batch: Callable[[int, slice], tuple[Any, ...]]
    """(step, which samples of the step's batch) ⇒ ``loss``'s arguments, on the CPU."""
    validate: Callable[[Any], float]
    """The averaged network ⇒ what is to be small, on validation patients."""
    picture: Callable[[Any], Picture]
    """The averaged network ⇒ samples to look at."""
    inputs: dict[str, Any]
    """What the result depends on beside the options."""
    adversary: nn.Module | None = None
    """Its ``forward(real, reconstruction)`` returns "loss"; it learns in turn with ``loss``, which is given its
    submodule ``discriminator`` as last argument and returns the "reconstruction"."""


@dataclass(frozen=True)
class Result:
    network: Any
    """The averaged network at its best validation."""
    step: int
    validation: float
    seconds: float

    @property
    def metadata(self) -> dict[str, object]:
        return {"validation_loss": self.validation, "best_step": self.step, "seconds": round(self.seconds)}


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(to_device(v, device) for v in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"


class Run:
    """One training: the task on its device, with all that a checkpoint holds."""

    def __init__(self, task: Task, config: Training, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.network = task.loss.get_submodule(task.network)
        self.modules = {"loss": task.loss} | ({"adversary": task.adversary} if task.adversary else {})
        for module in self.modules.values():
            module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(self.network, config.ema)
        self.wrapped, self.optimisers = {}, {}
        for name, module in self.modules.items():
            learning = [p for p in module.parameters() if p.requires_grad]
            optimiser = torch.optim.AdamW(learning, lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-4)
            self.wrapped[name], self.optimisers[name] = accelerator.prepare(module, optimiser)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Any] = {"step": 0, "value": math.inf, "weights": self.ema.module.state_dict()}
        self.path = config.run_dir / CHECKPOINT
        self.key = settings(config) | task.inputs

    def load(self) -> bool:
        """Continue from the run's checkpoint, if there is one.

        Raises:
            ValueError: it is of another run, or the processes find different ones.
        """
        state = checkpoint.load(self.path, self.key) if self.config.resume else None
        if len(set(gather_object([state["step"] if state else None]))) > 1:
            raise ValueError(f"'{self.config.run_dir}' must be a folder that all machines share")
        if state is None:
            return False
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        if self.task.adversary:
            self.task.adversary.load_state_dict(state["adversary"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        return True

    def save(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "adversary": self.task.adversary.state_dict() if self.task.adversary else None,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }
        checkpoint.save(self.path, self.key, state)

    def share(self, part: int) -> slice:
        """This process's samples of one part of the batch."""
        size = samples_a_part(self.config, self.accelerator)
        first = (part * self.accelerator.num_processes + self.accelerator.process_index) * size
        return slice(first, first + size)

    def gradients(self, step: int) -> dict[str, Any]:
        """Run forward and backward of one step; the terms are those of this process's last part."""
        terms: dict[str, Any] = {}
        for part in range(self.config.accumulate):
            batch = to_device(self.task.batch(step, self.share(part)), self.accelerator.device)
            with self.accelerator.accumulate(*self.wrapped.values()):
                if self.task.adversary is None:
                    terms = self.wrapped["loss"](*batch)
                    self.accelerator.backward(terms["loss"])
                else:
                    discriminator = self.task.adversary.get_submodule("discriminator").requires_grad_(False)
                    terms = self.wrapped["loss"](*batch, discriminator)
                    self.accelerator.backward(terms["loss"])
                    discriminator.requires_grad_(True)
                    judged = self.wrapped["adversary"](batch[0], terms["reconstruction"])
                    self.accelerator.backward(judged["loss"])
                    terms["adversary"] = judged["loss"]
        return {name: term.detach() for name, term in terms.items() if term.ndim == 0}

    def zero_grad(self) -> None:
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)

    def update(self) -> float:
        """One step of the optimisers; returns the norm of the gradient."""
        norm = 0.0
        rate = learning_rate(self.step, self.config.steps, self.config.rate, self.config.warmup)
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rate
            found = self.accelerator.clip_grad_norm_(self.wrapped[name].parameters(), self.config.clip)
            norm = float(found) if name == "loss" and found is not None else norm
            optimiser.step()
        self.zero_grad()
        self.ema.update(self.network, self.step)
        return norm

    def seconds_a_step(self) -> float:
        """Time of the second of two trial steps that change nothing."""
        elapsed = 0.0
        for step in (self.step, self.step + 1):
            began = time.monotonic()
            float(self.gradients(step)["loss"])
            elapsed = time.monotonic() - began
        self.zero_grad()
        return elapsed

    def check_finite(self, name: str, value: float) -> None:
        """Raises FloatingPointError where it is not."""
        if not math.isfinite(value):
            kept = (
                f"the last checkpoint, '{self.path}', is kept" if self.path.exists() else "there is no checkpoint yet"
            )
            raise FloatingPointError(f"the {name} is {value} at step {self.step}; {kept}; a lower --rate may help")

    def validate(self, log: SummaryWriter | None) -> None:
        """Validate the averaged network, remember it if it is the best, draw samples."""
        if log is None:
            return
        value = self.task.validate(self.ema.module)
        self.check_finite("validation loss", value)
        if value < self.best["value"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.ema.module.state_dict().items()}
            self.best = {"step": self.step, "value": value, "weights": weights}
        picture = self.task.picture(self.ema.module)
        samples = self.config.run_dir / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        picture.save(samples / f"{self.step:06}.png")
        log.add_scalar("validation", value, self.step)
        log.add_image("samples", np.asarray(picture), self.step, dataformats="HW")
        tqdm.write(f"step {self.step}: validation {value:.4f}, best {self.best['value']:.4f} at {self.best['step']}")


def train(task: Task, config: Training, accelerator: Accelerator) -> Result:
    """Run a task to its end, from the start or from its checkpoint.

    Raises:
        ValueError: see ``Run.load``.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
        OSError: a checkpoint cannot be written; the one before is kept.
    """
    run = Run(task, config, accelerator)
    resumed = run.load()
    main = accelerator.is_main_process
    if main and resumed:
        tqdm.write(f"continuing '{run.path}' at step {run.step}")
    a_step = run.seconds_a_step()
    if main:
        left = duration(a_step * (config.steps - run.step))
        tqdm.write(f"expected time: {left} and the validations, at {a_step:.2g} s a step")
    log = SummaryWriter(str(config.run_dir), purge_step=run.step + 1) if main else None
    with tqdm(
        initial=run.step, total=config.steps, desc=task.name, unit="step", mininterval=2, disable=not main, leave=False
    ) as bar:
        began = time.monotonic() - run.seconds
        while run.step < config.steps:
            terms = run.gradients(run.step)
            norm = run.update()
            run.step += 1
            due = run.step % config.validate_every == 0 or run.step == config.steps
            if log is not None and (run.step % LOG_STEPS == 0 or due):
                values = {name: float(term) for name, term in terms.items()}
                run.check_finite("loss", values["loss"])
                for name, value in {**values, "gradient_norm": norm}.items():
                    log.add_scalar(f"train/{name}", value, run.step)
                bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()}, refresh=False)
            bar.update()
            if due:
                run.validate(log)
                run.seconds = time.monotonic() - began
                if main:
                    run.save()
                accelerator.wait_for_everyone()
    if log is not None:
        log.close()
    run.ema.module.load_state_dict(run.best["weights"])
    return Result(run.ema.module, run.best["step"], run.best["value"], run.seconds)
