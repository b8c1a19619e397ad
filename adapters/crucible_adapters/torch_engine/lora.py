"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685): several of them on one frozen model, one active at a time.

    y = W x + scale * B (A x)      A (rank, in), B (out, rank), scale = alpha / rank

A model's linear layers get a slot for the active adapter's matrices. Slots are no parameters: the model's own names and
weights stay what they are, and an adapter costs what its rank costs. Tensors carry the names that PEFT stores them by.

Shape suffixes: R rank, I input size, O output size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from crucible_adapters.torch_engine.lora_spec import ATTENTION, MLP, UNEMBEDDING, LoraSpec
from crucible_kit.errors import field_error

_PEFT_PREFIX = "base_model.model."
# what architectures call the modules that hold these matrices
_GROUP_OF_PARENT = {
    "attention": ATTENTION,
    "attn": ATTENTION,
    "self_attention": ATTENTION,
    "self_attn": ATTENTION,
    "feed_forward": MLP,
    "ffn": MLP,
    "mlp": MLP,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraMatrix:
    """The update of one linear layer."""

    a_RI: torch.nn.Parameter
    b_OR: torch.nn.Parameter
    scale: float

    def add_to(self, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """`output` (..., O) plus the update for `inputs` (..., I); in the adapter's type, returned in the output's."""
        low = torch.nn.functional.linear(inputs.to(self.a_RI.dtype), self.a_RI)
        update = torch.nn.functional.linear(low, self.b_OR)
        return (output + update * self.scale).to(output.dtype)


class AdaptedLinear(torch.nn.Linear):
    """A linear layer with a slot for the active adapter's matrix; without one it computes what it always did."""

    active: LoraMatrix | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = super().forward(input)
        return output if self.active is None else self.active.add_to(output, input)


class LoraAdapter:
    """The matrices of one adapter."""

    def __init__(self, spec: LoraSpec, matrices: dict[str, LoraMatrix], target_modules: Sequence[str]) -> None:
        """`matrices` by the full name of the layer they update, in the model's order; `target_modules`: those layers as
        PEFT's configuration lists them.
        """
        self.spec = spec
        self.matrices = matrices
        self.target_modules = tuple(target_modules)

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The tensors by PEFT's names, in the model's order."""
        named = {}
        for layer, matrix in self.matrices.items():
            named[tensor_name(layer, "A")] = matrix.a_RI
            named[tensor_name(layer, "B")] = matrix.b_OR
        return named


class AdapterSlots:
    """The slots of one model's linear layers. Only the compute thread activates."""

    def __init__(self, net: Any) -> None:
        self._unembedding = next(
            (name for name, module in net.named_modules() if module is net.get_output_embeddings()), ""
        )
        self._layers: dict[str, Any] = {
            name: module for name, module in net.named_modules() if type(module) is torch.nn.Linear
        }
        self._active: LoraAdapter | None = None

    def create(self, spec: LoraSpec, dtype: torch.dtype, *, seed: int = 0, trainable: bool = True) -> LoraAdapter:
        """A fresh adapter that changes nothing yet: A from `seed`, B zero.

        A tensor's numbers depend on seed and name alone, so neither rank nor the other targets change them. They are
        uniform in +-1 / sqrt(I), what PEFT's default gives (Kaiming uniform, a = sqrt(5)).

        Raises INVALID_ARGUMENT when the model lacks a layer that the spec names.
        """
        matrices = {}
        for layer in self.targets(spec):
            module = self._layers[layer]
            # made the first time it is adapted: a model that is trained as a whole keeps its plain layers
            module.__class__ = AdaptedLinear
            weights = _first_weights(seed, layer, spec.rank, module.in_features)
            device = module.weight.device
            a_RI = torch.nn.Parameter(torch.from_numpy(weights).to(device, dtype), requires_grad=trainable)
            b_OR = torch.nn.Parameter(
                torch.zeros((module.out_features, spec.rank), dtype=dtype, device=device), requires_grad=trainable
            )
            matrices[layer] = LoraMatrix(a_RI=a_RI, b_OR=b_OR, scale=spec.scale)
        return LoraAdapter(spec, matrices, spec.target_modules or self._short_names(list(matrices)))

    def targets(self, spec: LoraSpec) -> list[str]:
        """Full names of the layers that `spec` adapts, in the model's order. Raises INVALID_ARGUMENT naming what the
        model lacks.
        """
        if spec.groups is None:
            return self._named_targets(spec.target_modules)
        groups = {layer: self._group(layer) for layer in self._layers}
        for group in sorted(spec.groups - set(groups.values())):
            raise field_error(f"lora.train_{group}", f"this model has no {group} layers that can be adapted: set false")
        return [layer for layer, group in groups.items() if group in spec.groups]

    def activate(self, adapter: LoraAdapter | None) -> None:
        """Let the model compute with `adapter`, or without any."""
        if adapter is self._active:
            return
        if self._active is not None:
            for layer in self._active.matrices:
                self._layers[layer].active = None
        # an error half way must not leave the last one's name behind
        self._active = adapter
        if adapter is not None:
            for layer, matrix in adapter.matrices.items():
                self._layers[layer].active = matrix

    def forget(self, adapter: LoraAdapter) -> None:
        """Let go of an adapter that will not be used again."""
        if self._active is adapter:
            self.activate(None)

    def unembedding(self, adapter: LoraAdapter | None) -> LoraMatrix | None:
        """The adapter's update of the unembedding, if it has one."""
        return None if adapter is None else adapter.matrices.get(self._unembedding)

    def _short_names(self, targets: list[str]) -> list[str]:
        """The last parts of the names, which other tools expect, where they mean exactly these layers."""
        names = sorted({layer.rpartition(".")[2] for layer in targets})
        return names if self._named_targets(names) == targets else sorted(targets)

    def _group(self, layer: str) -> str:
        if layer == self._unembedding:
            return UNEMBEDDING
        parents = layer.split(".")[:-1]
        return next((_GROUP_OF_PARENT[part] for part in reversed(parents) if part in _GROUP_OF_PARENT), "")

    def _named_targets(self, names: Sequence[str]) -> list[str]:
        for index, name in enumerate(names):
            if not any(_matches(layer, name) for layer in self._layers):
                known = ", ".join(sorted({layer.rpartition(".")[2] for layer in self._layers}))
                raise field_error(
                    f"lora.target_modules[{index}]", f"this model has no linear layer {name!r}: it has {known}"
                )
        return [layer for layer in self._layers if any(_matches(layer, name) for name in names)]


def _matches(layer: str, name: str) -> bool:
    """PEFT's rule for a name in target_modules."""
    return layer == name or layer.endswith(f".{name}")


def tensor_name(layer: str, side: str) -> str:
    """PEFT's name of a layer's matrix; `side` is A or B."""
    return f"{_PEFT_PREFIX}{layer}.lora_{side}.weight"


def _first_weights(seed: int, layer: str, rank: int, size: int) -> np.ndarray:
    """(rank, size), float64; row i does not depend on the rank."""
    stream = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, stream], dtype=np.uint64)))
    bound = size**-0.5
    return generator.uniform(-bound, bound, (rank, size))
