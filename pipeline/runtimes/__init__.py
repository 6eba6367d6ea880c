"""ONNX files in one process: onnxruntime, OpenVINO, CUDA graphs, and processor features."""
