"""Write results as DICOM: ``derive`` an image from a source and its result, ``map_uncertainty``, ``write_dicom``."""
