"""Decoders of image files: bytes ⇒ gray image, depth, and notes on what was decided for the user."""
