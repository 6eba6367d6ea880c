"""ONNX ⇒ plan: shapes, command lines, precision, refusals. The API is that of TensorRT-RTX, which builds on any CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import tensorrt_rtx_bindings as rtx
from onnx import TensorProto, helper

from pipeline import ROOT
from pipeline.models import onnx_models
from pipeline.presets import BEST, PAPER
from pipeline.tensorrt import builder
from pipeline.tensorrt.builder import PlanError, Profile

UNET = ROOT / "model_repository" / "unet_onnx" / "1" / "model.onnx"
SHAPES = {"x": Profile((1, 3), (1, 8), (4, 8))}


def save_network(path: Path, operator: str = "Relu", domain: str = "") -> Path:
    """An ONNX file of one operator on float32 [B, N]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "N"]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "graph", [x], [y])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


def fake_trtexec(folder: Path, body: str, head: str = "[TensorRT v100800]") -> str:
    """A program that prints trtexec's head, writes its arguments down, and does what ``body`` says."""
    script = folder / "trtexec"
    script.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        f"print('&&&& RUNNING TensorRT.trtexec {head} # trtexec')\n"
        f"if '--help' in sys.argv: sys.exit()\n"
        f"pathlib.Path({str(folder / 'arguments')!r}).write_text('\\n'.join(sys.argv[1:]))\n"
        f"options = dict(a.split('=', 1) for a in sys.argv[1:] if '=' in a)\n{body}\n"
    )
    script.chmod(0o755)
    return str(script)


WRITE = "pathlib.Path(options['--saveEngine']).write_text('plan')"


def test_profiles_go_from_the_smallest_image_to_a_full_batch_of_the_largest() -> None:
    unet, decoder = onnx_models(BEST).denoiser, onnx_models(BEST).decoder
    assert builder.profiles(unet, BEST) == {
        "x": Profile((1, 8, 8, 8), (1, 8, 32, 32), (16, 8, 256, 256)),
        "t": Profile((1, 1), (1, 1), (16, 1)),
    }
    assert builder.profiles(decoder, BEST) == {
        "latent": Profile((1, 4, 8, 8), (1, 4, 32, 32), (16, 4, 256, 256)),
        "lr": Profile((1, 1, 16, 16), (1, 1, 64, 64), (16, 1, 512, 512)),
    }
    assert builder.profiles(onnx_models(PAPER).encoder, PAPER)["image"].largest == (16, 3, 2048, 2048)


@pytest.mark.parametrize(
    ("head", "precision", "version", "flag"),
    [
        ("[TensorRT v100800]", "fp16", "10.8.0", "--fp16"),
        ("[TensorRT v101303] [b9]", "bf16", "10.13.3", "--bf16"),
        ("[TensorRT v8601]", "fp32", "8.6.1", "--noTF32"),
        ("[TensorRT v110400]", "fp16", "11.4.0", None),
    ],
)
def test_trtexec_is_told_shapes_and_precision(
    tmp_path: Path, head: str, precision: Any, version: str, flag: str | None
) -> None:
    trt = builder.trtexec_builder(fake_trtexec(tmp_path, WRITE, head))
    assert (trt.version, trt.flags) == (version, int(version.split(".")[0]) < 11)
    trt.build(tmp_path / "a.onnx", tmp_path / "a.plan", SHAPES, precision, tmp_path / "cache")
    assert (tmp_path / "a.plan").read_text() == "plan"
    arguments = [
        f"--onnx={tmp_path}/a.onnx", f"--saveEngine={tmp_path}/a.plan",
        "--minShapes=x:1x3", "--optShapes=x:1x8", "--maxShapes=x:4x8",
        flag, f"--timingCacheFile={tmp_path}/cache", "--skipInference",
    ]  # fmt: skip
    assert (tmp_path / "arguments").read_text().split("\n") == [a for a in arguments if a]


@pytest.mark.parametrize(("operator", "domain"), [("Lungs", "chest"), ("Det", "")])
def test_an_operator_that_tensorrt_lacks_is_named(tmp_path: Path, operator: str, domain: str) -> None:
    path = save_network(tmp_path / "a.onnx", operator, domain)
    with pytest.raises(PlanError, match=f"TensorRT cannot read '.*a.onnx': {operator} [A-Z_]+: "):
        builder.api_builder(rtx).build(path, tmp_path / "a.plan", SHAPES, "fp32", None)
    assert not (tmp_path / "a.plan").exists()


def test_a_damaged_onnx_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(PlanError, match="cannot read '.*a.onnx': .*Failed to parse the ONNX model"):
        builder.api_builder(rtx).build(tmp_path / "a.onnx", tmp_path / "a.plan", SHAPES, "fp32", None)


def test_shapes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    upside_down = {"x": Profile((4, 8), (1, 8), (1, 3))}
    with pytest.raises(PlanError, match="cannot build.*MIN<=OPT<=MAX"):
        builder.api_builder(rtx).build(
            save_network(tmp_path / "a.onnx"), tmp_path / "a.plan", upside_down, "fp32", None
        )


def test_half_precision_of_a_strongly_typed_tensorrt_is_autocasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = save_network(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    asked = []

    def convert(**options: Any) -> Any:
        asked.append(options)
        return onnx.load(options["onnx_path"])

    for name in ("modelopt", "modelopt.onnx"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", SimpleNamespace(convert_to_mixed_precision=convert))
    assert builder.cast(source, target, "bf16") == target
    assert asked == [{"onnx_path": str(source), "low_precision_type": "bf16", "keep_io_types": True}]
    assert onnx.load(str(target)) == onnx.load(str(source))

    def fail(**_: Any) -> None:
        raise RuntimeError("no such type")

    monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", SimpleNamespace(convert_to_mixed_precision=fail))
    with pytest.raises(PlanError, match="AutoCast failed on '.*a.onnx': no such type"):
        builder.cast(source, target, "fp16")


def test_without_autocast_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", None)
    with pytest.raises(PlanError, match=r"pip install nvidia-modelopt\[onnx\], or use --precision fp32"):
        builder.cast(tmp_path / "a.onnx", tmp_path / "b.onnx", "fp16")
