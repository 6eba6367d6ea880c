"""The command, on real files and the real server."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydicom.data import get_testdata_file

from client import Client
from client.arguments import parse
from client.batch import MEAN_SAMPLES, options_of
from client.files import read_image
from client.upscale import main
from pipeline import ROOT
from pipeline.hashes import file_hash
from pipeline.method.images import downscale
from pipeline.method.options import InvalidRequest
from pipeline.presets import PAPER
from pipeline.serving.local_server import free_ports
from tests.conftest import RunningServer, StartServer
from tests.dicom_files import lut, make_dataset, to_bytes
from tests.test_reader import FATED

FAST = ["--steps", "2"]


@pytest.fixture
def at(server: RunningServer) -> list[str]:
    return ["--url", server.url("grpc"), *FAST]


def picture(path: Path, height: int = 16, width: int = 20, dtype: type = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # smooth: of noise more would be said than that it was upscaled
    corners = np.random.default_rng(len(path.name)).random((3, 3), dtype=np.float32)
    pixels = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR) * np.iinfo(dtype).max
    cv2.imwrite(str(path), pixels.astype(dtype))
    return path


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on stderr, without the progress bar."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [
        line
        for line in lines
        if line.strip() and "image/s]" not in line and "?image" not in line and "s/image]" not in line
    ]


def test_as_a_script_on_one_image(server: RunningServer, tmp_path: Path) -> None:
    image = picture(tmp_path / "scan.png")
    command = [sys.executable, "client/upscale.py", str(image), "--url", server.url("grpc"), *FAST]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{tmp_path / 'scan_x4.png'}: 80×64" in result.stdout
    with PILImage.open(tmp_path / "scan_x4.png") as upscaled:
        assert upscaled.size == (80, 64)
        assert "not for diagnosis" in upscaled.text["Description"]
        assert upscaled.text["Parameters"].startswith(
            "preset=best seed=0 steps=2 sampler=ddim start=noise samples=1 output=sample faithful=True "
            "degradation=auto denoiser=auto found="
        )
        assert upscaled.text["Parameters"].endswith(f" model={file_hash(ROOT / 'model_repository' / 'SHA256SUMS')}")


@pytest.mark.slow
def test_help_has_examples() -> None:
    command = [sys.executable, "client/upscale.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "examples:\n  python client/upscale.py scan.png" in result.stdout
    assert "not for diagnosis" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("suffix", "dtype", "bits"), [(".png", np.uint8, 8), (".tif", np.uint16, 16), (".jpg", np.uint8, 8)]
)
def test_writes_the_depth_it_read(at: list[str], tmp_path: Path, suffix: str, dtype: type, bits: int) -> None:
    image = picture(tmp_path / f"a{suffix}", dtype=dtype)
    assert main([str(image), "-o", str(tmp_path / "out.png"), *at]) == 0
    source = read_image(tmp_path / "out.png")
    assert (source.bits, source.image.shape) == (bits, (64, 80))


def test_a_larger_image_is_offered_to_be_made_smaller(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "a.png", 4, 2052)
    assert main([str(image), *at]) == 1
    assert "must be 2–2048 pixels per side, got 2052×4 (--downscale N makes it smaller)" in capsys.readouterr().err


def test_dicom(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    radiograph = get_testdata_file("RG1_UNCR.dcm")
    assert radiograph is not None
    out = tmp_path / "out.png"
    assert main([radiograph, "-o", str(out), "--downscale", "16", *at]) == 0
    source = read_image(out)
    assert (source.bits, source.image.shape) == (16, (488, 460))
    assert "MONOCHROME1" in capsys.readouterr().out


def field_files(folder: Path) -> dict[str, NDArray[Any]]:
    """Files as tools in the field write them, and the gray values that each stands for."""
    ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    deep = np.rint(ramp * 4095).astype("u2")
    negative = make_dataset((4095 - deep).astype("u2"), 12)
    table = {"VOILUTSequence": [lut(0, np.arange(4096), 16)]}
    window = {"RescaleSlope": "-1", "RescaleIntercept": "4095", "WindowCenter": "2048", "WindowWidth": "4096"}
    padded = deep.astype("i2")
    padded[:4] = -32768
    files = {
        "negative slope.dcm": to_bytes(negative, **window),
        "table.dcm": to_bytes(make_dataset(deep, 12), **table),
        "float.dcm": to_bytes(make_dataset(ramp)),
        "padded.dcm": to_bytes(make_dataset(padded), PixelPaddingValue=-32768),
        "bare.dcm": to_bytes(make_dataset(deep, 12))[132:],
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sixteen = (ramp * 65535).astype("u2")
    tifffile.imwrite(folder / "white.tif", 65535 - sixteen, byteorder=">", photometric="miniswhite")
    tifffile.imwrite(folder / "pages.tif", np.stack([sixteen, 65535 - sixteen]), photometric="minisblack")
    np.save(folder / "array.npy", ramp * 300 - 7)
    right = dict.fromkeys([*files, "white.tif", "pages.tif", "array.npy"], ramp)
    return {**right, "padded.dcm": np.where(np.arange(16)[:, None] < 4, 0, ramp)}


def test_files_from_the_field_come_out_as_they_should_be_seen(at: list[str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    expected = field_files(tmp_path / "in")
    assert main([str(tmp_path / "in"), "--name", "{name}.png", *at]) == 0
    for name, image in expected.items():
        source = read_image(tmp_path / "in_x4" / f"{name}.png")
        assert source.bits == 16
        np.testing.assert_allclose(downscale(source.image), image, atol=4 / 255, err_msg=name)
    with PILImage.open(tmp_path / "in_x4" / "padded.dcm.png") as upscaled:
        assert upscaled.text["Notes"].startswith("padding is black: 64 pixels of -32768; no window: black is 0")


def test_window_frame_and_page(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    field_files(tmp_path / "in")
    scan, pages = str(tmp_path / "in" / "table.dcm"), str(tmp_path / "in" / "pages.tif")
    assert main([scan, "--window", "1000", "2000", "--frame", "1", *at]) == 0
    assert main([pages, "--page", "2", *at]) == 0
    out = capsys.readouterr().out
    assert "(window as asked for: center 1000, width 2000)" in out
    assert "(page 2 of 2)" in out
    assert main([pages, "--page", "3", "--force", *at]) == 1
    assert "pages.tif' has 2 pages, --page must be 1 to 2, got 3" in capsys.readouterr().err


def test_a_decoder_that_crashes_ends_no_run(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.reader.Reader.__init__.__defaults__", ((sys.executable, "-c", FATED), 60))
    for name in ("crash.png", "a.png", "z.png"):
        picture(tmp_path / "in" / name)
    assert main([str(tmp_path / "in"), *at]) == 1
    captured = capsys.readouterr()
    assert "crash.png' is damaged: its decoder crashed (SIGABRT)" in captured.err
    assert "2 of 3 images upscaled" in captured.out


def test_colour_is_said(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = np.random.default_rng(0).integers(100, 120, 3)
    cv2.imwrite(str(tmp_path / "a.png"), np.tile(colours, (16, 16, 1)).astype(np.uint8))
    assert main([str(tmp_path / "a.png"), *at]) == 0
    assert "(colour turned to gray)" in capsys.readouterr().out


def test_protocols_and_seed(server: RunningServer, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    for name, protocol, seed in (("g", "grpc", "1"), ("h", "http", "1"), ("s", "grpc", "2")):
        arguments = ["--url", server.url(protocol), "--protocol", protocol, "--seed", seed, *FAST]
        assert main([str(image), "-o", str(tmp_path / f"{name}.png"), *arguments]) == 0
    g, h, s = (read_image(tmp_path / f"{n}.png").image for n in "ghs")
    np.testing.assert_array_equal(g, h)
    assert not np.array_equal(g, s)


def test_compare_and_downscale(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(tmp_path / "full.png", 67, 81)
    assert main([str(image), "--downscale", "4", "--compare", str(image), *at]) == 0
    assert read_image(tmp_path / "full_x4.png").image.shape == (64, 80)
    with PILImage.open(tmp_path / "full_x4_compare.png") as row:
        assert row.width > 4 * 80
    assert "downscaled ×4 to 20×16, cubic" in capsys.readouterr().out


def test_an_existing_comparison_is_kept_too(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, kept = picture(tmp_path / "full.png", 64, 64), tmp_path / "full_x4_compare.png"
    kept.write_bytes(b"precious")
    assert main([str(image), "--downscale", "4", "--compare", str(image), *at]) == 1
    assert kept.read_bytes() == b"precious"
    assert "full_x4_compare.png' exists already" in capsys.readouterr().err
    assert not (tmp_path / "full_x4.png").exists()


def test_mean_of_samples_and_map_of_uncertainty(at: list[str], tmp_path: Path) -> None:
    image, doubt = picture(tmp_path / "a.png"), tmp_path / "doubt.png"
    assert main([str(image), "--samples", "3", "--mean", "--uncertainty", str(doubt), *at]) == 0
    with PILImage.open(doubt) as shown, PILImage.open(tmp_path / "a_x4.png") as upscaled:
        assert shown.mode == "RGB"
        assert shown.width > 80
        assert "not for diagnosis" in shown.text["Description"]
        assert "samples=3 output=mean" in upscaled.text["Parameters"]
    assert main([str(image), "--uncertainty", str(doubt), "-o", str(tmp_path / "one.png"), "--force", *at]) == 0
    with PILImage.open(tmp_path / "one.png") as upscaled:
        assert "samples=1 output=sample" in upscaled.text["Parameters"], "networks that tell their doubt need no more"
    assert main([str(image), "--mean", "--no-faithful", "-o", str(tmp_path / "b.png"), *at]) == 0
    with PILImage.open(tmp_path / "b.png") as upscaled:
        assert "samples=8 output=mean faithful=False" in upscaled.text["Parameters"]


@pytest.mark.parametrize(("samples", "drawn"), [([], MEAN_SAMPLES), (["--samples", "3"], 3)])
def test_networks_that_tell_no_doubt_need_several_samples_for_the_map(samples: list[str], drawn: int) -> None:
    args = parse(["a.png", "--uncertainty", "u.png", *samples])
    assert options_of(args, PAPER)["samples"] == drawn
    args = parse(["a.png", "--uncertainty", "u.png", "--samples", "1"])
    with pytest.raises(InvalidRequest, match="preset 'paper' needs --samples of 2 or more"):
        options_of(args, PAPER)


def test_how_an_image_was_reduced_may_be_told_and_is_kept_with_the_result(at: list[str], tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    assert main([str(image), "--degradation", "lanczos", *at]) == 0
    with PILImage.open(tmp_path / "a_x4.png") as upscaled:
        assert "degradation=lanczos" in upscaled.text["Parameters"]
        assert "found=lanczos" in upscaled.text["Parameters"]


def test_pixels_of_a_size_not_trained_on_are_noted(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "a.png")
    assert main([str(image), "--pixel-mm", "0.14", *at]) == 0
    assert "pixels of 0.14 mm, the networks were trained on" in capsys.readouterr().out
    with PILImage.open(tmp_path / "a_x4.png") as upscaled:
        assert "pixel_mm=0.14" in upscaled.text["Parameters"]
        assert "pixels of 0.14 mm" in upscaled.text["Notes"]


def test_what_was_unusual_is_printed_and_kept(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smooth = 128 + 40 * np.sin(np.arange(64) / 9) * np.cos(np.arange(64) / 7)[:, None]
    noisy = (smooth + np.random.default_rng(0).normal(0, 8, (64, 64))).astype(np.uint8)
    PILImage.fromarray(noisy).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), *at]) == 0
    assert "gray levels: not followed exactly" in capsys.readouterr().out
    with PILImage.open(tmp_path / "a_x4.png") as upscaled:
        assert "gray levels: not followed exactly" in upscaled.text["Notes"]


def test_an_existing_map_of_uncertainty_is_kept(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, kept = picture(tmp_path / "a.png"), tmp_path / "doubt.png"
    kept.write_bytes(b"precious")
    assert main([str(image), "--uncertainty", str(kept), *at]) == 1
    assert kept.read_bytes() == b"precious"
    assert "doubt.png' exists already" in capsys.readouterr().err
    assert not (tmp_path / "a_x4.png").exists()


@pytest.mark.parametrize("name", ["a_x4.png", "a_x4_compare.png"])
def test_outputs_of_one_name_are_refused(
    at: list[str], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "a.png", 64, 64)
    options = ["--downscale", "4", "--compare", str(image), "--uncertainty", str(tmp_path / name)]
    assert main([str(image), *options, *at]) == 1
    assert f"{name}' is also the name of another output" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_option_that_the_servers_preset_does_not_take(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png")
    assert main([str(tmp_path / "in"), "--start", "lr", *at]) == 1
    assert error_lines(capsys) == ["error: 'start' must be one of noise, got 'lr'"]


@pytest.mark.parametrize("name", ["results", "results.v2", "results-0.1", "results.jpg/", "results.png/"])
def test_an_output_without_suffix_or_with_a_slash_is_a_folder(at: list[str], tmp_path: Path, name: str) -> None:
    assert main([str(picture(tmp_path / "a.png")), "-o", f"{tmp_path}/{name}", *at]) == 0
    assert read_image(tmp_path / name / "a_x4.png").image.shape == (64, 80)


def test_an_input_named_twice_is_done_once(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(picture(tmp_path / "in" / "a.png"))
    assert main([str(tmp_path / "in"), image, image, *at]) == 0
    assert capsys.readouterr().out.count("→") == 1


def test_compare_with_another_size(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, other = picture(tmp_path / "a.png"), picture(tmp_path / "hr.png", 60, 60)
    assert main([str(image), "--compare", str(other), *at]) == 1
    assert "must be 80×64 to compare, got 60×60" in capsys.readouterr().err
    assert not (tmp_path / "a_x4.png").exists()


def test_folder_with_good_and_bad_files(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scans"
    for i in range(3):
        picture(folder / f"good{i}.png")
    (folder / "text.png").write_text("not an image")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "truncated.png").write_bytes(picture(folder / "large.png", 64, 64).read_bytes()[:700])
    picture(folder / "pixel.png", 1, 1)
    (folder / "notes.txt").write_text("ignored")
    assert main([str(folder), *at]) == 1
    assert sorted(p.name for p in (tmp_path / "scans_x4").iterdir()) == [
        *(f"good{i}_x4.png" for i in range(3)),
        "large_x4.png",
    ]
    captured = capsys.readouterr()
    for name in ("text.png", "empty.dcm", "truncated.png", "pixel.png"):
        assert len([line for line in captured.err.replace("\r", "\n").splitlines() if name in line]) == 1, name
    assert "4 of 8 images upscaled in" in captured.out
    assert "4 failed" in captured.out


def test_existing_outputs_are_kept_without_force(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = picture(tmp_path / "a.png"), tmp_path / "a_x4.png"
    out.write_bytes(b"precious")
    assert main([str(image), *at]) == 1
    assert out.read_bytes() == b"precious"
    assert error_lines(capsys) == [f"error: '{image}': '{out}' exists already: give --force to overwrite it"]
    assert main([str(image), "--force", *at]) == 0
    assert read_image(out).image.shape == (64, 80)


def test_two_inputs_with_one_output(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.tif")
    assert main([str(tmp_path / "in"), *at]) == 1
    assert "a.tif': its output" in capsys.readouterr().err
    assert len(list((tmp_path / "in_x4").iterdir())) == 1


def test_the_tree_of_a_folder_is_kept(at: list[str], tmp_path: Path) -> None:
    for name in ("a.png", "p1/a.png", "p1/s/b.png"):
        picture(tmp_path / "in" / name)
    assert main([str(tmp_path / "in"), "--recursive", "-o", str(tmp_path / "out"), *at]) == 0
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert found == ["a_x4.png", "p1/a_x4.png", "p1/s/b_x4.png"]


def test_what_is_done_is_skipped(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in_x4").mkdir()
    (tmp_path / "in_x4" / "b_x4.png").write_bytes(b"done")
    assert main([str(tmp_path / "in"), "--skip-existing", *at]) == 0
    assert "2 of 3 images upscaled" in (out := capsys.readouterr().out)
    assert "1 skipped, 0 failed" in out
    assert (tmp_path / "in_x4" / "b_x4.png").read_bytes() == b"done"
    assert main([str(tmp_path / "in"), "--skip-existing", "--url", "localhost:1"]) == 0, "needs no server"
    assert "0 of 3 images upscaled" in (out := capsys.readouterr().out)
    assert "3 skipped, 0 failed" in out
    assert main([str(tmp_path / "in" / "a.png"), "-o", str(tmp_path / "in_x4"), "--skip-existing"]) == 0
    assert "skipped, its output exists already" in capsys.readouterr().out


def test_file_names_and_output_of_any_encoding(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "röntgen.png")
    picture(folder / "b.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    picture(folder / "c.png").rename(folder / f"{'n' * 245}.png")
    command = [sys.executable, "client/upscale.py", str(folder), "--url", server.url("grpc"), *FAST]
    for encoding in ("latin-1", "ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        result = subprocess.run([*command, "--force"], capture_output=True, cwd=ROOT, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        assert b"3 of 3 images upscaled" in result.stdout
        assert b"Error" not in result.stderr
    assert sorted(os.fsencode(p.name) for p in (tmp_path / "in_x4").iterdir()) == sorted(
        [b"caf\xe9_x4.png", "röntgen_x4.png".encode(), b"n" * 245 + b"_x4.png"]
    )


def test_a_reader_of_the_output_that_goes_away(server: RunningServer, tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / "in" / f"{i}.png")
    command = [sys.executable, "-u", "client/upscale.py", str(tmp_path / "in"), "--url", server.url("grpc"), *FAST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_a_full_disk_behind_the_output(server: RunningServer, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    command = [sys.executable, "client/upscale.py", str(tmp_path / "a.png"), "--url", server.url("grpc"), *FAST]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(server: RunningServer, tmp_path: Path, number: signal.Signals) -> None:
    for i in range(60):
        picture(tmp_path / "in" / f"{i}.png", 64, 64)
    command = [sys.executable, "-u", "client/upscale.py", str(tmp_path / "in"), "--url", server.url("grpc")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(number)
        process.stdout.read()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 128 + number
    names = [p.name for p in (tmp_path / "in_x4").iterdir()]
    assert 0 < len(names) < 60
    assert all(name.endswith("_x4.png") for name in names)


@pytest.mark.parametrize(
    "options", [["--uncertainty", "a.png"], ["-o", "b.png", "--compare", "b_compare.png"], ["-o", "a.png"]]
)
def test_an_input_is_never_overwritten(
    at: list[str],
    tmp_path: Path,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    image, other = picture(tmp_path / "a.png"), picture(tmp_path / "b_compare.png", 64, 80)
    before = image.read_bytes(), other.read_bytes()
    assert main(["a.png", "--force", *options, *at]) == 1
    assert "is an input" in capsys.readouterr().err
    assert (image.read_bytes(), other.read_bytes()) == before


def test_a_name_that_begins_with_a_dash(at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "-d.png")
    assert main([*at, "--", "-d.png"]) == 0
    assert (tmp_path / "-d_x4.png").is_file()


def test_an_empty_file_is_not_taken_for_done(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(tmp_path / "a.png")
    (tmp_path / "a_x4.png").touch()
    assert main([str(image), "--skip-existing", *at]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_folder_that_may_not_be_searched(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "in" / "a.png")

    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", closed)
    assert main([str(tmp_path / "in"), *at]) == 1
    assert error_lines(capsys) == [f"error: '{tmp_path / 'in'}' cannot be read: Permission denied"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"cxr-superres {version('cxr-superres')}"


def test_missing_file(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.png"), *at]) == 1
    assert error_lines(capsys) == [f"error: '{tmp_path / 'none.png'}' does not exist"]


def test_empty_folder(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), *at]) == 1
    (line,) = error_lines(capsys)
    assert line.startswith(f"error: '{tmp_path}' has no images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "'steps' must be 1–300, got 0"),
        (["--steps", "301"], "'steps' must be 1–300, got 301"),
        (["--steps", "-1"], "'steps' must be 1–300, got -1"),
        (["--seed", "-1"], "'seed' must be 0–9223372036854775807, got -1"),
        (["--sampler", "euler"], "--sampler: invalid choice: 'euler'"),
        (["--start", "middle"], "--start: invalid choice: 'middle'"),
        (["--denoiser", "tpu"], "--denoiser: invalid choice: 'tpu'"),
        (["--downscale", "1"], "--downscale: must be 2 or more, got 1"),
        (
            ["-o", "out.jpg"],
            "-o: must be a .png or .dcm file or a folder, got 'out.jpg' (for a folder of that name",
        ),
        (["-o", "out.bmp"], "-o: must be a .png or .dcm file or a folder, got 'out.bmp'"),
        (["-o", "/dev/null"], "-o: must be a .png or .dcm file or a folder, got the file '/dev/null'"),
        (["another.png", "-o", "out.png"], "-o: must be a folder for several inputs, got 'out.png'"),
        (["-o", "out.png", "--name", "{stem}.png"], "--name: requires outputs in folders"),
        (["--name", "x.png"], "--name: must be a file name that ends in .png and has {stem} or {name}"),
        (["--force", "--skip-existing"], "--skip-existing: not allowed with argument --force"),
        (["--frame", "0"], "--frame: must be 1 or more, got 0"),
        (["--page", "-1"], "--page: must be 1 or more, got -1"),
        (["--window", "100", "0"], "--window: the width must be more than 0, got 100 0"),
        (["--window", "nan", "5"], "--window: the width must be more than 0, got nan 5"),
        (["--no-such-option"], "--no-such-option"),
        (["--compare", "hr.png", "another.png"], "--compare: requires a single image"),
        (["--samples", "0"], "'samples' must be 1–16, got 0"),
        (["--samples", "17"], "'samples' must be 1–16, got 17"),
        (["--samples", "1", "--mean"], "'output' is 'mean', which needs 'samples' of 2 or more"),
        (["--degradation", "blur"], "--degradation: invalid choice: 'blur' (choose from"),
        (["--pixel-mm", "0"], "--pixel-mm: must be 0.01 to 50, got 0"),
        (["--pixel-mm", "nan"], "--pixel-mm: must be 0.01 to 50, got nan"),
        (["--samples", "3"], "--samples: requires --mean or --uncertainty"),
        (["--uncertainty", "u.jpg"], "--uncertainty: must end in .png, got 'u.jpg'"),
        (["--uncertainty", "u.png", "another.png"], "--uncertainty: requires a single image"),
    ],
)
def test_options_not_allowed(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(picture(tmp_path / "a.png")), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_tensorrt_is_not_built(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(picture(tmp_path / "a.png")), "--denoiser", "trt", *at]) == 1
    (line,) = error_lines(capsys)
    assert "the server runs no TensorRT plan 'unet_trt': build it" in line


def test_server_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert main([str(picture(tmp_path / "a.png")), "--url", f"localhost:{port}", "--wait", "0.5"]) == 1
    (line,) = error_lines(capsys)
    assert line.startswith(f"error: no server ready at localhost:{port} (grpc) within 0.5 s")


def test_server_dying_in_the_middle_of_a_folder(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(ROOT / "model_repository")
    names = [picture(tmp_path / "in" / f"{i:02}.png", 128, 128).name for i in range(12)]
    begun = itertools.count(1)
    send = Client.upscale

    def kill_before_the_ninth(client: Client, *arguments: Any, **options: Any) -> Any:
        if next(begun) == 9:  # one was answered then, for eight are under way at once
            server.kill()
        return send(client, *arguments, **options)

    monkeypatch.setattr(Client, "upscale", kill_before_the_ninth)
    slow = ["--sampler", "ddpm", "--steps", "20", "--wait", "1"]
    assert main([str(tmp_path / "in"), "--url", server.url("grpc"), *slow]) == 1
    captured = capsys.readouterr()
    failed = [n for n in names if any(n in line for line in captured.err.replace("\r", "\n").splitlines())]
    written = [p.name for p in (tmp_path / "in_x4").iterdir()] if (tmp_path / "in_x4").exists() else []
    assert len(failed) + len(written) == 12, "every file is written whole or named"
    assert written and failed
    assert "Traceback" not in captured.err


def test_output_that_cannot_be_written(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(picture(tmp_path / "a.png")), "-o", str(tmp_path / "file" / "out.png"), *at]) == 1
    (line,) = error_lines(capsys)
    assert "cannot be written" in line


def test_runs_without_torch(server: RunningServer, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    code = (
        "import sys; sys.modules['torch'] = None; from client.upscale import main; "
        f"sys.exit(main([{str(image)!r}, '--url', {server.url('grpc')!r}, '--steps', '2']))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
