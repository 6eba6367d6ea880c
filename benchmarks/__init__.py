"""What is measured; every file is a command, ``python -m benchmarks.NAME``."""

import os

# PyTorch's threads wait for each other by spinning: where another process wants a core too, the server among them, that
# makes an image ten times slower. onnxruntime does not spin in the server either. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
