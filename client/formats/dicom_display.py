"""Convert stored values to gray as DICOM specifies (PS3.3 C.11): modality, values of interest (VOI), presentation.

pydicom's functions are not used: they invert the range for a negative slope, and misread tables of 8-bit entries and
indices beyond a table. Deviations from the standard that common viewers accept are read, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_color_lut

from client.formats.source import FormatError, between, luminance, range_of
from pipeline.method.images import Image

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]
Curve = Callable[[NDArray[Any]], NDArray[np.floating[Any]]]
"""A function of every pixel's value."""

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
BINARY = ("FL", "FD", "US", "SS", "UL", "SL")
"""Value representations of binary numbers."""


@dataclass(frozen=True)
class Table:
    """A look-up table: ``entries[0]`` applies to ``first`` and all lower values, the last entry to all higher ones."""

    first: int
    entries: NDArray[np.int64]
    bits: int
    """Declared depth of the entries."""

    def __call__(self, values: NDArray[Any]) -> NDArray[np.int64]:
        indices = np.rint(values).astype(np.int64) - self.first
        return self.entries[indices.clip(0, len(self.entries) - 1)]


@dataclass(frozen=True)
class Window:
    """A window mapping values to black (0) … white (1), by PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: str = "LINEAR"

    def __call__(self, values: Values) -> Values:
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
        if self.function == "LINEAR_EXACT":
            return ((values - self.center) / self.width + 0.5).clip(0, 1)
        if self.width == 1:
            return (values > self.center - 0.5).astype(np.float64)
        return ((values - (self.center - 0.5)) / (self.width - 1) + 0.5).clip(0, 1)


def numbers(dataset: Dataset, keyword: str, notes: list[str]) -> list[float | None]:
    """Return the values of a decimal string, None if not finite numbers. Commas are read as decimal points."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return []
    element = dataset.get_item(tag)  # as in the file: pydicom rejects invalid decimal strings
    if isinstance(element, RawDataElement) and element.VR not in BINARY:
        texts = (element.value or b"").decode("ascii", "replace").split("\\")
    else:
        values = dataset[tag].value
        several = hasattr(values, "__iter__") and not isinstance(values, (str, bytes))
        texts = [str(value) for value in (values if several else [values])]
    texts = [text.strip(" \0") for text in texts]
    if texts in ([""], ["None"]):
        return []
    found: list[float | None] = []
    for text in texts:
        try:
            value = float(text.replace(",", "."))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            notes.append(f"{keyword} is '{text}', which is not a number: ignored")
        elif "," in text:
            notes.append(f"{keyword} is '{text}': comma taken as decimal point")
        found.append(value if math.isfinite(value) else None)
    return found


def first_number(dataset: Dataset, keyword: str, notes: list[str]) -> float | None:
    """Return the first value of a decimal string; None if there is none."""
    return next(iter(numbers(dataset, keyword, notes)), None)


def places(dataset: Dataset, frame: int, macro: str) -> Iterator[Dataset]:
    """Yield the places of a frame's attributes, most specific first: functional groups (PS3.3 C.7.6.16), the file."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *shared[:1]):
        yield from group.get(macro) or []
    yield dataset


def _words(item: Dataset, keyword: str) -> NDArray[np.int64]:
    """Return the 16-bit words of an element stored as numbers or bytes."""
    value = item[keyword].value
    if isinstance(value, bytes):
        value = value + b"\0" * (len(value) % 2)
        return np.frombuffer(value, ">u2" if item.original_encoding[1] is False else "<u2").astype(np.int64)
    return np.atleast_1d(np.asarray([] if value is None else value, np.int64)) & 0xFFFF


def read_table(item: Dataset, prefix: str, values: NDArray[Any], notes: list[str]) -> Table | None:
    """Read a look-up table (PS3.3 C.11.1.1.1); return None, with a note, if it is empty.

    Args:
        item: data set with ``{prefix}Descriptor`` and ``{prefix}Data``.
        prefix: prefix of their keywords, such as "LUT".
        values: values to map. The 16-bit first value is read as signed or unsigned, whichever covers more of them.
        notes: list to extend.
    """
    if f"{prefix}Descriptor" not in item or f"{prefix}Data" not in item:
        notes.append(f"{prefix} without its data: ignored")
        return None
    descriptor, words = _words(item, f"{prefix}Descriptor"), _words(item, f"{prefix}Data")
    if len(descriptor) != 3 or not words.size:
        notes.append(f"{prefix} is empty: ignored")
        return None
    declared, first, bits = (int(value) for value in descriptor)
    declared = declared or 65536
    if first >= 32768:
        low, high = float(values.min()), float(values.max())
        first = max(first - 65536, first, key=lambda start: min(high, start + declared - 1) - max(low, start))
    if len(words) < declared <= 2 * len(words):
        # two 8-bit entries per word, the first in the lower half
        words = np.stack([words & 0xFF, words >> 8], axis=1).reshape(-1)
    if len(words) < declared:
        notes.append(f"{prefix} has {len(words)} of {declared} entries: its last is used for the rest")
    return Table(first, words[:declared], bits)


def white_of(top: int, bits: int, name: str, notes: list[str]) -> int:
    """Return the entry for white: the maximum of the declared depth or, if the table does not fit it, its own."""
    if bits and 2 ** (bits - 1) <= top < 2**bits:
        return int(2**bits - 1)
    notes.append(f"{name} scaled by its largest entry, {top}: it declares {bits} bits")
    return max(top, 1)


def modality_curve(stored: NDArray[Any], dataset: Dataset, frame: int, notes: list[str]) -> Curve:
    """Return the modality LUT or rescaling, from stored values to the units of the window."""
    for item in list(dataset.get("ModalityLUTSequence") or [])[:1]:
        table = read_table(item, "LUT", stored, notes)
        if table is not None:
            return lambda values: table(values).astype(np.float64)
    slope, intercept = 1.0, 0.0
    for place in places(dataset, frame, "PixelValueTransformationSequence"):
        if "RescaleSlope" in place or "RescaleIntercept" in place:
            found = first_number(place, "RescaleSlope", notes)
            if found is None or found == 0:
                notes.append(f"RescaleSlope is {'missing or empty' if found is None else 0}: taken as 1")
            slope, intercept = found or 1.0, first_number(place, "RescaleIntercept", notes) or 0.0
            break
    return lambda values: values * slope + intercept


def find_window(place: Dataset, notes: list[str]) -> Window | None:
    """Return the first usable window, or None."""
    centers, widths = numbers(place, "WindowCenter", notes), numbers(place, "WindowWidth", notes)
    function = str(place.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in FUNCTIONS:
        notes.append(f"VOILUTFunction is '{function}': taken as LINEAR")
        function = "LINEAR"
    for number, (center, width) in enumerate(zip(centers, widths, strict=False), 1):
        if center is None or width is None:
            continue
        if width <= 0:
            notes.append(f"window ignored: its width must be more than 0, got {width:g}")
            continue
        if function == "LINEAR" and width < 1:
            function = "LINEAR_EXACT"
            notes.append("LINEAR window narrower than 1: taken as LINEAR_EXACT")
        which = f" {number} of {len(centers)}" if len(centers) > 1 else ""
        kind = "" if function == "LINEAR" else f", {function}"
        notes.append(f"window{which}: center {center:g}, width {width:g}{kind}")
        return Window(center, width, function)
    return None


def voi_curve(values: Values, dataset: Dataset, frame: int, notes: list[str]) -> Curve | None:
    """Return the frame's most specific VOI LUT or window, to black (0) … white (1); None if there is none."""
    for place in places(dataset, frame, "FrameVOILUTSequence"):
        for item in list(place.get("VOILUTSequence") or [])[:1]:
            if (table := read_table(item, "LUT", values, notes)) is not None:
                notes.append("VOI LUT")
                white = white_of(int(table.entries.max()), table.bits, "VOI LUT", notes)
                return lambda values: table(values) / white
        if (window := find_window(place, notes)) is not None:
            return window
    return None


def is_inverted(dataset: Dataset, notes: list[str]) -> bool:
    """Whether small values are bright, by PresentationLUTShape (PS3.3 C.11.6) or else MONOCHROME1."""
    by_kind = dataset.PhotometricInterpretation == "MONOCHROME1"
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    inverted = {"INVERSE": True, "IDENTITY": False}.get(shape, by_kind)
    if inverted != by_kind:
        notes.append(
            f"{dataset.PhotometricInterpretation} contradicts PresentationLUTShape {shape}, which is followed: "
            f"{'inverted' if inverted else 'not inverted'}"
        )
    elif inverted:
        notes.append("inverted: MONOCHROME1 stores white as 0")
    return inverted


def gray_curve(
    stored: NDArray[Any],
    padding: Mask | None,
    dataset: Dataset,
    frame: int,
    window: tuple[float, float] | None,
    notes: list[str],
) -> tuple[Curve, tuple[float, float] | None]:
    """Return the function from stored values of MONOCHROME1 or 2 to gray, float32 in [0, 1], and its window.

    The window, center and width, is that asked for or, if there is none, that of the range; None: the file's own.

    Args:
        stored: integers or floating-point numbers [H, W], whose range is used where the file has no window.
        padding: mask of padding, which is excluded from the range.
        dataset: data set with look-up tables, windows and photometric interpretation.
        frame: frame number, from 0.
        window: center and width to use instead of the file's.
        notes: list to extend with decisions.
    """
    modality = modality_curve(stored, dataset, frame, notes)
    values = modality(stored)
    voi: Curve | None
    if window is not None:
        notes.append(f"window as asked for: center {window[0]:g}, width {window[1]:g}")
        voi = Window(*window, "LINEAR" if window[1] >= 1 else "LINEAR_EXACT")
    else:
        voi = voi_curve(values, dataset, frame, notes)
    if voi is None:
        low, high = range_of(values, notes, padding, why="no window: ")
        voi, window = partial(between, low, high), ((low + high + 1) / 2, high - low + 1)
    inverted, shown = is_inverted(dataset, notes), voi

    def curve(stored: NDArray[Any]) -> Image:
        gray = shown(modality(stored))
        return (1 - gray if inverted else gray).clip(0, 1).astype(np.float32)

    return curve, window


def from_palette(stored: NDArray[Any], dataset: Dataset, notes: list[str]) -> Image:
    """Convert indices of PALETTE COLOR [H, W] to gray [H, W] in [0, 1].

    Raises:
        FormatError: the palette is missing.
    """
    if "RedPaletteColorLookupTableDescriptor" not in dataset:
        raise FormatError("is PALETTE COLOR without its palette")
    bits = int(_words(dataset, "RedPaletteColorLookupTableDescriptor")[-1])
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        rgb = apply_color_lut(stored, dataset)
    else:
        tables = [
            read_table(dataset, f"{colour}PaletteColorLookupTable", stored, notes)
            for colour in ("Red", "Green", "Blue")
        ]
        usable = [table for table in tables if table is not None]
        if len(usable) < 3:
            raise FormatError("is PALETTE COLOR without its palette")
        rgb = np.stack([table(stored) for table in usable], axis=-1)
    white = 2**bits - 1
    if bits > 8 and rgb.max() < 256:
        notes.append(f"palette taken as one of 8 bits: it declares {bits}, but no entry is above 255")
        white = 255
    return (luminance(rgb, notes) / white).clip(0, 1).astype(np.float32)
