"""Hexagon: Qualcomm's HTP, as its emulation in onnxruntime-qnn runs it."""
