"""What a quantised layer is besides its tensors, as one tensor of bytes: state_dicts then hold nothing but tensors, and
neither ``torch.load(weights_only=True)`` nor a format without pickles refuses them."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from leadline.hadamard import Rotation, _Stage
from leadline.types import Scheme, refuse

_ARRAYS = ("before", "after", "take", "put")


def pack(weights: Scheme, activations: Scheme | None, clip: float, rotation: Rotation | None) -> torch.Tensor:
    """uint8 bytes of an uncompressed .npz file."""
    config: dict[str, Any] = {"weights": asdict(weights), "activations": activations and asdict(activations)}
    config["clip"] = clip
    arrays: dict[str, Any] = {}
    if rotation is not None:
        plain = {"size": rotation.size, "blocks": rotation.blocks, "keeps_mean": rotation.keeps_mean}
        config["rotation"] = plain | {"transposed": [stage.transposed for stage in rotation._stages]}
        for i, stage in enumerate(rotation._stages):
            arrays |= {f"{name}{i}": getattr(stage, name) for name in _ARRAYS}
    file = io.BytesIO()
    np.savez(file, config=np.array(json.dumps(config)), **arrays)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpack(packed: Any) -> tuple[Scheme, Scheme | None, float, Rotation | None]:
    """The arguments of `pack`. Raises InputError for anything else than what it gives."""
    try:
        with np.load(io.BytesIO(packed.numpy().tobytes()), allow_pickle=False) as file:
            config = json.loads(str(file["config"]))
            activations = None if config["activations"] is None else Scheme(**config["activations"])
            plain, rotation = config.get("rotation"), None
            if plain is not None:
                kinds = enumerate(plain.pop("transposed"))
                stages = tuple(_Stage(kind, **{n: file[f"{n}{i}"] for n in _ARRAYS}) for i, kind in kinds)
                rotation = Rotation(**plain, _stages=stages)
        return Scheme(**config["weights"]), activations, float(config["clip"]), rotation
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise refuse("QuantizedLinear", "extra state must be what a QuantizedLinear saved", str(error)) from error
