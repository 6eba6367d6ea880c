"""Gray as DICOM PS3.3 C.11 says: every combination, against the standard's formulas written out for one pixel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from client.formats import dicom
from client.formats.source import Choice
from tests.dicom_files import lut, make_dataset, ramp, to_bytes

VOI = ("LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT of 16 bits", "LUT of 12 in 16", "LUT of 8", "none")
MODALITY = ("positive", "negative", "empty", "LUT")
PIXELS = {
    "8": ("u1", 8), "10": ("u2", 10), "12": ("u2", 12), "14": ("u2", 14), "16": ("u2", 16), "32": ("u4", 32),
    "float": ("f4", 0), "double": ("f8", 0),
}  # fmt: skip
PADDING = (None, (3, 3), (3, 7))
RAMP_16 = np.sort(np.random.default_rng(0).integers(0, 65536, 600))
TABLES = {
    "LUT of 16 bits": (RAMP_16 | 0x8000 * (np.arange(600) == 599), 16, 65535),
    "LUT of 12 in 16": (RAMP_16 * 4000 // 65536, 16, int((RAMP_16 * 4000 // 65536).max())),
    "LUT of 8": (np.arange(600) * 255 // 599, 8, 255),
}
MODALITY_TABLE = np.random.default_rng(1).integers(0, 4096, 300)


def stored_values(kind: str, signed: bool) -> NDArray[Any]:
    """Values over the whole depth, and a few that padding may take."""
    dtype, bits = PIXELS[kind]
    if bits == 0:
        return np.linspace(-900.25 if signed else 0.5, 1200.75, 30).reshape(5, 6).astype(dtype)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = [*np.linspace(low, high, 24).astype(np.int64).tolist(), 1, 2, 3, 5, 7, 8]
    return np.array(values).reshape(5, 6).astype(dtype.replace("u", "i") if signed else dtype)


def expected_pixel(v: float, modality: str, voi: str, window: tuple[float, float], first: int, ends: Any) -> float:
    """PS3.3 C.11.1 and C.11.2 for one stored value, before MONOCHROME1 and padding."""
    x = modality_of(v, modality)
    c, w = window
    if voi == "LINEAR":
        if x <= c - 0.5 - (w - 1) / 2:
            return 0.0
        return 1.0 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5
    if voi == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if voi == "SIGMOID":
        return 1 / (1 + math.exp(min(700, -4 * (x - c) / w)))
    if voi in TABLES:
        entries, _, white = TABLES[voi]
        index = round(x) - first
        return float(entries[0 if index < 0 else min(index, len(entries) - 1)]) / white
    low, high = ends
    return (x - low) / (high - low)


def modality_of(v: float, modality: str) -> float:
    if modality == "LUT":
        index = round(v) - 2
        return float(MODALITY_TABLE[0 if index < 0 else min(index, len(MODALITY_TABLE) - 1)])
    slope, intercept = {"positive": (2.5, -100.0), "negative": (-1.5, 1000.0), "empty": (1.0, 0.0)}[modality]
    return v * slope + intercept


def modality_tags(modality: str) -> dict[str, Any]:
    if modality == "LUT":
        return {"ModalityLUTSequence": [lut(2, MODALITY_TABLE, 16)]}
    return {
        "positive": {"RescaleSlope": "2.5", "RescaleIntercept": "-100"},
        "negative": {"RescaleSlope": "-1.5", "RescaleIntercept": "1000"},
        "empty": {"RescaleSlope": "", "RescaleIntercept": ""},
    }[modality]


def padding_tags(padding: tuple[int, int] | None, kind: str) -> dict[str, Any]:
    if padding is None:
        return {}
    prefix, number = {"float": ("Float", float), "double": ("DoubleFloat", float)}.get(kind, ("", int))
    tags = {f"{prefix}PixelPaddingValue": number(padding[0])}
    if padding[1] != padding[0]:
        tags[f"{prefix}PixelPaddingRangeLimit"] = number(padding[1])
    return tags


@pytest.mark.parametrize("modality", MODALITY)
@pytest.mark.parametrize("voi", VOI)
def test_every_combination_renders_as_the_standard_says(voi: str, modality: str) -> None:
    for photometric, signed, kind, padding in itertools.product(
        ("MONOCHROME1", "MONOCHROME2"), (False, True), PIXELS, PADDING
    ):
        pixels = stored_values(kind, signed)
        if kind in ("float", "double"):
            pixels[2, :3] = 3, 5, 7
        padded = np.zeros(pixels.shape, bool) if padding is None else (pixels >= padding[0]) & (pixels <= padding[1])
        inside = [modality_of(float(v), modality) for v in pixels[~padded]]
        low, high = min(inside), max(inside)
        tags = {**modality_tags(modality), **padding_tags(padding, kind)}
        window, first = (float(f"{(low + high) / 2:.6g}"), float(f"{(high - low) * 0.6 + 1:.6g}")), 0
        if voi in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            tags |= {"WindowCenter": f"{window[0]:.6g}", "WindowWidth": f"{window[1]:.6g}"}
            tags |= {} if voi == "LINEAR" else {"VOILUTFunction": voi}
        elif voi in TABLES:
            first = int(np.clip(low, -3000, 3000)) if modality != "LUT" else 11
            entries, bits, _ = TABLES[voi]
            tags["VOILUTSequence"] = [lut(first, entries, bits, packed=bits == 8)]
        data = to_bytes(make_dataset(pixels, PIXELS[kind][1]), PhotometricInterpretation=photometric, **tags)
        found = dicom.read(data, Choice(), [])
        expected = np.array(
            [[expected_pixel(float(v), modality, voi, window, first, (low, high)) for v in row] for row in pixels]
        )
        expected = 1 - expected if photometric == "MONOCHROME1" else expected
        expected[padded] = 0
        case = f"{voi}, modality {modality}, {photometric}, {'signed' if signed else 'unsigned'} {kind}, pad {padding}"
        np.testing.assert_allclose(found.image, expected.clip(0, 1), atol=2e-5, err_msg=case)
        assert found.bits == (8 if kind == "8" else 16), case


RAMP = ramp(0, 4095, "u2")


def read(notes: list[str] | None = None, choice: Choice | None = None, **tags: Any) -> NDArray[np.float32]:
    """A 12-bit ramp with these attributes."""
    return dicom.read(
        to_bytes(make_dataset(RAMP, 12), **tags), choice or Choice(), [] if notes is None else notes
    ).image


def full_range(image: NDArray[np.float32]) -> bool:
    return bool(np.abs(image - RAMP / 4095).max() < 1e-3)


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ({"WindowCenter": "2048", "WindowWidth": "0"}, "window ignored: its width must be more than 0, got 0"),
        ({"WindowCenter": "2048", "WindowWidth": "-5"}, "window ignored: its width must be more than 0, got -5"),
        ({"WindowCenter": "", "WindowWidth": ""}, "no window"),
        ({"WindowCenter": "2048"}, "no window"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope is 0: taken as 1"),
        ({"RescaleIntercept": "5"}, "RescaleSlope is missing or empty: taken as 1"),
        ({"VOILUTSequence": []}, "no window"),
    ],
)
def test_what_says_nothing_falls_back_to_the_full_range(tags: dict[str, Any], note: str) -> None:
    notes: list[str] = []
    assert full_range(read(notes, **tags))
    assert any(note in found for found in notes), notes


def test_the_first_usable_window_of_several_is_taken_and_named() -> None:
    notes: list[str] = []
    image = read(notes, WindowCenter=["7", "2048"], WindowWidth=["0", "4096"])
    np.testing.assert_allclose(image, (RAMP - 2047.5) / 4095 + 0.5, atol=1e-5)
    assert "window 2 of 2: center 2048, width 4096" in notes


@pytest.mark.parametrize(("width", "bright"), [("1", [0, 0, 1, 1]), ("0.5", [0, 0, 1, 1])])
def test_narrow_windows(width: str, bright: list[int]) -> None:
    pixels = np.tile(np.array([98, 99, 100, 101], "u2"), (2, 1))
    data = to_bytes(make_dataset(pixels, 12), WindowCenter="99.5" if width == "0.5" else "100", WindowWidth=width)
    np.testing.assert_array_equal(dicom.read(data, Choice(), []).image[0], bright)


def test_an_unknown_function_is_linear() -> None:
    notes: list[str] = []
    image = read(notes, WindowCenter="2048", WindowWidth="4096", VOILUTFunction="CUBIC")
    np.testing.assert_allclose(image, (RAMP - 2047.5) / 4095 + 0.5, atol=1e-5)
    assert "VOILUTFunction is 'CUBIC': taken as LINEAR" in notes


def test_a_window_can_be_asked_for() -> None:
    notes: list[str] = []
    image = read(notes, Choice(window=(1000, 500)), WindowCenter="2048", WindowWidth="4096")
    np.testing.assert_allclose(image, ((RAMP - 999.5) / 499 + 0.5).clip(0, 1), atol=1e-5)
    assert notes == ["window as asked for: center 1000, width 500"]


def test_a_table_that_is_too_short_and_one_that_is_empty() -> None:
    short = lut(0, np.arange(1000) * 4, 12)
    short.LUTDescriptor = [4096, 0, 12]
    notes: list[str] = []
    image = read(notes, VOILUTSequence=[short])
    np.testing.assert_allclose(image, np.minimum(RAMP.astype(int), 999) * 4 / 4095, atol=1e-5)
    assert "LUT has 1000 of 4096 entries: its last is used for the rest" in notes
    empty = lut(0, np.arange(4), 12)
    empty.LUTData = b""
    assert full_range(read(VOILUTSequence=[empty]))


def test_a_table_of_65536_entries() -> None:
    pixels = ramp(0, 65535, "u2")
    data = to_bytes(make_dataset(pixels), VOILUTSequence=[lut(0, np.arange(65535, -1, -1), 16)])
    np.testing.assert_allclose(dicom.read(data, Choice(), []).image, 1 - pixels / 65535, atol=1e-5)


@pytest.mark.parametrize(
    ("vr", "first", "stored"),
    [
        ("US", -1024, (1100, 3580)),
        ("SS", -1024, (1100, 3580)),
        ("SS", -1024, (0, 4000)),
        ("US", 40000, (40010, 44000)),
    ],
)
def test_a_tables_first_value_is_signed_where_its_values_are(vr: str, first: int, stored: tuple[int, int]) -> None:
    pixels = ramp(*stored, "u2")
    item = lut(0, np.arange(4096), 12)
    item.add_new("LUTDescriptor", vr, [4096, first if vr == "SS" else first % 65536, 12])
    tags = {"RescaleSlope": "1", "RescaleIntercept": "-1024" if first < 0 else "0"}
    found = dicom.read(to_bytes(make_dataset(pixels), VOILUTSequence=[item], **tags), Choice(), []).image
    indices = pixels.astype(int) + int(tags["RescaleIntercept"]) - first
    np.testing.assert_allclose(found, indices.clip(0, 4095) / 4095, atol=1e-5)


def test_a_frames_own_window_goes_before_the_files_voi_lut() -> None:
    group, voi = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = "2048", "4096"
    group.FrameVOILUTSequence = [voi]
    tags: dict[str, Any] = {
        "PerFrameFunctionalGroupsSequence": [group],
        "VOILUTSequence": [lut(0, np.arange(4096)[::-1], 12)],
    }
    np.testing.assert_allclose(read(**tags), (RAMP - 2047.5) / 4095 + 0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "note"),
    [
        ("MONOCHROME1", "INVERSE", True, "inverted: MONOCHROME1 stores white as 0"),
        ("MONOCHROME2", "IDENTITY", False, None),
        ("MONOCHROME2", "INVERSE", True, "MONOCHROME2 contradicts PresentationLUTShape INVERSE, which is followed"),
        ("MONOCHROME1", "IDENTITY", False, "MONOCHROME1 contradicts PresentationLUTShape IDENTITY, which is followed"),
    ],
)
def test_a_presentation_lut_shape_is_followed(photometric: str, shape: str, inverted: bool, note: str | None) -> None:
    notes: list[str] = []
    image = read(notes, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    np.testing.assert_allclose(image, 1 - RAMP / 4095 if inverted else RAMP / 4095, atol=1e-5)
    assert note is None or any(found.startswith(note) for found in notes)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("packed", [False, True])
def test_8_bit_entries_one_or_two_a_word(vr: str, packed: bool) -> None:
    entries = np.arange(4096) // 16
    item = lut(0, entries, 8, packed=packed)
    if vr == "US":
        item.add_new("LUTData", "US", np.frombuffer(item.LUTData, "<u2").tolist())
    np.testing.assert_allclose(read(VOILUTSequence=[item]), entries[RAMP] / 255, atol=1e-5)
