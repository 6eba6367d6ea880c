"""The frame of the trainings: batches prepared ahead, slices of time, compiled networks; the same weights by all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from train import loop
from train.config import Paused, option, run_command
from train.loop import Batches, Task, load_batches
from train.setup import Training, make_accelerator, step_generator

STEPS = 5


class Distance(nn.Module):
    """Of a line to points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.line(x) - target).square().mean()}


def config(folder: Path, **changes: Any) -> Training:
    given: dict[str, Any] = {
        "run_dir": folder,
        "steps": STEPS,
        "batch": 4,
        "validate_every": 2,
        "precision": "fp32",
        "device": "cpu",
    }
    return Training(**given | changes)


def task(config: Training) -> Task:
    loss = Distance()

    def batch(step: int, share: slice) -> tuple[Tensor, Tensor]:
        x = torch.randn(config.batch, 3, generator=step_generator(config, step))[share]
        return x, x.sum(1, keepdim=True)

    return Task(
        name="line",
        loss=loss,
        network="line",
        batch=batch,
        validate=lambda line: float((line.weight - 1).abs().sum()),
        picture=lambda _: PILImage.new("L", (8, 8)),
        inputs={},
    )


def train(config: Training) -> dict[str, Tensor]:
    """The weights that a training ends with."""
    loop.train(task(config), config, make_accelerator(config))
    found: dict[str, Tensor] = torch.load(config.run_dir / "checkpoint.pt", weights_only=True)["network"]
    return found


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_the_same_to_the_bit_whatever_the_number_of_workers(tmp_path: Path, accumulate: int) -> None:
    none, two = (train(config(tmp_path / str(workers), workers=workers, accumulate=accumulate)) for workers in (0, 2))
    assert_equal(none, two)


def test_and_so_they_are_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(config(tmp_path / "straight"))
    stopped = config(tmp_path / "stopped", workers=2)
    save = loop.TrainingRun.save

    def stop_after_the_first(run: loop.TrainingRun) -> None:
        if run.step > 2:
            raise KeyboardInterrupt
        save(run)

    monkeypatch.setattr(loop.TrainingRun, "save", stop_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    monkeypatch.undo()
    assert_equal(straight, train(config(tmp_path / "stopped", workers=2, resume=True)))


def test_slices_of_time_end_with_a_checkpoint_and_together_in_the_same_weights(tmp_path: Path) -> None:
    straight = train(config(tmp_path / "straight"))
    for step in range(1, STEPS):
        with pytest.raises(
            Paused, match=rf"stopped at step {step} of 5 after .* run the same command with --resume to continue"
        ):
            train(config(tmp_path / "slices", minutes=1e-9, resume=True))
    assert_equal(straight, train(config(tmp_path / "slices", resume=True)))


def test_a_pause_is_a_success_that_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Line(Training):
        run_dir: Path = option(tmp_path, "folder")
        steps: int = option(STEPS, "steps")

    def run(config: Line) -> None:
        train(config)

    assert (
        run_command(Line, run, "Train.\n\nexample", ["--minutes=1e-9", "--device=cpu", "--precision=fp32", "--batch=4"])
        == 0
    )
    assert "--resume to continue" in capsys.readouterr().out


def test_trial_steps_change_nothing_and_take_no_batch_away(tmp_path: Path) -> None:
    settings = config(tmp_path)
    run = loop.TrainingRun(task(settings), settings, make_accelerator(settings))
    run.prepare()
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    assert run.seconds_per_step() > 0
    assert_equal(before, run.network.state_dict())
    assert all(parameter.grad is None for parameter in run.network.parameters())
    assert len(list(run.batches)) == STEPS


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_turn_however_many_prepare_them(tmp_path: Path, workers: int) -> None:
    batches = Batches(task(config(tmp_path)), [slice(0, 2), slice(2, 4)], 1, STEPS)
    found = list(load_batches(batches, workers, False))
    assert len(found) == 2 * (STEPS - 1)
    for i, (x, y) in enumerate(found):
        torch.testing.assert_close((x, y), batches[i])


def test_an_error_of_a_worker_is_the_trainings(tmp_path: Path) -> None:
    def batch(step: int, _share: slice) -> tuple[Tensor, ...]:
        if step == 2:
            raise ValueError("no such image")
        return (torch.zeros(1),)

    batches = load_batches(Batches(replace(task(config(tmp_path)), batch=batch), [slice(0, 4)], 0, STEPS), 2, False)
    with pytest.raises(ValueError, match="no such image"):
        list(batches)


def test_compiled_networks_learn_the_same_and_are_validated_and_saved_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda method, **given: compile_by(method, backend=backend, **given))
    plain = train(config(tmp_path / "plain"))
    assert compiled == []
    assert_equal(plain, train(config(tmp_path / "compiled", compile="on")))
    assert len(compiled) == 1, "the training's forward, and not the validation's"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_may_be_gray_or_in_colour(tmp_path: Path, mode: str) -> None:
    settings = config(tmp_path)
    drawn = replace(task(settings), picture=lambda _: PILImage.new(mode, (8, 8)))
    loop.train(drawn, settings, make_accelerator(settings))
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == [
        "000002.png",
        "000004.png",
        "000005.png",
    ]


def test_impossible_numbers(tmp_path: Path) -> None:
    for changes in ({"workers": -2}, {"minutes": -1.0}):
        with pytest.raises(ValueError, match=r"--workers must be at least -1, and --minutes at least 0"):
            make_accelerator(config(tmp_path, **changes))
