"""PNG out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from client.files import read_image
from client.formats.source import FileError
from client.png import write_png


@pytest.mark.parametrize("bits", [8, 16])
def test_round_trip_with_text(tmp_path: Path, bits: int) -> None:
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "new" / "a.png"
    write_png(path, image, bits, {"Description": "derived", "Notes": "×4 → window"})
    source = read_image(path)
    assert source.bits == bits
    np.testing.assert_allclose(source.image, image, atol=0.5 / (2**bits - 1) + 1e-6)
    with PILImage.open(path) as picture:
        assert picture.text == {"Description": "derived", "Notes": "×4 → window"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.zeros((4, 4), np.float32))
    before = path.read_bytes()

    def full_disk(_self: PILImage.Image, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PILImage.Image, "save", full_disk)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        write_png(path, np.ones((4, 4), np.float32))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_leaves_nothing_unfinished(small_disk: Path, rng: np.random.Generator) -> None:
    image = rng.random((1024, 1024), dtype=np.float32)
    write_png(small_disk / "small.png", image[:64, :64])
    with pytest.raises(FileError, match=r"'.*large\.png' cannot be written: No space left on device"):
        write_png(small_disk / "large.png", image, bits=16)
    assert [path.name for path in small_disk.iterdir()] == ["small.png"]


def test_names_up_to_the_file_systems_limit(tmp_path: Path) -> None:
    write_png(tmp_path / f"{'a' * 251}.png", np.zeros((4, 4), np.float32))
    with pytest.raises(FileError, match="cannot be written: File name too long"):
        write_png(tmp_path / f"{'a' * 252}.png", np.zeros((4, 4), np.float32))
