"""The same image made otherwise."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks import alternatives
from benchmarks.alternatives import Unavailable
from pipeline import ROOT
from pipeline.method.images import Image
from pipeline.method.options import Options
from pipeline.networks import eager
from pipeline.presets import PRESETS
from tests.conftest import RunningServer


@pytest.mark.parametrize(("name", "steps"), [("best", 1), ("best", 4), ("paper", 10)])
def test_diffusers_loop_makes_our_image(name: str, steps: int, rng: np.random.Generator) -> None:
    system = eager.load(ROOT / "weights" / name, PRESETS[name])
    lr = rng.random((1, 16, 16), dtype=np.float32)
    found = alternatives.diffusers_loop(system, steps)(lr, [3])
    np.testing.assert_allclose(
        found.images, system.generator(Options.of(system.preset, steps=steps))(lr, [3]).images, atol=1e-2
    )


def test_ratios_are_to_the_first_and_differences_in_gray_levels() -> None:
    image = np.zeros((2, 2), np.float32)
    calls = []

    def variant(name: str, value: float) -> alternatives.Variant:
        def run(image: Image) -> Image:
            calls.append(name)
            return image + np.float32(value)

        return run

    found = alternatives.compare(
        {"ours": variant("ours", 0.0), "esrgan": variant("esrgan", 0.2)}, image, rounds=2, concurrency=3
    )
    assert found["ours"].ratio == 1.0
    assert found["ours"].difference == 0.0
    assert found["esrgan"].difference == pytest.approx(51.0)
    assert calls == ["ours", "esrgan", *["ours"] * 3, *["esrgan"] * 3, *["ours"] * 3, *["esrgan"] * 3]
    assert "| Real-ESRGAN x4plus, ncnn |" in alternatives.table("one at a time", found)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    system = eager.load(ROOT / "weights" / "best", PRESETS["best"])
    with pytest.raises(Unavailable, match="'no-such-compiler' not found: install g\\+\\+ or set CXX"):
        alternatives.compiled(system)


def test_what_cannot_be_run_here_is_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(alternatives, "CACHE", tmp_path)
    system = eager.load(ROOT / "weights" / "best", PRESETS["best"])
    assert list(alternatives.local_variants(["diffusers", "compiled", "esrgan"], system, 1)) == ["diffusers"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skipped: diffusers, torch.compile: ")
    assert lines[1].startswith("skipped: Real-ESRGAN x4plus, ncnn: ")


@pytest.mark.slow
def test_real_server_with_pytorch_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert alternatives.main(["--way", "in_process", "diffusers", "--rounds", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["alone"]) == ["ours", "in_process", "diffusers"]
    assert list(found["8 at once"]) == ["ours", "in_process"]
    for way in found["alone"].values():
        assert way["difference"] < 5, "the same weights and noise make the same image, in bfloat16 nearly"


def test_steps_out_of_range(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alternatives, "running_server", lambda *_: nullcontext(server.url("grpc")))
    assert alternatives.main(["--steps", "301", "--way", "diffusers", "--rounds", "1"]) == 1
    assert "'steps' must be 1–300, got 301" in capsys.readouterr().err


def test_a_model_repository_is_completed_not_changed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "model_repository" / "superres", tmp_path / "superres")
    alternatives.write_in_process(tmp_path, PRESETS["best"], steps=2)
    config = (tmp_path / "in_process" / "config.pbtxt").read_text()
    assert 'string_value: "best"' in config and 'string_value: "2"' in config
    assert (tmp_path / "in_process" / "1" / "model.py").is_file()
