"""LiteRT: ``.tflite`` files, written through ai-edge-quantizer, run in the real interpreter."""
