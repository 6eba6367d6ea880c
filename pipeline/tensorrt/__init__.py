"""TensorRT plans of the ONNX files."""
