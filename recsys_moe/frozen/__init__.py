"""Fitted models and rules as experts: an ONNX file each, read by `moe.banks_frozen`."""
