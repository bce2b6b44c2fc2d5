"""onnxruntime: its fused kernels on this machine beside the artefact as written."""
