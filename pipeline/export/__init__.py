"""Export of weights to verified ONNX files in float32 and INT8, and the parity gate."""
