"""leadline inside PyTorch: modules become Graphs and come back, rewritten for quantisers, simulated with gradients, and
calibrated or quantised in place by the C++ cores. Needs the extra ``leadline[torch]``; CPU, float32.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    message = "leadline.torch needs PyTorch: pip install 'leadline[torch]'"
    raise ModuleNotFoundError(message, name="torch") from error

from leadline.torch.calibration import LayerRecord, Report, quantize_linears
from leadline.torch.conv import QuantizedConv2d, load_quantized
from leadline.torch.export import to_graph
from leadline.torch.fake import FakeQuantize
from leadline.torch.hooks import CalibratedLayer, Calibration, calibrate
from leadline.torch.linear import PER_ROW, QuantizedLinear
from leadline.torch.module import GraphModule, SimulatedModule, to_module
from leadline.torch.rewrites import DepthOnly, QuantizableAttention, Rewrites, rewrite
from leadline.torch.weights import load_weights

__all__ = [
    "PER_ROW",
    "CalibratedLayer",
    "Calibration",
    "DepthOnly",
    "FakeQuantize",
    "GraphModule",
    "LayerRecord",
    "QuantizableAttention",
    "QuantizedConv2d",
    "QuantizedLinear",
    "Report",
    "Rewrites",
    "SimulatedModule",
    "calibrate",
    "load_quantized",
    "load_weights",
    "quantize_linears",
    "rewrite",
    "to_graph",
    "to_module",
]
