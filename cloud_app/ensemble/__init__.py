"""Trunk and overlays become one ensemble, one ONNX file, one version in a model repository."""
