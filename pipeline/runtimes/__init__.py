"""ONNX files in one process: onnxruntime, OpenVINO, CUDA graphs, and what the processor has."""
