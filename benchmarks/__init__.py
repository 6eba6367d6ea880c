"""Benchmarks: most modules are commands, ``python -m benchmarks.NAME``; the others support them."""

import os

# PyTorch's threads wait by spinning, which makes an image ten times slower if another process, such as the server,
# needs a core. onnxruntime does not spin in the server either. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
