"""LoRA adapters on the tiny models, and the same adapters in peft, which is the oracle of what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.lora_spec import LoraSpec
from crucible_adapters.torch_engine.models import LoadedModel, adapter_dtype, load_model


def frozen_base(folder: Path, dtype: str = "float32") -> LoadedModel:
    """A base model as LoRA sessions share it."""
    base = load_model(folder, device="cpu", dtype=dtype)
    base.net.requires_grad_(False)
    return base


def groups(rank: int, *names: str, alpha: float | None = None) -> LoraSpec:
    """An adapter of whole groups of layers; alpha = rank unless given."""
    return LoraSpec(rank=rank, alpha=alpha or float(rank), groups=frozenset(names))


def targets(rank: int, *names: str, alpha: float | None = None) -> LoraSpec:
    """An adapter of named layers; alpha = rank unless given."""
    return LoraSpec(rank=rank, alpha=alpha or float(rank), target_modules=tuple(sorted(names)))


def adapt(base: LoadedModel, spec: LoraSpec, *, seed: int = 0) -> LoadedModel:
    """`base` with a fresh adapter."""
    return replace(base, adapter=base.slots.create(spec, adapter_dtype(base.dtype), seed=seed))


@torch.no_grad()
def randomise(model: LoadedModel, *, seed: int = 0) -> LoadedModel:
    """The same model with random numbers in every B: a fresh one is zero, and so is then the gradient of A."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters().items():
        if ".lora_B." in name:
            parameter.normal_(std=0.3, generator=generator)
    return model


def in_peft(model: LoadedModel) -> Any:
    """peft's model with the same base weights and the same adapter, trainable, nothing cast."""
    adapter = model.adapter
    assert adapter is not None
    base = AutoModelForCausalLM.from_pretrained(model.folder, dtype=model.dtype)
    config = LoraConfig(
        r=adapter.spec.rank,
        lora_alpha=adapter.spec.alpha,  # type: ignore[arg-type]
        target_modules=list(adapter.target_modules),
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    parameters = peft_parameters(theirs)
    ours = model.named_parameters()
    assert parameters.keys() == ours.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data = ours[name].detach().clone()
    return theirs


def peft_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by the names they are stored by."""
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if ".lora_" in name}


def autograd_gradients(
    net: Any, parameters: Mapping[str, torch.Tensor], data: list[Datum]
) -> tuple[float, list[np.ndarray], dict[str, torch.Tensor]]:
    """Loss, logprobs and gradients of the plain formula: one unpadded row at a time, whole logits, torch's autograd.

    `net` gives logits for `input_ids`.
    """
    dtype = next(iter(parameters.values())).dtype
    total = torch.zeros((), dtype=dtype)
    logprobs = []
    for datum in data:
        logits = net(input_ids=torch.from_numpy(datum.tokens)[None], use_cache=False).logits[0].to(dtype)
        row = logits.log_softmax(-1)[torch.arange(len(datum.targets)), torch.from_numpy(datum.targets)]
        total = total - (torch.from_numpy(datum.inputs["weights"]).to(dtype) * row).sum()
        logprobs.append(row.detach().numpy())
    found = torch.autograd.grad(total, list(parameters.values()))
    return total.item(), logprobs, dict(zip(parameters, found, strict=True))


@torch.no_grad()
def logprobs_of(net: Any, tokens: list[int]) -> np.ndarray:
    """log p of tokens[1:] by any model of transformers or peft, (len - 1,), float64."""
    ids = torch.tensor([tokens])
    logits = net(input_ids=ids, use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
