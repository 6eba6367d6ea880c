"""Write a result's uncertainty as a DICOM parametric map."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import DerivedPixelContrastValues, ImageFlavorValues, ParametricMap, RealWorldValueMapping
from pydicom import Dataset
from pydicom.sr.codedict import codes

from client.dicom.derive import NAME, SPACINGS, equipment, uid_of
from client.dicom.lenient import lenient
from client.dicom.pixels import band, enlarged
from client.formats.original import Original
from client.pictures import CAUTION
from client.results import Upscaled
from pipeline.spec import SCALE

DATES = (("Date", "19000101"), ("Time", "000000"))
"""What stands for the date and time of an image that has none."""
LIMIT = float(np.finfo(np.float32).max)


def map_uncertainty(derived: Dataset, original: Original, result: Upscaled) -> Dataset:
    """Return the half-width of the 90 % band around a derived image, as floating-point stored values of that image.

    It has the image's geometry and refers to it. Padding is 0.

    Args:
        derived: the image, as from ``derive``.
        original: its source.
        result: the result, with its spread.

    Raises:
        ValueError: the result has no spread.
    """
    if result.spread is None:
        raise ValueError("the result has no spread")
    values = band(original, result.image, result.spread).astype(np.float32)
    values[enlarged(original.padding)] = 0
    top = max(float(np.quantile(values, 0.999)), 1.0)
    # of the image, not of the run: the same job gives the same file
    date, time = (derived.get(f"Content{what}") or derived.get(f"Study{what}") or default for what, default in DATES)
    with lenient():  # sources may have values that break the rules
        found = ParametricMap(
            source_images=[located(derived)],
            pixel_array=values,
            series_instance_uid=uid_of("uncertainty", "series", derived.SeriesInstanceUID),
            series_number=derived.SeriesNumber + 1000,
            sop_instance_uid=uid_of("uncertainty", derived.SOPInstanceUID),
            instance_number=int(derived.InstanceNumber or 1),
            manufacturer=NAME,
            manufacturer_model_name=f"{NAME} {result.preset}",
            software_versions=version(NAME),
            device_serial_number=result.model or "unknown",
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                RealWorldValueMapping(
                    lut_label="HALF-WIDTH",
                    lut_explanation="half-width of the 90 % band, in stored values",
                    unit=codes.UCUM.NoUnits,
                    value_range=(-LIMIT, LIMIT),
                    slope=1.0,
                    intercept=0.0,
                )
            ],
            voi_lut_transformations=[VOILUTTransformation(window_center=top / 2, window_width=top)],
            content_label="UNCERTAINTY",
            content_description="Half-width of the 90 % band, in stored values",
            image_flavor=ImageFlavorValues.STATIC,
            derived_pixel_contrast=DerivedPixelContrastValues.NONE,
            contributing_equipment=[equipment(result)],
            series_description=f"x{SCALE} uncertainty, {CAUTION}",
            content_date=date,
            content_time=time,
        )
        organization = uid_of("dimension", derived.SOPInstanceUID)
        for item in (*found.DimensionOrganizationSequence, *found.DimensionIndexSequence):
            item.DimensionOrganizationUID = organization
        for item in found.ContributingEquipmentSequence:
            item.pop("ContributionDateTime", None)
        for keyword in ("BodyPartExamined", "Laterality"):
            if keyword in derived:
                setattr(found, keyword, derived[keyword].value)
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
            if keyword in found:
                delattr(found, keyword)
    return found


def located(derived: Dataset) -> Dataset:
    """Return an image's data set with a position, which projections lack and highdicom needs.

    It is in a frame of reference of its own, so that it claims nothing about the patient.
    """
    image = Dataset()
    image.update({element.tag: element for element in derived if element.keyword != "PixelData"})
    image.FrameOfReferenceUID = uid_of("frame", derived.SOPInstanceUID)
    image.PositionReferenceIndicator = None
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    # a map cannot do without a spacing: pixels of unknown size get 1 mm
    image.PixelSpacing = next((derived.get(keyword) for keyword in SPACINGS if derived.get(keyword)), [1, 1])
    image.SliceThickness = 1
    return image
