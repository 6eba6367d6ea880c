"""Export weights to verified ONNX files in float32 and INT8; the parity gate."""
