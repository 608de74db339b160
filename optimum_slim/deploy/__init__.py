"""Hand the slim model to ONNX Runtime: export, precision, proof that it is right, and how fast it is."""
