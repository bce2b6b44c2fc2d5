"""Artefacts that others read: ONNX with QuantizeLinear/DequantizeLinear pairs, and AIMET ``.encodings``.

Exporters see a graph, its grids and its integer codes, never the algorithm that found them.
"""
