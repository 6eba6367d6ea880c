"""A DICOM node: it receives radiographs, upscales them, and sends the results on. ``python -m client.node``."""
