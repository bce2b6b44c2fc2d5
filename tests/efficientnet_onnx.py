"""EfficientNet-Lite0 as ONNX, written from its torch checkpoint without torch.

The checkpoint is torch's legacy format: five pickles (magic, protocol, system, the state dict with persistent ids in
place of storages, the storage keys) followed by each storage as an int64 count and raw little-endian numbers. The
unpickler below resolves four names and nothing else. The architecture is efficientnet-lite-pytorch 0.1.0: TensorFlow
"same" padding, batch-norm epsilon 1e-3, ReLU6, no squeeze-excitation.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = 224
EPSILON = 1e-3
# repeats, stride, expansion, channels (efficientnet_lite_pytorch/utils.py, blocks_args); kernels come from the weights
STAGES = ((1, 1, 1, 16), (2, 2, 6, 24), (2, 2, 6, 40), (3, 2, 6, 80), (3, 1, 6, 112), (4, 2, 6, 192), (1, 1, 6, 320))


class _Tensor(NamedTuple):
    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "torch.FloatStorage": np.dtype("<f4"),
            "torch.LongStorage": np.dtype("<i8"),
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: _Tensor(
                storage, offset, size, stride
            ),
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"the checkpoint asks for {module}.{name}, which no state dict needs")
        return allowed[f"{module}.{name}"]

    def persistent_load(self, pid: tuple[Any, ...]) -> str:
        _, dtype, key, *_ = pid
        self.dtypes[key] = dtype
        return str(key)


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a legacy torch checkpoint: name -> array."""
    with path.open("rb") as file:
        for _ in range(3):
            _Unpickler(file).load()
        state_reader = _Unpickler(file)
        state: dict[str, _Tensor] = state_reader.load()
        storages = {}
        for key in _Unpickler(file).load():
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            dtype = state_reader.dtypes[key]
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    tensors = {}
    for name, tensor in state.items():
        storage = storages[tensor.storage][tensor.offset :]
        strides = [step * storage.itemsize for step in tensor.stride]
        tensors[name] = np.lib.stride_tricks.as_strided(storage, tensor.size, strides).copy()
    return tensors


class _Writer:
    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {"zero": np.float32(0), "six": np.float32(6)}
        self.size = IMAGE

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str) -> str:
        self.weights[name] = self.state[name]
        return name

    def convolution(
        self, x: str, scope: str, norm: str, stride: int = 1, depthwise: bool = False, clip: bool = True
    ) -> str:
        """Conv, BatchNormalization and, unless told otherwise, ReLU6."""
        weight = self.state[f"{scope}.weight"]
        kernel = weight.shape[2]
        output = -(-self.size // stride)
        padding = max((output - 1) * stride + kernel - self.size, 0)
        before, after = padding // 2, padding - padding // 2
        self.size = output
        x = self.node(
            "Conv",
            f"{scope}.output",
            [x, self.weight(f"{scope}.weight")],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[before, before, after, after],
            group=weight.shape[0] if depthwise else 1,
        )
        statistics = [self.weight(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        x = self.node("BatchNormalization", f"{norm}.output", [x, *statistics], epsilon=EPSILON)
        return self.node("Clip", f"{norm}.relu6", [x, "zero", "six"]) if clip else x


def build(checkpoint: Path) -> onnx.ModelProto:
    """Input "input" 1x3x224x224 (ImageNet mean and deviation), output "logits" 1x1000."""
    net = _Writer(read_checkpoint(checkpoint))
    x = net.convolution("input", "_conv_stem", "_bn0", stride=2)
    channels, index = 32, 0
    for repeats, first_stride, expansion, width in STAGES:
        for repeat in range(repeats):
            block, stride, skip = f"_blocks.{index}", first_stride if repeat == 0 else 1, x
            if expansion != 1:
                x = net.convolution(x, f"{block}._expand_conv", f"{block}._bn0")
            x = net.convolution(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, depthwise=True)
            x = net.convolution(x, f"{block}._project_conv", f"{block}._bn2", clip=False)
            if stride == 1 and channels == width:
                x = net.node("Add", f"{block}.output", [x, skip])
            channels, index = width, index + 1
    x = net.convolution(x, "_conv_head", "_bn1")
    x = net.node("GlobalAveragePool", "pooled", [x])
    x = net.node("Flatten", "flattened", [x], axis=1)
    net.node("Gemm", "logits", [x, net.weight("_fc.weight"), net.weight("_fc.bias")], transB=1)
    unused = [name for name in net.state if name not in net.weights and not name.endswith("num_batches_tracked")]
    if unused:
        raise ValueError(f"the checkpoint holds weights that the architecture does not use: {unused[:3]}")
    graph = helper.make_graph(
        net.nodes, "efficientnet-lite0",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, IMAGE, IMAGE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in net.weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
