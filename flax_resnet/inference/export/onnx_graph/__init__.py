"""The ONNX graph of a traced program."""
