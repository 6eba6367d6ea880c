"""Weights to checked ONNX files: float32, INT8, and the gate that asks whether they are the same network."""
