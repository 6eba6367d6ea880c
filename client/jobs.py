"""Turn input files and folders into jobs, yielded while folders are still being read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Formatter

from client.formats.kinds import SUFFIXES, is_dicom
from client.formats.source import FileError
from pipeline.spec import SCALE

SUFFIX = f"_x{SCALE}"
ENDINGS = {"png": ".png", "dicom": ".dcm"}
"""Format of outputs ⇒ end of their names."""
PATTERN = f"{{stem}}{SUFFIX}.png"
DICOMDIR = "DICOMDIR"
"""Name of a medium's table of contents, which has no image."""
FIELDS = ("stem", "name", "suffix")


@dataclass(frozen=True)
class Job:
    """An image to upscale and its output file."""

    path: Path
    target: Path


def check_pattern(pattern: str, ending: str = ".png") -> None:
    """Check that a pattern names files of this ending in one folder, one per input.

    Raises:
        ValueError: the pattern is invalid.
    """
    example = PATTERN.replace(".png", ending)
    rule = (
        f"must be a file name that ends in {ending} and has {{stem}} or {{name}}, such as '{example}', got '{pattern}'"
    )
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(rule) from error
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(name is None or (not spec and not conversion) for _, name, spec, conversion in parts)
    if not plain or set(names) - set(FIELDS) or not {"stem", "name"} & set(names):
        raise ValueError(f"{rule}; fields are {', '.join(f'{{{name}}}' for name in FIELDS)}")
    if not pattern.lower().endswith(ending) or "/" in pattern or pattern.startswith("."):
        raise ValueError(rule)


def name_of(pattern: str, path: Path) -> str:
    """Return the output's name: ``{stem}`` is the input's name without its suffix, ``{suffix}`` has no dot."""
    return pattern.format(stem=path.stem, name=path.name, suffix=path.suffix.removeprefix("."))


def images_in(folder: Path, recursive: bool, avoid: Path | None) -> Iterator[Path | FileError]:
    """Yield a folder's images, by suffix or DICOM contents, sorted; then those in its folders.

    Hidden files and folders, links to folders, DICOMDIRs, and the folder ``avoid`` are skipped. An unreadable folder
    yields an error.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        yield FileError(f"'{folder}' cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = folder / entry.name
        if os.path.isfile(path) and entry.name != DICOMDIR and (path.suffix.lower() in SUFFIXES or is_dicom(path)):
            yield path
    for entry in entries:
        if recursive and entry.is_dir(follow_symlinks=False) and _resolved(folder) / entry.name != avoid:
            yield from images_in(folder / entry.name, recursive, avoid)


def _resolved(folder: Path) -> Path:
    """Resolve links; unlike ``Path.resolve``, keep broken links as they are."""
    return _real(folder.absolute())


@lru_cache(maxsize=1024)
def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


@dataclass
class Finder:
    """Finds the jobs of a command.

    Args:
        inputs: files and folders.
        out: output folder or, for one input file, output file; None: beside each input.
        out_is_file: whether ``out`` is a file.
        pattern: pattern of output names, see ``check_pattern``.
        recursive: whether to read subfolders; the output folder then has the same tree.
    """

    inputs: Sequence[Path]
    out: Path | None = None
    out_is_file: bool = False
    pattern: str = PATTERN
    recursive: bool = False

    def __post_init__(self) -> None:
        self._seen: set[Path] = set()
        self._targets: dict[Path, Path] = {}
        self._folders = {path for path in self.inputs if os.path.isdir(path)}
        self._input_files = {_resolved(p.parent) / p.name for p in self.inputs if p not in self._folders}
        self._input_folders = {_resolved(folder) for folder in self._folders}

    def jobs(self) -> Iterator[Job | FileError]:
        """Yield every job, or an error, in the order of the inputs."""
        for path in self.inputs:
            if path in self._folders:
                yield from self._of_folder(path)
            else:
                name = name_of(self.pattern, path)
                yield from self._of_file(
                    path, self.out if self.out and self.out_is_file else (self.out or path.parent) / name
                )

    def _of_folder(self, folder: Path) -> Iterator[Job | FileError]:
        named = folder if folder.name not in ("", "..") else _resolved(folder)
        out = self.out or named.with_name(named.name + SUFFIX)
        if _resolved(out) in self._input_folders:
            yield FileError(f"'{out}' is a folder of inputs: give -o another folder for the outputs")
            return
        empty = True
        for path in images_in(folder, self.recursive, _resolved(out)):
            empty = False
            if isinstance(path, FileError):
                yield path
            else:
                yield from self._of_file(path, out / path.parent.relative_to(folder) / name_of(self.pattern, path))
        if empty:
            inner = any(entry.is_dir() for entry in folder.iterdir())
            hint = "; use --recursive to read its folders too" if inner and not self.recursive else ""
            yield FileError(f"'{folder}' has no images ({', '.join(SUFFIXES)}){hint}")

    def _of_file(self, path: Path, target: Path) -> Iterator[Job | FileError]:
        if path in self._seen:
            return
        self._seen.add(path)
        other = self._targets.get(target)
        if other is not None:
            yield FileError(
                f"'{path}': its output '{target}' is also that of '{other}': distinguish them with --name "
                f"'{{name}}_x4{target.suffix}', or give -o another folder"
            )
        elif self._is_input(target):
            yield FileError(f"'{path}': its output '{target}' is an input: give it another name or folder")
        else:
            self._targets[target] = path
            yield Job(path, target)

    def _is_input(self, target: Path) -> bool:
        """Whether an existing file is an input or would be found in an input folder."""
        parent = _resolved(target.parent)
        if parent / target.name in self._input_files:
            return True
        within = parent in self._input_folders or (
            self.recursive
            and not (self.out and parent.is_relative_to(_resolved(self.out)))
            and any(above in self._input_folders for above in parent.parents)
        )
        return within and os.path.exists(target)
