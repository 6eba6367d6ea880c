"""Write 8-bit and 16-bit PNG files atomically, with text chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from PIL import Image as PILImage
from PIL import PngImagePlugin

from client.formats.source import FileError
from pipeline.atomic import atomic_write, remove_unfinished
from pipeline.method.images import Image, to_integers


@cache
def tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder, the first time that this process writes there."""
    remove_unfinished(folder)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a file to fill, which then replaces ``path``, whose folder is made if it is missing.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        with atomic_write(path) as partial:
            yield partial
    except OSError as error:
        raise FileError(f"'{path}' cannot be written: {error.strerror or error}") from error


def save_png(
    file: IO[bytes] | Path, image: Image | PILImage.Image, bits: int = 8, text: dict[str, Any] | None = None
) -> None:
    """Save a PNG: a gray image in [0, 1] in 8 or 16 bits, or a picture; ``text`` as text chunks."""
    picture = image if isinstance(image, PILImage.Image) else PILImage.fromarray(to_integers(image, bits))
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, str(value))
    picture.save(file, format="PNG", pnginfo=info)


def write_png(path: Path, image: Image | PILImage.Image, bits: int = 8, text: dict[str, Any] | None = None) -> None:
    """Write a PNG atomically; the arguments are those of ``save_png``, the errors of ``writing``."""
    with writing(path) as partial:
        save_png(partial, image, bits, text)
