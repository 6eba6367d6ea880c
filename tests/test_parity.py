"""The gate between a plan and its ONNX file, on a real server whose "plans" are ONNX models, exact and perturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline import ROOT
from pipeline.export import parity
from pipeline.export.parity import Parity, ParityError, judge, measure_parity, report
from pipeline.hashes import write_hashes
from pipeline.models import onnx_models, plan_models
from pipeline.presets import BEST
from pipeline.runtimes.onnx import onnx_networks
from pipeline.serving.local_server import not_ready, running_server
from pipeline.spec import Model
from pipeline.triton_config import config_text

REPOSITORY = ROOT / "model_repository"
NETWORKS, PLANS = [*onnx_models(BEST)], [*plan_models(BEST)]
GOOD = Parity({"unet_trt at t = 299": 0.01}, psnr=60.0, dark=0.1)


def perturb(path: Path, factor: float, last: float) -> None:
    """Let the network of an ONNX file answer factor·y, and for an image at t = 0 ``last`` more."""
    model = onnx.load(str(path))
    graph, name = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["exact" if output == name else output for output in node.output]
    for constant, value in (("factor", factor), ("last", last), ("zero", 0.0)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), constant))
    graph.node.append(helper.make_node("Mul", ["exact", "factor"], ["scaled" if last else name]))
    if last:
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "per_image"))
        graph.node.append(helper.make_node("Reshape", ["t", "per_image"], ["time"]))
        graph.node.append(helper.make_node("Equal", ["time", "zero"], ["at_the_end"]))
        graph.node.append(helper.make_node("Where", ["at_the_end", "last", "zero"], ["more"]))
        graph.node.append(helper.make_node("Add", ["scaled", "more"], [name]))
    onnx.save(model, str(path))


def add_model(repository: Path, network: Model, name: str, factor: float = 1.0, last: float = 0.0) -> Model:
    """A copy of a network under another name, perturbed."""
    model = replace(network, name=name)
    shutil.copytree(REPOSITORY / network.name, repository / name)
    (repository / name / "config.pbtxt").write_text(config_text(model))
    perturb(repository / name / "1" / "model.onnx", factor, last)
    return model


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("parity")
    shutil.copytree(REPOSITORY, folder / "models")
    for network, plan in zip(NETWORKS, PLANS, strict=True):
        add_model(folder / "models", network, plan.name)
    add_model(folder / "models", NETWORKS[0], "unet_late", last=100.0)
    add_model(folder / "models", NETWORKS[0], "unet_nan", factor=float("nan"))
    add_model(folder / "models", NETWORKS[1], "encoder_far", factor=1.2)
    write_hashes(folder / "models")
    with running_server(folder / "log", folder / "models", ["--runtime=onnxruntime"]) as url:
        yield url


def measure(url: str, *names: str) -> Parity:
    pairs = [(network, replace(network, name=name)) for network, name in zip(NETWORKS, names, strict=False)]
    return measure_parity(url, BEST, onnx_networks(REPOSITORY, BEST), pairs)


@pytest.mark.slow
def test_the_same_network_passes_in_single_calls_and_whole_images(url: str) -> None:
    found = measure(url, *(plan.name for plan in PLANS))
    assert list(found.calls) == [
        "unet_trt at t = 299", "unet_trt at t = 150", "unet_trt at t = 1", "vae_encoder_trt", "vae_decoder_trt",
        "superres_trt", "restorer_trt",
    ]  # fmt: skip
    assert max(found.calls.values()) < 1e-4
    assert found.psnr > 90
    assert found.dark < 0.01
    judge(found)


@pytest.mark.slow
def test_whole_images_tell_what_the_recorded_calls_do_not(url: str) -> None:
    found = measure(url, "unet_late")
    assert max(found.calls.values()) < 1e-4
    with pytest.raises(
        ParityError, match="whole images: PSNR against ONNX must be above 52 dB, got .*: use --precision"
    ):
        judge(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_another_encoder_fail(url: str) -> None:
    found = measure(url, "unet_nan", "encoder_far")
    assert np.isnan([found.psnr, found.dark]).all()
    with pytest.raises(
        ParityError, match=r"error must be below 5%, got unet_nan at t = 299: nan%, .*, encoder_far: 20.0%"
    ):
        judge(found)


@pytest.mark.slow
def test_a_model_that_the_server_lacks_is_named(url: str) -> None:
    assert not_ready(url, "unet_trt") is None
    assert not_ready(url, "missing") == "it is not in the repository"
    with pytest.raises(ParityError, match="the server does not answer: .*'missing'"):
        measure(url, "missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": {"unet_trt at t = 1": 0.051}}, "unet_trt at t = 1: 5.1%"),
        ({"calls": {"unet_trt at t = 1": float("nan")}}, "unet_trt at t = 1: nan%"),
        ({"psnr": 51.9}, "PSNR against ONNX must be above 52 dB, got 51.9"),
        ({"psnr": float("nan")}, "PSNR against ONNX must be above 52 dB, got nan"),
        ({"dark": 0.51}, "the shift of dark areas must be below 0.5 gray levels, got 0.51"),
        ({"dark": float("nan")}, "the shift of dark areas must be below 0.5 gray levels, got nan"),
    ],
)
def test_each_bound_and_nan_is_judged(change: dict[str, Any], message: str) -> None:
    judge(GOOD)
    with pytest.raises(ParityError, match=message):
        judge(replace(GOOD, **change))


def test_images_are_compared_where_they_are_dark_too() -> None:
    onnx = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (10, 1))
    assert parity.compare_images(onnx, onnx) == (100.0, 0.0)
    psnr, dark = parity.compare_images(np.where(onnx < 0.2, onnx + np.float32(2 / 255), onnx), onnx)
    assert psnr == pytest.approx(-10 * np.log10(0.2 * (2 / 255) ** 2), abs=0.01)
    assert dark == pytest.approx(2, abs=0.01)
    spoilt = onnx.copy()
    spoilt[0, 99] = np.nan
    assert np.isnan(parity.compare_images(spoilt, onnx)[0])


def test_a_report_names_everything() -> None:
    assert report(GOOD) == (
        "calls off by unet_trt at t = 299: 1.00%; whole images: PSNR 60.0 dB, dark areas shifted by 0.10 gray levels"
    )


def test_without_the_radiograph_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "get_testdata_file", lambda _: None)
    with pytest.raises(ParityError, match="pip install pydicom-data"):
        parity.radiographs(BEST)
