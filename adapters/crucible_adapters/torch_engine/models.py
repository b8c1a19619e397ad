"""Loading a causal language model from a local folder.

Nothing is fetched: a folder that is not there, or lacks a file, is refused before any weight is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from crucible_adapters.torch_engine.attention import use_row_invariant_decoding
from crucible_adapters.torch_engine.lora import AdapterSlots, LoraAdapter
from crucible_adapters.torch_engine.loss import Head
from crucible_kit.errors import NotFoundError, field_error

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


_MOST_POSITIONS = 2**31 - 1
# others may name code on the hub
_ATTENTION = (None, "eager", "sdpa")
_LAYER_COUNTS = frozenset({"n_layer", "n_layers", "num_hidden_layers", "num_layers"})


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A causal LM split where the loss and the sampler need it: backbone (hidden states) and head (logits).

    It is a view: `dataclasses.replace(model, adapter=...)` is the same model computing with that adapter. Views of one
    model share its layers, so one thread at a time may compute with any of them.
    """

    net: Any
    """The transformers module, in eval mode: dropout would make a step depend on a global generator."""
    slots: AdapterSlots
    adapter: LoraAdapter | None = None
    folder: Path
    """Where config.json and the tokenizer files are; checkpoints copy them from here."""
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    max_positions: int
    """Longest sequence the position encoding is made for, tokens."""

    def head(self, *, train: bool = False) -> Head:
        """The lm head (the embedding itself where they are tied); with `train`, with gradients to add into."""
        module = self.net.get_output_embeddings()
        lora = self.slots.unembedding(self.adapter)
        return Head(
            weight_VD=module.weight.detach(),
            bias_V=None if module.bias is None else module.bias.detach(),
            grad_weight_VD=_gradient(module.weight) if train else None,
            grad_bias_V=_gradient(module.bias) if train else None,
            lora=lora,
            grad_lora_a_RD=_gradient(lora.a_RI) if train and lora else None,
            grad_lora_b_VR=_gradient(lora.b_OR) if train and lora else None,
        )

    def hidden_states(self, tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """hidden_BTD: the final hidden states of right-padded or cached token ids."""
        self.slots.activate(self.adapter)
        output = self.net.base_model(input_ids=tokens_BT, past_key_values=cache, use_cache=cache is not None)
        return output.last_hidden_state

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What training changes: the adapter's parameters, or the model's (tied ones once), in the module's order."""
        return dict(self.net.named_parameters()) if self.adapter is None else self.adapter.named_parameters()

    @property
    def trained_dtype(self) -> torch.dtype:
        """Type of those parameters. A half-precision model's adapter is float32: it is small, and its updates are."""
        return self.dtype if self.adapter is None else adapter_dtype(self.dtype)

    @property
    def parameter_count(self) -> int:
        """Distinct trained parameters."""
        return sum(parameter.numel() for parameter in self.named_parameters().values())


def adapter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the adapters of a model of type `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def pick_device(name: str) -> torch.device:
    """`auto` is cuda if there is one, else cpu."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise field_error("device", f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise field_error("device", f"{name!r} is not available on this machine: use cpu")
    return device


def pick_dtype(name: str, device: torch.device, config: dict[str, Any]) -> torch.dtype:
    """`auto` is the folder's own dtype on a GPU and float32 on a CPU, where half precision is slow and coarse."""
    if name == "auto":
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        name = stored if device.type != "cpu" else "float32"
        # float16 gradients overflow without loss scaling
        name = "bfloat16" if name == "float16" else name
    if name not in DTYPES:
        raise field_error("dtype", f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def check_model_folder(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model folder, or INVALID_ARGUMENT saying which file it lacks."""
    if not folder.is_dir():
        raise NotFoundError(
            f"base_model: no model folder at {folder}", reason="MODEL_NOT_FOUND", metadata={"base_model": folder}
        )
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise field_error("base_model", f"{folder} has no config.json: it is not a transformers model folder")
    if not any(folder.glob("*.safetensors")):
        raise field_error("base_model", f"{folder} has no *.safetensors weights")
    try:
        config = json.loads(config_file.read_bytes())
    except ValueError as error:
        raise field_error("base_model", f"{config_file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise field_error("base_model", f"{config_file} holds no JSON object: it is not a transformers model folder")
    return config


def load_model(folder: Path, *, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load the causal LM in `folder`.

    Raises INVALID_ARGUMENT for an unknown folder, device or dtype, for weights that do not fill the architecture, and
    for an architecture whose logits are more than its head applied to its hidden states.
    """
    folder = folder.resolve()
    config = check_model_folder(folder)
    _check_config(config, folder)
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device, config)
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch_dtype,
            local_files_only=True,
            output_loading_info=True,
            # else the folder's configuration chooses
            attn_implementation="sdpa",
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    # what a strange configuration raises is anything: import errors, validation errors, ...
    except Exception as error:
        raise field_error("base_model", f"{folder} does not load as a causal language model: {error}") from error
    # transformers fills what is missing with random numbers and only warns
    net, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise field_error("base_model", f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    positions = getattr(net.config, "max_position_embeddings", None) or _MOST_POSITIONS
    if not isinstance(positions, int) or not 1 <= positions <= _MOST_POSITIONS:
        raise field_error(
            "base_model", f"{folder}: max_position_embeddings is {positions!r}: give 1 to {_MOST_POSITIONS}"
        )
    net = net.to(torch_device).eval()
    _own_memory(net)
    use_row_invariant_decoding(net)
    _check_head(net, torch_device, folder)
    return LoadedModel(
        net=net,
        slots=AdapterSlots(net),
        folder=folder,
        device=torch_device,
        dtype=torch_dtype,
        vocab_size=net.get_output_embeddings().weight.shape[0],
        max_positions=int(positions),
    )


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """Refuse what would take the device for minutes or load other code, before a module is built."""
    if config.get("quantization_config"):
        raise field_error("base_model", f"{folder} is quantised: give the model in float32, bfloat16 or float16")
    tensors = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="np") as file:
                tensors += len(file.keys())
        except SafetensorError as error:
            raise field_error("base_model", f"{path} is not a safetensors file ({error})") from None
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, value in part.items():
            if "attn_implementation" in name and value not in _ATTENTION:
                raise field_error(
                    "base_model", f"{folder}: config.json has {name} {value!r}: leave it out, the engine chooses"
                )
        for name in _LAYER_COUNTS & part.keys():
            value = part[name]
            if isinstance(value, int) and not 0 <= value <= tensors:
                raise field_error(
                    "base_model", f"{folder}: config.json has {name} {value}, the weights are {tensors} tensors"
                )


@torch.no_grad()
def _own_memory(net: Any) -> None:
    """Copy weights out of the mapped file: it may change under us, and its odd offsets make products slower."""
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def _check_head(net: Any, device: torch.device, folder: Path) -> None:
    """Refuse soft-capped or scaled logits: the chunked loss applies the head itself and would silently differ."""
    tokens_BT = torch.zeros((1, 4), dtype=torch.int64, device=device)
    head = net.get_output_embeddings()
    ours = head(net.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state)
    theirs = net(input_ids=tokens_BT, use_cache=False).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-4):
        architecture = type(net).__name__
        raise field_error(
            "base_model", f"{folder}: {architecture} changes its logits after the head, which this engine cannot train"
        )


def _gradient(parameter: torch.nn.Parameter | None) -> torch.Tensor | None:
    """The parameter's accumulated gradient, zeros if there was none."""
    if parameter is None or not parameter.requires_grad:
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
