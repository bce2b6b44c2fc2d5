"""ONNX files around a context binary (EPContext nodes): what they embed or point to, and for which hardware."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from leadline.inspector.inspection import Artefact, Inspection, grouped
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

NODE = "EPContext"
_MADE_FOR = "ep_compatibility_info."
_HTP = re.compile(r"v\d+:\d+:([\d.]+):[\d.]+:(\d+):(\d+)(?::\d+)*")
"""What onnxruntime-qnn 2.7 notes, by trial: version, a constant, SDK, build, htp_arch, soc_model, two more."""


def read_context(
    file: Path, model: onnx.ModelProto, inputs: dict[str, str], outputs: dict[str, str], size: int
) -> Artefact:
    """`size`: bytes of the ONNX file with the external data of its tensors."""
    facts: dict[str, str] = {}
    contexts = [node for node in model.graph.node if node.op_type == NODE]
    for index, node in enumerate(contexts):
        mark = f" {index + 1}" if len(contexts) > 1 else ""
        held = _attributes(node)
        payload = held.get("ep_cache_context", b"")
        if not held.get("main_context", 1):
            facts[f"context{mark}"] = "in the binary of another node"
        elif held.get("embed_mode", 1):
            facts[f"context{mark}"] = f"{decimal(len(payload))}, embedded"
        else:
            external = file.parent / payload.decode(errors="replace")
            try:
                file_size = external.stat().st_size
            except OSError as error:
                rule = "the context binary must be beside the file"
                raise refuse("inspect", rule, f"'{external.name}': {error.strerror}") from error
            size += file_size
            facts[f"context{mark}"] = f"{decimal(file_size)}, in {external.name}"
        for label, key in (("source", "source"), ("SDK", "ep_sdk_version"), ("partition", "partition_name"),
                           ("hardware", "hardware_architecture"), ("notes", "notes")):  # fmt: skip
            if held.get(key):
                facts[f"  {label}{mark}"] = held[key].decode(errors="replace")
        facts[f"  reads and writes{mark}"] = _ports(node, model)
    for entry in model.metadata_props:
        if entry.key.startswith(_MADE_FOR):
            htp = _HTP.fullmatch(entry.value)
            plain = f"htp_arch {htp[2]}, soc_model {htp[3]} ({entry.value})" if htp else entry.value
            facts[f"made for {entry.key.removeprefix(_MADE_FOR)}"] = plain
    # Weights that the binary holds are still written beside it, with a DequantizeLinear that nobody needs.
    stored = {tensor.name for tensor in model.graph.initializer}
    outside = [node for node in model.graph.node if node.op_type != NODE and node.input and node.input[0] not in stored]
    inspection = Inspection(
        file=file.name,
        kind="ONNX context",
        bytes=size,
        float_operators=grouped((node.op_type, node.name or node.output[0]) for node in outside),
        inputs=inputs,
        outputs=outputs,
        facts=facts,
    )
    return Artefact(inspection)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _ports(node: onnx.NodeProto, model: onnx.ModelProto) -> str:
    """The tensors that cross the binary's border; weights among its inputs are its own."""
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {item.output[0] for item in model.graph.node if item.input and item.input[0] in constant}
    inputs = [name for name in node.input if name and name not in constant]
    return f"{', '.join(inputs)} -> {', '.join(node.output)}"
