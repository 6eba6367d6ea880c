"""JPEG, JPEG-LS and JPEG 2000 in DICOM by imagecodecs, as a plug-in of pydicom, which itself decodes RLE."""

from __future__ import annotations

import imagecodecs
import numpy as np
from pydicom.encaps import generate_fragments
from pydicom.pixels import get_decoder, get_encoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.pixels.encoders.base import EncodeRunner
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

PLUGIN = "imagecodecs"
START_OF_FRAME = {0xC0: ".50", 0xC1: ".51", 0xC3: ".57", 0xF7: ".80"}
"""JPEG marker ⇒ suffix of the transfer syntax UID: baseline, extended, lossless, JPEG-LS."""
JPEG_FAMILY = "1.2.840.10008.1.2.4"


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame to pixels; colours are kept as encoded, except for JPEG 2000's internal transform to RGB."""
    syntax = runner.transfer_syntax
    if syntax in JPEGLSTransferSyntaxes:
        pixels = imagecodecs.jpegls_decode(src)
    elif syntax in JPEGTransferSyntaxes:
        colours = "YCBCR" if runner.samples_per_pixel == 3 else None
        pixels = imagecodecs.jpeg8_decode(src, colorspace=colours, outcolorspace=colours)
    else:
        pixels = imagecodecs.jpeg2k_decode(src)
        if runner.photometric_interpretation.startswith("YBR_"):
            runner.set_option("photometric_interpretation", "RGB" if transforms_colour(src) else "YBR_FULL")
    if pixels.shape[:2] != (runner.rows, runner.columns):
        raise ValueError(
            f"the encoded image is {pixels.shape[1]}×{pixels.shape[0]}, not {runner.columns}×{runner.rows}"
        )
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return np.ascontiguousarray(pixels).tobytes()


def encode_frame(src: bytes, runner: EncodeRunner) -> bytes:
    """Encode a gray frame as JPEG 2000 without loss."""
    kind = f"<{'i' if runner.pixel_representation else 'u'}{runner.bits_allocated // 8}"
    pixels = np.frombuffer(src, kind).reshape(runner.rows, runner.columns)
    return bytes(
        imagecodecs.jpeg2k_encode(pixels, reversible=True, bitspersample=runner.bits_stored, codecformat="J2K")
    )


def transforms_colour(codestream: bytes) -> bool:
    """Whether a JPEG 2000 codestream decodes to RGB, according to its coding style (COD)."""
    style = codestream.find(b"\xff\x52")
    return style >= 0 and codestream[style + 8 : style + 9] != b"\0"


def is_available(_uid: str) -> bool:
    """Return True, for pydicom."""
    return True


for _syntax in (
    *JPEGTransferSyntaxes,
    *JPEGLSTransferSyntaxes,
    *(JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K),
):
    get_decoder(_syntax).add_plugin(PLUGIN, (__name__, "decode_frame"))


get_encoder(JPEG2000Lossless).add_plugin(PLUGIN, (__name__, "encode_frame"))


def guess_syntax(encapsulated: bytes) -> UID | None:
    """Guess the transfer syntax of encapsulated pixels from their first bytes; return None if unknown."""
    frame = next((part for part in list(generate_fragments(encapsulated))[1:] if part), b"")
    if frame.startswith(b"\xff\x4f\xff\x51") or frame[4:8] == b"jP  ":
        return UID(f"{JPEG_FAMILY}.91")
    if frame.startswith(b"\xff\xd8"):
        at = 2
        while frame[at : at + 1] == b"\xff" and at + 4 <= len(frame):
            if (marker := frame[at + 1]) in START_OF_FRAME:
                return UID(JPEG_FAMILY + START_OF_FRAME[marker])
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    if len(frame) > 64 and 1 <= int.from_bytes(frame[:4], "little") <= 15 and frame[4:8] == b"\x40\0\0\0":
        return RLELossless
    return None
