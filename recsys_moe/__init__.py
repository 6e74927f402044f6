"""Multi-task recommendation models with gated experts, from raw logs to an ONNX artifact."""

__version__ = "0.1.0"
