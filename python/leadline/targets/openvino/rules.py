"""What OpenVINO takes."""

from __future__ import annotations

from leadline.rules import Rules

OPENVINO = Rules(
    "OpenVINO",
    activation_bits=frozenset(range(2, 9)),
    activation_scales=("tensor",),
    weight_bits=frozenset(range(2, 9)),
    weight_signs=True,
    own_operators=False,
    spelled=frozenset(("Resize with antialias", "Pad")),
    refused={
        "AveragePool that counts its padding": "put a Pad of its own before it",
        **dict.fromkeys(("LSTM", "GRU"), 'leave their weights in float: an override with kinds = ["recurrent"]'),
    },
)
"""The CPU plug-in of OpenVINO 2026.4, as networks of two layers answered (convolutions, Gemm, MatMul; the kernels'
names, and the distance from the artefact as written; `tests/test_targets_openvino.py` asks again):

- 8-bit activations per tensor and signed symmetric weights of 5 to 8 bits, per tensor or channel: integer kernels,
  every code as written. Activations of fewer bits, which are stored in 8, likewise.
- Weights of 2 to 4 bits: as written, but in float: linear layers keep four bits in memory and take them apart on the
  way, convolutions become float32. So do weights in blocks, of any width.
- Refused here: 16-bit activations. OpenVINO removes such a pair of operators, and the clamp that a grid from zero is:
  behind a ReLU that lives in its grid the output is noise (0 to 2 dB). Of 9 and 12 bits 40 and 58 dB are left.
- Refused here: activations per channel, weights with zero points, and weights of more than 8 bits, which all run in
  float; activations per token and leadline's own operators, whose functions it does not read.
- Of 201 kinds of operators (`tests/operator_kinds.py`, a layer on either side) 196 kept the promise within 1.5 dB.
  Resize with antialias (0.8 dB of 24) and Pad by wrapping (not read) are spelled in others; the other three are named.
"""
