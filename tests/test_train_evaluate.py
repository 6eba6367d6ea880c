"""The evaluation: its protocol on known images, and the command on the shipped networks."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from client.results import Upscaled
from pipeline import ROOT
from pipeline.method.images import Image, upsample
from pipeline.method.options import Options
from pipeline.networks import eager
from pipeline.presets import BEST, DEFAULT, PAPER
from pipeline.spec import REDUCTIONS
from tests.conftest import RunningServer
from train import evaluate, methods
from train.data import PairDataset, list_pairs
from train.evaluate import choose, inner, lr_error, measure, seconds_per_image
from train.methods import Method, Sampling, bicubic, options_of, parse_run, parse_runtimes
from train.report import Measured

WEIGHTS = ROOT / "weights" / DEFAULT.name


@pytest.fixture
def pairs(data: Path) -> PairDataset:
    return PairDataset(list_pairs(data)[:3], PAPER.data)


def test_the_reference_itself_is_perfect_and_bicubic_is_not(pairs: PairDataset) -> None:
    results = measure(pairs, {"bicubic": bicubic, "HR": lambda _lr, hr, _seeds: hr}, ["alex"])
    perfect, measured = results["HR"].values, results["bicubic"].values
    assert perfect["psnr"].tolist() == [np.inf] * 3
    assert perfect["ssim"].tolist() == pytest.approx([1.0] * 3)
    assert perfect["lpips_alex"].tolist() == [0.0] * 3
    assert (measured["psnr"] < 60).all()
    assert perfect["lr_error"] == pytest.approx([0.0] * 3, abs=0.51), "LR images are rounded to 8 bits"
    assert (measured["lpips_alex"] > 0).all()


def test_image_i_has_seed_i_and_one_image_alone_is_timed(pairs: PairDataset) -> None:
    calls = []

    def method(lr: list[np.ndarray], hr: list[np.ndarray], seeds: list[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
        assert [image.shape for image in (*lr, *hr)] == [(64, 64)] * len(lr) + [(256, 256)] * len(hr)
        calls.append(seeds)
        return hr

    measure(pairs, {"bicubic": method}, ["alex"])
    assert calls == [[0, 1, 2], [0], [1], [2]]
    assert seconds_per_image(pairs, method) < 1


def test_choose_takes_one_side_evenly_spread(data: Path) -> None:
    everything, patients = choose(data, "all", None, {})
    assert len(everything) == 20
    assert patients[:3] == ["00000000", "00000000", "00000001"]
    few, _ = choose(data, "all", 3, {})
    assert few.paths == [everything.paths[i] for i in (0, 9, 19)]
    test, owners = choose(data, "test", None, {}, "60/20/20")
    assert (len(test), len(set(owners))) == (4, 2)


def test_run_on_the_command_line() -> None:
    assert parse_run("ddim:50:lr") == Sampling("ddim", 50, "lr")
    assert str(parse_run("ddpm:300:noise")) == "DDPM, 300 steps, from pure noise"
    assert parse_run("ddim:4:noise:mean16:free") == Sampling("ddim", 4, "noise", 16, "mean", False)
    assert str(parse_run("ddim:1:noise:mean2:free")) == "DDIM, 1 step, from pure noise, mean of 2, not projected"
    assert parse_run("ddim:4:noise:faithful").faithful
    assert parse_run("ddim:1:noise:area").degradation == "area"
    assert str(parse_run("ddim:1:noise:area")) == "DDIM, 1 step, from pure noise, degradation area stated"
    assert parse_runtimes("torch,onnx") == ("torch", "onnx")


def test_the_inner_part_leaves_a_tenth_of_each_side(pairs: PairDataset) -> None:
    image = np.arange(100, dtype=np.float32).reshape(10, 10)
    np.testing.assert_array_equal(inner(image), image[1:-1, 1:-1])
    methods: dict[str, Method] = {
        "bicubic": bicubic,
        "HR": lambda _lr, hr, _seeds: [np.where(border(x), np.float32(0), x) for x in hr],
    }
    results = measure(pairs, methods, ["alex"])
    assert results["HR"].values["psnr_inner"].tolist() == [np.inf] * 3
    assert (results["HR"].values["psnr"] < 60).all()


def border(image: Image) -> np.ndarray:  # type: ignore[type-arg]
    """Where the outermost pixels are."""
    found = np.ones(image.shape, bool)
    found[1:-1, 1:-1] = False
    return found


@pytest.mark.slow
def test_command_measures_what_other_viewers_made_of_the_scans(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--limit", "2", "--runtimes", "torch", "--lpips", "alex"]
    assert evaluate.main([*arguments, "--degradation", "cubic", "area", "noise10", "--report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "split test, LR by area, 64 to 256 pixels" in out
    rows = {
        line.split("|")[1].strip(): line for line in out.partition("| LR by |")[2].splitlines() if line.count("|") > 2
    }
    assert {"cubic", "area", "noise10"} <= set(rows)
    assert len({line.partition("×")[2] for line in rows.values()}) == len(rows)
    figures = {}
    for name in ("cubic", "area", "noise10"):
        with open(tmp_path / name / "images.csv", newline="", encoding="utf-8") as file:
            figures[name] = [float(line["psnr"]) for line in csv.DictReader(file) if line["method"] == "bicubic"]
    assert figures["noise10"] < figures["cubic"]
    assert figures["area"] != figures["cubic"]


def test_other_sizes_need_pairs_of_that_size(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--data", str(data), "--hr-size", "512"]) == 1
    assert f"no HR_512/ and LR_128/: run  python -m train.pairs IMAGES {data} --hr-size 512" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_command_reports_runtimes_side_by_side(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(WEIGHTS, weights)
    status = evaluate.main(
        [
            *(
                "--data",
                str(data),
                "--limit",
                "2",
                "--runtimes",
                "torch,onnx",
                "--run",
                "ddim:2:noise",
                "--lpips",
                "alex",
            ),
            *("--report", str(tmp_path / "report"), "--reported", "nih", "--record", "tiny", "--weights", str(weights)),
        ]
    )
    assert status == 0
    text = (tmp_path / "report" / "results.md").read_text(encoding="utf-8")
    assert "2 images of 1 patients, split test" in text
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "bicubic", "autoencoder alone (ceiling)",
        "PyTorch: DDIM, 2 steps, from pure noise", "ONNX: DDIM, 2 steps, from pure noise",
        "*paper: bicubic*", "*paper: PyTorch*", "*paper: TensorRT*",
    ]  # fmt: skip
    with open(tmp_path / "report" / "images.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 2
    torch_lines, onnx_lines = lines[4:6], lines[6:8]
    for a, b in zip(torch_lines, onnx_lines, strict=True):
        assert a["file"] == b["file"]
        assert float(a["lpips_alex"]) == pytest.approx(float(b["lpips_alex"]), abs=1e-3)
    for name in ("upscaled.png", "runtimes.png"):
        with PILImage.open(tmp_path / "report" / name) as picture:
            assert picture.height > 2 * 256
    recorded = json.loads((weights / "unet.json").read_text())["metrics"]["tiny"]
    assert recorded["bicubic"]["psnr"] == pytest.approx(np.mean([float(line["psnr"]) for line in lines[:2]]), abs=1e-3)


def test_measured_values_reach_the_record(tmp_path: Path) -> None:
    for network in ("vae", "unet"):
        (tmp_path / f"{network}.json").write_text('{"preset": "paper", "metrics": {"old": {}}}')
    evaluate.record(tmp_path, "new", {"bicubic": Measured({"psnr": np.array([30.0, 31.0])})})
    expected = {"preset": "paper", "metrics": {"old": {}, "new": {"bicubic": {"psnr": 30.5}}}}
    assert json.loads((tmp_path / "vae.json").read_text()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--lpips", "vgg"], "--lpips must include alex"),
        (["--shares", "80/20/0"], "the split 80/20/0 gives test no patients"),
        (["--device", "cuda"], "--device must be auto or cpu, got cuda: PyTorch finds no GPU"),
        (["--shares", "70/30"], "the split must be three percentages such as 70/20/10, got '70/30'"),
        (["--weights", "nowhere"], "nowhere"),
        (["--model-repository", "nowhere"], "'nowhere/unet_onnx/1/model.onnx'"),
        (["--run", "ddim:4:lr"], "preset 'best': 'start' must be one of noise, got 'lr'"),
        (["--run", "ddim:301:noise"], "preset 'best': 'steps' must be 1–300, got 301"),
        (["--index", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_impossible_settings_are_one_line(
    data: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--data", str(data), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_tensorrt_is_asked_of_the_server_with_each_images_seed(
    pairs: PairDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is played: a plan needs a GPU."""
    asked = []

    class Server:
        preset = DEFAULT

        def __init__(self, url: str) -> None:
            assert url == "gpu-server:8001"

        def upscale(self, image: Image, **options: object) -> Upscaled:
            asked.append(options)
            return Upscaled(
                upsample(image), None, 0.0, "cubic", 0.0, None, None, "best", "", 0, Options.of(DEFAULT), 0.0
            )

    monkeypatch.setattr(methods, "Client", Server)
    system = eager.load(WEIGHTS, DEFAULT)
    run = Sampling("ddim", 4, "noise", 8, "mean")
    made = methods.make_methods(("trt",), [run], system, ROOT / "model_repository", "gpu-server:8001")
    lr = [pairs.unit_images(i)[0] for i in range(2)]
    images = made["TensorRT: DDIM, 4 steps, from pure noise, mean of 8"](lr, [], [3, 4])
    np.testing.assert_array_equal(images[1], upsample(lr[1]))
    common = {
        **{"denoiser": "trt", "steps": 4, "sampler": "ddim", "start": "noise"},
        **{"samples": 8, "output": "mean", "faithful": True, "degradation": "auto"},
    }
    assert asked == [{"seed": 3, **common}, {"seed": 4, **common}]


@pytest.mark.usefixtures("impatient")
def test_tensorrt_without_a_server_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--data", str(data), "--runtimes", "trt", "--url", "localhost:1"]) == 1
    assert capsys.readouterr().err.startswith("error: no server ready at localhost:1 (grpc) within 0.1 s")


def test_tensorrt_without_a_plan_is_one_line(server: object, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url("grpc")  # type: ignore[attr-defined]
    assert evaluate.main(["--data", str(data), "--limit", "1", "--runtimes", "trt", "--url", url]) == 1
    assert "'denoiser' is 'trt'" in capsys.readouterr().err


RUNS = [
    parse_run(":".join((f"{sampler}:{steps}:{start}", *words)))
    for sampler, steps in (("ddim", 1), ("ddim", 3), ("ddpm", 2))
    for start in BEST.diffusion.starts
    for words in ((), ("faithful",), ("free",), ("mean3",), ("mean3", "faithful"), ("mean3", "free"))
]


def test_every_run_gives_the_same_images_by_pytorch_onnx_and_the_server(server: RunningServer) -> None:
    system, url = eager.load(WEIGHTS, BEST), server.url("grpc")
    made = methods.make_methods(("torch", "onnx", "server"), RUNS, system, ROOT / "model_repository", url)
    # of sides that are padded
    lr = [upsample(0.3 + 0.4 * np.random.default_rng(seed).random((6, 5), np.float32))[:18] for seed in range(2)]
    for run in RUNS:
        torch_images, *others = (made[f"{name}: {run}"](lr, [], [3, 4]) for name in ("PyTorch", "ONNX", "Triton"))
        for images in others:
            np.testing.assert_allclose(images, torch_images, atol=1e-3, err_msg=str(run))
        # whichever reduction was found
        errors = [
            min(lr_error(image, small, name) for name in REDUCTIONS)
            for image, small in zip(torch_images, lr, strict=True)
        ]
        assert (max(errors) < 2) == (run.faithful is not False), f"{run}: {errors}"


def test_a_server_of_another_preset_is_refused(server: RunningServer) -> None:
    other = dataclasses.replace(eager.load(WEIGHTS, DEFAULT), preset=PAPER)
    with pytest.raises(ValueError, match="must run preset 'paper', got 'best'"):
        methods.make_methods(("server",), [], other, ROOT / "model_repository", server.url("grpc"))


def test_the_lr_error_is_that_of_eight_bits(pairs: PairDataset) -> None:
    lr, hr = pairs.unit_images(0)
    assert lr_error(hr, lr, "cubic") <= 0.8
    assert lr_error(np.clip(hr + 0.1, 0, 1), lr, "cubic") == pytest.approx(25.5, abs=2)


def test_runs_are_checked_against_the_preset() -> None:
    assert options_of(Sampling("ddim", 4, "lr"), PAPER) == Options.of(PAPER, steps=4)
    with pytest.raises(ValueError, match="'output' is 'mean', which needs 'samples' of 2 or more"):
        options_of(Sampling("ddim", 4, "noise", 1, "mean"), BEST)


@pytest.mark.parametrize("text", ["ddim", "ddim:x:lr", "euler:5:lr", "ddim:5:zero", "ddim:5:lr:mean", "ddim:5:lr:x"])
def test_unknown_runs_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--data", ".", "--run", text])
    assert "must be ddpm|ddim:STEPS:noise|lr" in capsys.readouterr().err


def test_unknown_runtimes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--data", ".", "--runtimes", "onnx,cuda"])
    assert "must be among bicubic, torch, onnx, server, trt, got 'cuda'" in capsys.readouterr().err
