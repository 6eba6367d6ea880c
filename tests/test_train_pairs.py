"""HR/LR pairs: the paper's protocol, every kind of file, and runs that are resumed, killed or out of disk space."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage

from benchmarks.soak import descendants
from tests.conftest import wait_for
from train import pairs
from train.pairs import HR, LR, SKIPPED, Pairs, generate_downsampled_pairs, main

Array = NDArray[Any]
ROOT = Path(pairs.__file__).parent.parent


def radiograph(height: int = 320, width: int = 320, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def protocol(image: Array) -> tuple[Array, Array]:
    """HR and LR of an 8-bit gray square, by OpenCV alone."""
    hr = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
    return hr, cv2.resize(hr, (64, 64), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def written(out: Path, name: str) -> tuple[Array, Array]:
    hr, lr = (cv2.imread(str(out / folder / f"{name}.png"), cv2.IMREAD_UNCHANGED) for folder in (HR, LR))
    return hr, lr


def assert_pair(out: Path, name: str, image: Array) -> None:
    for actual, expected in zip(written(out, name), protocol(image), strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == np.uint8


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


@pytest.fixture
def many(src: Path) -> Path:
    """``src`` with 200 times the same image: seconds of work."""
    original = save(src / "0.png", radiograph(1024, 1024))
    for i in range(1, 200):
        os.link(original, src / f"{i}.png")
    return src


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_pairs_follow_the_papers_protocol(src: Path, out: Path) -> None:
    big, already_hr = radiograph(1024, 1024), radiograph(256, 256, seed=1)
    save(src / "00000001_000.png", big)
    save(src / "below" / "b.png", already_hr)
    assert generate_downsampled_pairs(src, out, workers=2) == Pairs(made=2, existing=0, skipped={})
    assert (HR, LR) == ("HR_256", "LR_64")
    assert_pair(out, "00000001_000", big)
    assert_pair(out, "b", already_hr)
    np.testing.assert_array_equal(written(out, "b")[0], already_hr)
    assert (out / SKIPPED).read_text() == ""


@pytest.mark.parametrize(("height", "width"), [(300, 421), (421, 300)])
def test_of_other_shapes_the_centred_square_is_taken(src: Path, out: Path, height: int, width: int) -> None:
    image = radiograph(height, width)
    save(src / "a.png", image)
    generate_downsampled_pairs(src, out, workers=1)
    assert_pair(out, "a", image[60:360] if height > width else image[:, 60:360])


def test_pairs_of_another_size_lie_beside_the_protocols(src: Path, out: Path) -> None:
    image = radiograph(640, 640)
    save(src / "a.png", image)
    save(src / "small.png", radiograph(400, 400))
    assert generate_downsampled_pairs(src, out, hr_size=512, workers=1).made == 1
    hr, lr = (cv2.imread(str(out / folder / "a.png"), cv2.IMREAD_UNCHANGED) for folder in ("HR_512", "LR_128"))
    np.testing.assert_array_equal(hr, cv2.resize(image, (512, 512), interpolation=cv2.INTER_CUBIC))
    np.testing.assert_array_equal(lr, cv2.resize(hr, (128, 128), interpolation=cv2.INTER_CUBIC))
    assert "small.png' must have at least 512 pixels per side, got 400×400" in (out / SKIPPED).read_text()
    assert generate_downsampled_pairs(src, out, workers=1).made == 2
    assert_pair(out, "a", image)


@pytest.mark.parametrize("size", [0, -64, 100])
def test_sizes_that_the_networks_cannot_take(src: Path, out: Path, size: int) -> None:
    save(src / "a.png", radiograph())
    with pytest.raises(ValueError, match=f"--hr-size must be a multiple of 64, got {size}"):
        generate_downsampled_pairs(src, out, hr_size=size)


def test_colour_alpha_palette_and_jpeg_become_gray(src: Path, out: Path) -> None:
    gray = radiograph()
    colour = np.dstack([gray, gray[::-1], gray[:, ::-1]])
    save(src / "rgba.png", np.dstack([gray, gray, gray, radiograph(seed=1)]))
    save(src / "rgb.png", colour)
    PILImage.fromarray(gray).convert("P").save(src / "palette.png")
    PILImage.fromarray(gray).convert("LA").save(src / "gray_alpha.png")
    PILImage.fromarray(gray > 127).save(src / "one_bit.png")
    jpeg = cv2.imread(str(save(src / "photo.JPG", gray)), cv2.IMREAD_UNCHANGED)
    assert generate_downsampled_pairs(src, out, workers=1).made == 6
    for name in ("rgba", "palette", "gray_alpha"):
        assert_pair(out, name, gray)
    assert_pair(out, "one_bit", np.where(gray > 127, 255, 0).astype(np.uint8))
    assert_pair(out, "rgb", cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY))
    assert_pair(out, "photo", jpeg)


def test_16_bits_are_scaled_to_8_before_the_resampling(src: Path, out: Path) -> None:
    gray = radiograph()
    exact = gray.astype(np.uint16) * 257
    save(src / "exact.png", exact)
    save(src / "colour.png", np.dstack([exact] * 3))
    # 128/257 is just under a half, 129/257 just over
    save(src / "down.png", np.minimum(gray, 254) * np.uint16(257) + np.uint16(128))
    save(src / "up.png", np.minimum(gray, 254) * np.uint16(257) + np.uint16(129))
    save(src / "white.png", np.full((256, 256), 65535, np.uint16))
    generate_downsampled_pairs(src, out, workers=1)
    assert_pair(out, "exact", gray)
    assert_pair(out, "colour", gray)
    assert_pair(out, "down", np.minimum(gray, 254))
    assert_pair(out, "up", np.minimum(gray, 254) + np.uint8(1))
    assert_pair(out, "white", np.full((256, 256), 255, np.uint8))


def test_a_second_run_touches_nothing_and_makes_what_is_missing(src: Path, out: Path) -> None:
    for i in range(3):
        save(src / f"{i}.png", radiograph(seed=i))
    generate_downsampled_pairs(src, out, workers=1)
    times = {name: (out / name).stat().st_mtime_ns for name in files(out) - {SKIPPED}}
    assert generate_downsampled_pairs(src, out, workers=1) == Pairs(made=0, existing=3, skipped={})

    (out / LR / "1.png").unlink()
    (out / HR / "2.png").unlink()
    assert generate_downsampled_pairs(src, out, workers=1) == Pairs(made=2, existing=1, skipped={})
    changed = {name for name, then in times.items() if (out / name).stat().st_mtime_ns != then}
    assert changed == {f"{LR}/1.png", f"{HR}/2.png"}
    assert_pair(out, "1", radiograph(seed=1))
    assert_pair(out, "2", radiograph(seed=2))


def test_files_that_give_no_pair_are_skipped_and_listed(
    src: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(src / "good.png", radiograph())
    small = save(src / "small.png", radiograph(255, 400))
    png = save(src / "truncated.png", radiograph())
    jpeg = save(src / "truncated.jpg", radiograph()).rename(src / "truncated_too.jpg")
    flipped = save(src / "flipped.png", radiograph())
    for path in (png, jpeg):
        path.write_bytes(path.read_bytes()[:-2000])
    damaged = bytearray(flipped.read_bytes())
    damaged[5000] ^= 1
    flipped.write_bytes(damaged)
    (src / "text.png").write_text("no image")
    (src / "empty.jpeg").touch()
    (src / "folder.png").mkdir()
    save(src / ".hidden.png", radiograph())
    (src / "notes.txt").touch()

    assert main([str(src), str(out), "--workers", "1"]) == 0
    assert files(out) == {f"{HR}/good.png", f"{LR}/good.png", SKIPPED}
    reasons = dict(line.split(" ", 1) for line in (out / SKIPPED).read_text().splitlines())
    assert reasons.pop(f"'{small}'") == "must have at least 256 pixels per side, got 400×255"
    assert reasons.pop(f"'{src / 'folder.png'}'") == "cannot be read: Is a directory"
    assert set(reasons.values()) == {"is damaged, or not PNG or JPEG"}
    assert {Path(name.strip("'")).name for name in reasons} == {
        *("truncated.png", "truncated_too.jpg", "flipped.png", "text.png", "empty.jpeg")
    }
    printed = capfd.readouterr()
    assert printed.out == "1 pairs made, 0 already existed, 7 files skipped\n"
    assert f"skipped (all in '{out / SKIPPED}'):\n" in printed.err
    assert "is damaged" in printed.err
    assert "libpng" not in printed.err and "WARN" not in printed.err


def test_a_mended_file_is_made_by_the_next_run(src: Path, out: Path) -> None:
    save(src / "a.png", radiograph())
    (src / "b.png").touch()
    assert len(generate_downsampled_pairs(src, out, workers=1).skipped) == 1
    save(src / "b.png", radiograph(seed=1))
    assert generate_downsampled_pairs(src, out, workers=1) == Pairs(made=1, existing=1, skipped={})
    assert (out / SKIPPED).read_text() == ""


@pytest.mark.parametrize("nth", [1, 2])
def test_a_write_that_fails_leaves_no_part_of_a_file(
    src: Path, out: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(src / "a.png", radiograph())
    for folder in (HR, LR):
        (out / folder).mkdir(parents=True)
    replace, calls = os.replace, []

    def fails_at_nth(a: Path, b: Path) -> None:
        calls.append(b)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        replace(a, b)

    monkeypatch.setattr(os, "replace", fails_at_nth)
    with pytest.raises(OSError, match="No space left on device"):
        pairs.make_pair(path, out)
    assert len(files(out)) == nth - 1
    assert pairs.finished(out) == set()
    assert pairs.make_pair(path, out) is None
    assert_pair(out, "a", radiograph())


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_run_leaves_whole_files_and_is_continued(many: Path, out: Path, sent: signal.Signals) -> None:
    (out / HR).mkdir(parents=True)
    (out / HR / ".0.png.1.partial").write_text("a killed run's")
    command = [sys.executable, "-m", "train.pairs", str(many), str(out), "--workers", "2"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    while not pairs.finished(out):
        assert process.poll() is None
        time.sleep(0.01)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does
    else:
        process.kill()
    # returns when the last worker has ended: they hold its output open
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    if sent == signal.SIGINT:
        assert errors.splitlines()[-1] == "interrupted; run the same command to continue"
        assert "Traceback" not in errors
        assert not list(out.rglob("*.partial"))

    made = len(pairs.finished(out))
    assert made < 200
    expected = protocol(radiograph(1024, 1024))
    for folder, image in zip((HR, LR), expected, strict=True):
        for path in (out / folder).glob("*.png"):
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image)
    for i in range(20, 200):
        (many / f"{i}.png").unlink()
    before = len(pairs.finished(out) & {str(i) for i in range(20)})
    assert generate_downsampled_pairs(many, out, workers=1) == Pairs(20 - before, before, {})
    assert not list(out.rglob("*.partial"))


def test_ctrl_c_while_the_workers_start(many: Path, out: Path) -> None:
    command = [sys.executable, "-m", "train.pairs", str(many), str(out), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: process.poll() is not None or descendants(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_full_disk_is_one_line_with_what_is_done(src: Path, out: Path) -> None:
    save(src / "a.png", np.full((256, 256), 7, np.uint8))
    save(src / "b.png", np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8))
    # no file may grow beyond 16 KiB, which is less than the HR of noise
    command = f"ulimit -f 16; exec '{sys.executable}' -m train.pairs '{src}' '{out}' --workers 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: '{out / HR / 'b.png'}' cannot be written: File too large; "
        "1 of 2 pairs made; run the same command to continue"
    )
    assert "Traceback" not in done.stderr
    assert files(out) == {f"{HR}/a.png", f"{LR}/a.png"}


@pytest.mark.parametrize("target", ["src", "src/out", "src/../src"])
def test_pairs_do_not_go_among_the_originals(
    tmp_path: Path, src: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(src / "a.png", radiograph())
    assert main([str(src), str(tmp_path / target)]) == 1
    assert "would put pairs among the originals" in capsys.readouterr().err
    assert files(tmp_path) == {"src/a.png"}


@pytest.mark.parametrize("folder", [HR, LR, f"{HR}/below"])
def test_pairs_are_not_made_of_pairs(tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / folder / "a.png", radiograph())
    assert main([str(tmp_path / folder), str(tmp_path)]) == 1
    assert "would put pairs among the originals" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_one_line(src: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: object) -> str:
        assert main([str(a) for a in arguments]) == 1
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if not line.startswith(("\r", "pairs:"))][-1]

    assert error(src / "none", out) == f"error: '{src / 'none'}' is not a folder"
    assert error(src, out) == f"error: no images (.png, .jpg, .jpeg) below '{src}'"
    save(src / "a.png", radiograph())
    assert error(src, out, "--workers", "0") == "error: --workers must be 1 or more, got 0"
    save(src / "below" / "a.jpg", radiograph())
    assert error(src, out) == (
        f"error: '{src / 'below' / 'a.jpg'}' and '{src / 'a.png'}' would both become 'a.png': rename one"
    )
    assert not out.exists()
    (src / "below" / "a.jpg").unlink()
    (src / "a.png").write_text("no image")
    assert error(src, out) == f"error: none of the 1 images in '{src}' makes a pair: see '{out / SKIPPED}'"
    out.joinpath(SKIPPED).unlink()
    for folder in (HR, LR):
        (out / folder).rmdir()
    out.rmdir()
    out.touch()
    assert error(src, out).startswith("error: ") and str(out) in error(src, out)


def test_a_killed_worker_ends_the_run(src: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(2):
        save(src / f"{i}.png", radiograph())
    monkeypatch.setattr(pairs, "_start_worker", partial(os._exit, 1))
    with pytest.raises(OSError, match="a worker was killed.*fewer --workers"):
        generate_downsampled_pairs(src, out, workers=1)


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "  python -m train.pairs data/nih/images data/nih\n" in capsys.readouterr().out
