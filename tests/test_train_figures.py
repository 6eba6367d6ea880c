"""The paper's figures: what they show, and what the command says where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from torch.utils.tensorboard import SummaryWriter

from pipeline.presets import PAPER
from train import figures
from train.data import PairDataset, list_pairs, read_gray
from train.figures import curves_figure, runtimes_figure, upscaled_figure
from train.methods import bicubic


@pytest.fixture
def pairs(data: Path) -> PairDataset:
    return PairDataset(list_pairs(data), PAPER.data)


@pytest.mark.parametrize(("figure", "columns"), [("samples", 4), ("augmentations", 8)])
def test_command_draws_lr_above_hr(figure: str, columns: int, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "figure.png"
    assert figures.main([figure, "--data", str(data), "--out", str(out)]) == 0
    with PILImage.open(out) as picture:
        shown = np.asarray(picture)
    assert shown.shape[1] > columns * 256
    lr, hr = PairDataset(list_pairs(data), PAPER.data).images(0)
    half = shown.shape[0] // 2
    for image, bottom in ((np.kron(lr, np.ones((4, 4))), half), (hr, 2 * half)):
        np.testing.assert_array_equal(shown[bottom - 260 : bottom - 4, 4:260], image)


def test_upscaled_figure_has_a_row_an_image(pairs: PairDataset) -> None:
    picture = upscaled_figure(pairs, bicubic)
    assert picture.width > 4 * 256
    assert picture.height > 4 * 256


def test_runtimes_figure_shows_where_two_differ(pairs: PairDataset) -> None:
    def brighter_corner(lr: list[np.ndarray], hr: list[np.ndarray], seeds: list[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
        (image,) = bicubic(lr, hr, seeds)
        image = image * 0.5
        image[:16, :16] += 0.1
        return [image]

    def half(lr: list[np.ndarray], hr: list[np.ndarray], seeds: list[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [0.5 * image for image in bicubic(lr, hr, seeds)]

    picture = np.asarray(runtimes_figure(pairs, {"PyTorch": half, "ONNX": brighter_corner}))
    height = picture.shape[0] // 4
    difference = picture[height - 260 : height - 4, -260:-4]
    assert (difference[:16, :16] >= 254).all()
    assert (difference[16:] == 0).all()


def test_curves_show_training_and_validation(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "unet")) as log:
        for step in range(10, 110, 10):
            log.add_scalar("train/loss", 1 / step, step)
        log.add_scalar("validation", 0.02, 100)
    (axes,) = curves_figure([tmp_path / "unet"]).axes
    raw, _, validation = axes.lines
    assert np.asarray(raw.get_xdata()).tolist() == list(range(10, 110, 10))
    assert np.asarray(raw.get_ydata()) == pytest.approx([1 / step for step in range(10, 110, 10)])
    assert np.asarray(validation.get_xydata()) == pytest.approx(np.array([[100, 0.02]]))
    assert figures.main(["curves", str(tmp_path / "unet"), "--out", str(tmp_path / "curves.png")]) == 0
    with PILImage.open(tmp_path / "curves.png") as picture:
        assert picture.size == (600, 400)


def test_steps_are_drawn_against_bicubic(tmp_path: Path) -> None:
    table = tmp_path / "best" / "images.csv"
    table.parent.mkdir()
    lines = ["file,patient,method,lpips_alex,psnr", "a,1,bicubic,0.4,30", "b,2,bicubic,0.2,32"]
    lines += ['a,1,"ONNX: DDIM, 4 steps, from pure noise",0.1,31', 'b,2,"ONNX: DDIM, 4 steps, from pure noise",0.05,33']
    lines += ['a,1,"ONNX: DDIM, 1 step, from pure noise",0.2,30', 'b,2,"ONNX: DDIM, 1 step, from pure noise",0.1,32']
    lines += ['a,1,"ONNX: DDIM, 4 steps, from pure noise, mean of 16",0.3,33']
    table.write_text("\n".join(lines) + "\n")
    lpips, psnr = figures.steps_figure([table]).axes
    np.testing.assert_allclose(np.asarray(lpips.lines[0].get_xydata()), [[1, 0.5], [4, 0.25]])
    np.testing.assert_allclose(np.asarray(psnr.lines[0].get_xydata()), [[1, 0.0], [4, 1.0]])
    assert lpips.get_legend_handles_labels()[1] == ["best, ONNX: DDIM from pure noise"]
    assert figures.main(["steps", str(table), "--out", str(tmp_path / "steps.png")]) == 0
    with PILImage.open(tmp_path / "steps.png") as picture:
        assert picture.size == (1200, 400)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is not an images.csv of train.evaluate"),
        ("file,method,lpips_alex,psnr\na,bicubic,0.3,30\n", "has no run of the system"),
        ('file,method,lpips_alex,psnr\na,"ONNX: DDIM, 4 steps, from pure noise",0.1,30\n', "has no row for bicubic"),
    ],
)
def test_a_table_without_steps_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images.csv").write_text(text)
    assert figures.main(["steps", str(tmp_path / "images.csv")]) == 1
    assert message in capsys.readouterr().err


def test_details_are_enlarged_squares(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "details.png"
    detail = "00000003_001.png:48:120"
    assert figures.main(["details", detail, "--data", str(data), "--out", str(out)]) == 0
    hr = read_gray(data / "HR_256" / "00000003_001.png", 256)[48:144, 120:216]
    with PILImage.open(out) as picture:
        shown = np.asarray(picture)
    foot, gap = 0, 6
    last = shown[shown.shape[0] - 384 - gap - foot : shown.shape[0] - gap - foot, -384 - gap : -gap]
    np.testing.assert_array_equal(last, np.kron(hr, np.ones((4, 4))))


@pytest.mark.parametrize("detail", ["a.png", "a.png:0:161", "a.png:164:0", "a.png:-4:0"])
def test_impossible_details(detail: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        figures.main(["details", detail, "--data", "."])
    assert f"must be FILE:TOP:LEFT with multiples of 4 up to 160, got '{detail}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["details", "no.png:0:0", "--data", "{}"], "error: '{}/HR_256/no.png' is not a readable image\n"),
        (["curves", "{}/no"], "error: '{}/no' has no training log, events.out.tfevents.*\n"),
        (["curves", "{}"], "error: '{}' has no training log, events.out.tfevents.*\n"),
        (["samples", "--data", "{}"], "error: '{}' has no HR_256/ and LR_64/"),
    ],
)
def test_wrong_folders_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main([argument.format(tmp_path) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message.format(tmp_path))
    assert error.count("\n") == 1
