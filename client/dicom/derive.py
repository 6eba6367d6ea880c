"""Make the DICOM image of a result: the source's data set with what differs, marked as derived."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
from highdicom import ContributingEquipment
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import DSfloat

from client.dicom.lenient import lenient
from client.dicom.marker import burn_in
from client.dicom.pixels import stored_result
from client.formats.dicom_display import numbers
from client.formats.original import Original, Stored
from client.formats.source import Source
from client.pictures import CAUTION
from client.results import Upscaled
from pipeline.spec import REDUCTIONS, SCALE, ReductionName

NAME = "cxr-superres"
NAMESPACE = uuid.UUID("b8f4b6d6-6a0c-5b0e-9c5e-0d5f1e2c7a41")
"""Namespace of UIDs that are made from names (RFC 9562, version 5)."""
LONG_STRING, SHORT_TEXT = 64, 1024
"""Maximum characters of a value of LO and of ST."""

EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "Manufacturer", "InstanceNumber", "PatientOrientation"),
)
"""Attributes that every image must have, though they may be empty (type 2)."""
EMPTY_IN_CR = ("BodyPartExamined", "ViewPosition")
DROPPED = (
    *("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "IconImageSequence", "HistogramSequence"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence", "DataSetTrailingPadding"),
    *("SeriesDate", "SeriesTime", "SeriesDescriptionCodeSequence"),
)
"""Attributes of the source's file or series that are not the result's."""
OVERLAYS = ((0x5000, 0x50FF), (0x6000, 0x60FF))
"""Groups of curves and overlays, which have the source's number of pixels."""
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
EDGES = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
PLACES = (
    *(f"{kind}{edge}" for kind in ("Shutter", "Collimator") for edge in EDGES),
    *("CenterOfCircularShutter", "VerticesOfThePolygonalShutter"),
    *("CenterOfCircularCollimator", "VerticesOfThePolygonalCollimator"),
)
"""Attributes that hold positions in pixels, from 1."""
LENGTHS = ("RadiusOfCircularShutter", "RadiusOfCircularCollimator")
"""Attributes that hold lengths in pixels."""
MODALITIES = {ComputedRadiographyImageStorage: "CR", SecondaryCaptureImageStorage: "OT"}
LOSSY = {JPEGBaseline8Bit: "ISO_10918_1", JPEGExtended12Bit: "ISO_10918_1", JPEGLSNearLossless: "ISO_14495_1"}
MAYBE_LOSSY = {JPEG2000: "ISO_15444_1", HTJ2K: "ISO_15444_15"}
"""Transfer syntax ⇒ method of its compression, with loss or, if the file does not say, perhaps with loss."""


def derive(source: Source, result: Upscaled, *, marked: bool = False) -> Dataset:
    """Return the DICOM image of a result, of the same class as the source and in the same study.

    It is in Explicit VR Little Endian; see ``client.dicom.files`` for compression. The same source, result, options and
    model give the same data set, UIDs included: it holds no date of its own.

    Args:
        source: the source, read with ``Choice(original=True)``.
        result: the result of ``source.image``.
        marked: whether to write the caution into the image.

    Raises:
        ValueError: the source has no ``original``.
    """
    original = source.original
    if original is None:
        raise ValueError("the source must be read with Choice(original=True)")
    exact = result.options.faithful
    reduction: ReductionName = next((name for name in REDUCTIONS if name == result.degradation), "area")
    stored = stored_result(original, source.image, result.image, reduction, exact=exact)
    with lenient():  # sources may have values that break the rules
        derived = copy.deepcopy(original.header)
        for group in OVERLAYS:
            for tag in [e.tag for e in derived if group[0] <= e.tag.group <= group[1]]:
                del derived[tag]
        for keyword in DROPPED:
            if keyword in derived:
                delattr(derived, keyword)
        for keyword in (*EMPTY, *(EMPTY_IN_CR if derived.SOPClassUID == ComputedRadiographyImageStorage else ())):
            if keyword not in derived:
                setattr(derived, keyword, None)
        if "Laterality" not in derived and "ImageLaterality" not in derived and not derived.get("BodyPartExamined"):
            derived.Laterality = None
        if marked:
            stored = burn_in(original, stored, CAUTION)
            derived.BurnedInAnnotation = "YES"
        identify(derived, source, result, marked=marked)
        describe(derived, original, result)
        scale_geometry(derived, original)
        set_pixels(derived, original, stored)
    return derived


def uid_of(*names: object) -> UID:
    """Return the UID made from names; the same names give the same UID."""
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, json.dumps(names, default=str)).int}")


def identify(derived: Dataset, source: Source, result: Upscaled, *, marked: bool) -> None:
    """Set the UIDs and numbers of instance and series.

    The series is that of a run: images of a series that are upscaled with the same options and model share it.
    """
    original = source.original
    assert original is not None
    run = (version(NAME), result.preset, result.model, result.seed, asdict(result.options), marked, original.factor)
    pixels = hashlib.sha256(original.stored.tobytes() + source.image.tobytes()).hexdigest()
    header = original.header
    derived.SOPInstanceUID = uid_of("image", header.SOPInstanceUID, pixels, result.pixel_mm, *run)
    derived.SeriesInstanceUID = uid_of("series", header.StudyInstanceUID, header.SeriesInstanceUID, *run)
    number = next(iter(numbers(header, "SeriesNumber", [])), None)
    derived.SeriesNumber = 1000 + int(number or 0)


def describe(derived: Dataset, original: Original, result: Upscaled) -> None:
    """Mark the image as derived: from what, by what, how, and that it is not for diagnosis."""
    header = original.header
    if "Modality" not in derived:
        derived.Modality = MODALITIES.get(header.SOPClassUID, "DX")
    if header.SOPClassUID == SecondaryCaptureImageStorage and "ConversionType" not in derived:
        derived.ConversionType = "WSD"
    derived.ImageType = ["DERIVED", "SECONDARY"]
    derived.SeriesDescription = joined(f"x{SCALE}, {CAUTION}", header.get("SeriesDescription"), LONG_STRING)
    derived.ImageComments = joined(f"Super-resolved x{SCALE}: {CAUTION}.", header.get("ImageComments"), 10 * SHORT_TEXT)
    smaller = f" after reduction by {original.factor}" if original.factor > 1 else ""
    how = f"Super-resolved x{SCALE} by latent diffusion{smaller}: {CAUTION}."
    derived.DerivationDescription = joined(how, header.get("DerivationDescription"), SHORT_TEXT)
    derived.DerivationCodeSequence = [
        *(header.get("DerivationCodeSequence") or []),
        CodedConcept.from_code(codes.DCM.SpatialResampling),
    ]
    derived.SourceImageSequence = [reference(header)]
    derived.ContributingEquipmentSequence = [
        *(header.get("ContributingEquipmentSequence") or []),
        equipment(result),
    ]
    keep_lossy_history(derived, original)


def joined(text: str, earlier: object, limit: int) -> str:
    """Return a text followed by what the source says there, cut to a number of characters."""
    return f"{text} {earlier}"[:limit].rstrip() if earlier else text


def reference(header: Dataset) -> Dataset:
    """Return the item of ``SourceImageSequence`` for the source."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def equipment(result: Upscaled) -> ContributingEquipment:
    """Return what made the result: software, model, options."""
    return ContributingEquipment(
        manufacturer=NAME,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=f"{NAME} {result.preset}",
        software_versions=[version(NAME), *filter(None, [result.model])],
        device_serial_number=result.model or None,
        contribution_description=result.parameters()[:SHORT_TEXT],
    )


def keep_lossy_history(derived: Dataset, original: Original) -> None:
    """Say that the source was compressed with loss if its transfer syntax says so and its data set does not."""
    earlier = derived.get("LossyImageCompression")
    method = LOSSY.get(original.syntax) or (None if earlier else MAYBE_LOSSY.get(original.syntax))
    if method is not None and earlier != "01":
        derived.LossyImageCompression, derived.LossyImageCompressionMethod = "01", method
    elif not earlier:
        derived.LossyImageCompression = "00"


def scale_geometry(derived: Dataset, original: Original) -> None:
    """Scale spacings, and shutters and collimators that are given in pixels."""
    zoom = SCALE / original.factor
    for keyword in SPACINGS:
        spacing = numbers(derived, keyword, [])
        if spacing and all(spacing):
            setattr(derived, keyword, [DSfloat(mm / zoom, auto_format=True) for mm in spacing if mm])
        elif keyword in derived:
            delattr(derived, keyword)
    for keyword in (*PLACES, *LENGTHS):
        if keyword in derived:
            # positions are those of centers of pixels: the first one's is 1
            offset = 0.5 if keyword in PLACES else 0.0
            found = [value for value in numbers(derived, keyword, []) if value is not None]
            setattr(derived, keyword, [round((value - offset) * zoom + offset) for value in found])


def set_pixels(derived: Dataset, original: Original, stored: Stored) -> None:
    """Set the pixels, and the window if it is not the file's own."""
    low, high = original.limits
    # padding that marks itself by bits beyond those stored needs them
    fits = low <= stored.min() and stored.max() <= high
    kind = np.dtype(f"{'i' if derived.PixelRepresentation else 'u'}{derived.BitsAllocated // 8}")
    derived.file_meta = FileMetaDataset()
    derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    derived.set_pixel_data(
        stored.astype(kind),
        derived.PhotometricInterpretation,
        derived.BitsStored if fits else derived.BitsAllocated,
        generate_instance_uid=False,
    )
    if original.window is not None and derived.SOPClassUID != DigitalXRayImageStorageForProcessing:
        for keyword in ("VOILUTSequence", "VOILUTFunction", "WindowCenterWidthExplanation"):
            if keyword in derived:
                delattr(derived, keyword)
        center, width = original.window
        derived.WindowCenter, derived.WindowWidth = DSfloat(center, auto_format=True), DSfloat(width, auto_format=True)
        if width < 1:
            derived.VOILUTFunction = "LINEAR_EXACT"
