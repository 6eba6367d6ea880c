"""The reader of all formats: one clear line for what cannot be read, and smaller images."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from client.files import read_image
from client.formats.source import Choice, FileError
from pipeline.method.images import downscale


def save(path: Path, height: int = 48, width: int = 64) -> NDArray[np.float32]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    image: NDArray[np.float32] = pixels / np.float32(255)
    return image


def test_a_name_may_be_text(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png")).bits == 8


def test_a_format_is_told_by_the_content_not_the_name(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.dcm")
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm").image, image, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"hello, I am text", "is not a readable PNG, JPEG, TIFF, DICOM or .npy image"),
        (b"v/1\x01" + b"\0" * 60, "is not a readable PNG, JPEG, TIFF, DICOM or .npy image"),
        (b"\x89PNG\r\n\x1a\nrubbish", "is damaged"),
    ],
)
def test_not_an_image(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"'{path}' ")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=re.escape(f"'{tmp_path}'") + ".*" + os.strerror(errno.EISDIR)):
        read_image(tmp_path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero")):
        with pytest.raises(FileError, match=f"'{path}'"):
            read_image(path)


def test_choices_that_do_not_go_with_the_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(FileError, match="a.png' must be a DICOM file for --window"):
        read_image(tmp_path / "a.png", Choice(window=(1, 2)))


def test_by_4_it_is_made_smaller_as_the_paper_does(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png")
    source = read_image(tmp_path / "a.png", downscale=4)
    np.testing.assert_allclose(source.image, downscale(image).clip(0, 1), atol=1e-6)
    assert source.notes == ("downscaled ×4 to 16×12, cubic",)
    assert source.pixel_mm is None
    assert read_image(tmp_path / "a.png", Choice(pixel_mm=0.15), downscale=4).pixel_mm == pytest.approx(0.6)


@pytest.mark.parametrize("factor", [2, 3, 5, 8])
def test_by_other_factors_it_is_made_smaller_by_area(tmp_path: Path, factor: int) -> None:
    image = save(tmp_path / "a.png")
    source = read_image(tmp_path / "a.png", downscale=factor)
    height, width = 48 // factor, 64 // factor
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor)
    np.testing.assert_allclose(source.image, blocks.mean(axis=(1, 3)), atol=1e-5)
    left_out = {3: ", 1 columns and 0 rows left out", 5: ", 4 columns and 3 rows left out"}.get(factor, "")
    assert source.notes == (f"downscaled ×{factor} to {width}×{height}, by area{left_out}",)


def test_too_small_to_be_made_smaller(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(FileError, match="is too small for --downscale 49"):
        read_image(tmp_path / "a.png", downscale=49)
