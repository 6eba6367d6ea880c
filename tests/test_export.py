"""Export: graphs that the specification and PyTorch agree with, or nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from pipeline import triton_config
from pipeline.export import command as export
from pipeline.hashes import NAME, read_hashes
from pipeline.models import models, onnx_models
from pipeline.networks import eager
from pipeline.networks.unet import UNet
from pipeline.presets import DEFAULT, PAPER, PRESETS, UNetSpec
from pipeline.spec import Model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
UNET = onnx_models(PAPER).denoiser
WEIGHTS = ROOT / "weights" / DEFAULT.name
SHIPPED = pytest.mark.parametrize("model", [*onnx_models(DEFAULT)], ids=lambda m: m.name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet, Path]:
    """A small U-Net with the real one's interface, exported."""
    torch.manual_seed(0)
    unet = UNet(UNetSpec(base=8, multipliers=(1, 1, 1))).eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export.write_onnx(unet, UNET, path)
    return unet, path


@SHIPPED
def test_the_shipped_graphs_fit_the_specification(model: Model) -> None:
    export.check_graph(ROOT / "model_repository" / model.name / "1" / "model.onnx", model)


@pytest.mark.parametrize("name", [model.name for model in onnx_models(DEFAULT)])
def test_the_shipped_graphs_tell_nothing_of_the_machine_that_made_them(name: str) -> None:
    content = (ROOT / "model_repository" / name / "1" / "model.onnx").read_bytes()
    assert b"stack_trace" not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_onnxruntime_equals_pytorch(exported: tuple[UNet, Path], batch: int) -> None:
    unet, path = exported
    export.check_graph(path, UNET)
    assert export.relative_error(unet, UNET, path, batch) < export.MAX_RELATIVE_ERROR


def test_another_network_is_noticed(exported: tuple[UNet, Path]) -> None:
    _, path = exported
    torch.manual_seed(1)
    other = UNet(UNetSpec(base=8, multipliers=(1, 1, 1))).eval()
    assert export.relative_error(other, UNET, path, 1) > 100 * export.MAX_RELATIVE_ERROR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: replace(m, outputs=(replace(m.outputs[0], name="noise"),)),
            r"tensors must be \['noise'\], got \['eps'\]",
        ),
        (
            lambda m: replace(m, outputs=(replace(m.outputs[0], dims=(4, 32, -1)),)),
            r"'eps' must have dims .*, got \(-1, 4, -1, -1\)",
        ),
        (lambda m: replace(m, inputs=m.inputs[:1]), r"tensors must be \['x'\], got \['x', 't'\]"),
    ],
)
def test_a_graph_unlike_the_specification_is_refused(exported: tuple[UNet, Path], change: object, message: str) -> None:
    with pytest.raises(export.ExportError, match=message):
        export.check_graph(exported[1], change(UNET))  # type: ignore[operator]


def test_an_old_opset_is_refused(exported: tuple[UNet, Path], tmp_path: Path) -> None:
    proto = onnx.load(str(exported[1]))
    opset = next(o for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    assert opset.version >= 17
    opset.version = 16
    proto.graph.ClearField("node")
    proto.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["eps"]))
    onnx.save(proto, str(tmp_path / "old.onnx"))
    with pytest.raises((export.ExportError, onnx.checker.ValidationError), match="opset must be 17 or newer, got 16"):
        export.check_graph(tmp_path / "old.onnx", UNET)


def test_a_failed_export_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    target = repository / "unet_onnx" / "1" / "model.onnx"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"the old file")
    monkeypatch.setattr(export, "write_onnx", lambda _network, _model, path: shutil.copy(SOURCE, path))
    monkeypatch.setattr(export, "relative_error", lambda *_: 0.5)
    assert export.main(["--weights", str(WEIGHTS), "--model-repository", str(repository)]) == 1
    assert target.read_bytes() == b"the old file"
    assert [p.name for p in repository.iterdir()] == ["unet_onnx"]


SOURCE = ROOT / "model_repository" / "unet_onnx" / "1" / "model.onnx"


class Halved(nn.Module):
    """A network that differs from the one that was exported."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        result: Tensor = 0.5 * self.inner(x, t)
        return result


def test_whole_image_parity_notices_a_wrong_network() -> None:
    pipeline = eager.load(WEIGHTS, DEFAULT)
    wrong = replace(pipeline, unet=Halved(pipeline.unet))  # type: ignore[arg-type]
    assert export.whole_image_parity(wrong, ROOT / "model_repository") < export.MIN_PARITY_DB


@SHIPPED
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_shipped_graphs_equal_pytorch(model: Model, batch: int) -> None:
    pipeline = eager.load(WEIGHTS, DEFAULT)
    network = export.networks(pipeline)[model.name]
    path = ROOT / "model_repository" / model.name / "1" / "model.onnx"
    assert export.relative_error(network, model, path, batch) < export.MAX_RELATIVE_ERROR


def fake_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export without networks: every file holds the model's name."""

    def write(_network: object, model: Model, path: Path) -> None:
        path.write_text(model.name)

    monkeypatch.setattr(export, "write_onnx", write)
    monkeypatch.setattr(export, "check_graph", lambda *_: None)
    monkeypatch.setattr(export, "relative_error", lambda *_: 0.0)
    monkeypatch.setattr(export, "whole_image_parity", lambda *_: 100.0)
    monkeypatch.setattr(export, "check_int8", lambda *_: None)
    monkeypatch.setattr(onnx, "load", lambda _: None)
    monkeypatch.setattr(onnx, "save", lambda _, path: Path(path).write_text("int8"))
    monkeypatch.setattr(export, "quantize", lambda *_: None)


def files_of(repository: Path) -> set[str]:
    return {path.relative_to(repository).as_posix() for path in repository.glob("*/1/*")}


def test_presets_take_each_others_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_export(monkeypatch)
    arguments = ["--model-repository", str(tmp_path)]
    for name in ("best", "paper", "best"):
        assert export.main([*arguments, "--preset", name, "--weights", str(ROOT / "weights" / name)]) == 0
        preset = PRESETS[name]
        files = {f"{model.name}/1/model.onnx" for model in onnx_models(preset)}
        assert files_of(tmp_path) == files | {f"{model}/1/model_int8.onnx" for model in preset.int8}
        assert triton_config.main([*arguments, "--check", "--preset", name]) == 0
        assert {path.name for path in tmp_path.iterdir()} == {NAME, *(model.name for model in models(preset))}
        assert list(read_hashes(tmp_path / NAME)) == sorted(files_of(tmp_path))


def test_a_file_that_cannot_be_written_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_export(monkeypatch)
    for model in onnx_models(DEFAULT):
        (tmp_path / model.name / "1").mkdir(parents=True)
        (tmp_path / model.name / "1" / "model.onnx").write_text("the old file")
    before = files_of(tmp_path)
    copied = []

    def full(source: Path, target: Path) -> None:
        assert target.name.startswith("."), "beside the old file, in a folder where servers look for names"
        copied.append(source)
        if len(copied) == 3:
            raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert export.main(["--weights", str(WEIGHTS), "--model-repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("error: disk full\n")
    assert files_of(tmp_path) == before


def test_missing_weights_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", str(tmp_path / "none"), "--model-repository", str(tmp_path)]
    assert export.main([*arguments, "--preset", "paper"]) == 1
    assert capsys.readouterr().err.startswith("error: no AutoencoderKL at")
    assert export.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: cannot read")
