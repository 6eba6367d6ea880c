"""Decoders of image files: bytes ⇒ gray image, depth, and notes on decisions for the user."""
