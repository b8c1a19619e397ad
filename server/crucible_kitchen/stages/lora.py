"""The LoRA adapter that a run trains: its configuration keys, and what they ask of the training port."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from crucible.port.training.v1 import training_pb2
from crucible_kit.errors import KitchenError, field_error
from crucible_kitchen.workflows.context import SubmitContext
from crucible_kitchen.workflows.stage import StageOptions

_GROUPS = ("lora_train_attention", "lora_train_mlp", "lora_train_unembedding")


class LoraOptions(StageOptions):
    """How much of the model is trained."""

    lora_rank: int = Field(default=32, ge=0, le=4096, description="Rank of the LoRA adapter; 0 trains every weight.")
    lora_alpha: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="The adapter's update is scaled by lora_alpha / lora_rank; 0: as lora_rank, a scale of 1.",
    )
    lora_train_attention: bool = Field(default=True, description="Adapt the attention's matrices.")
    lora_train_mlp: bool = Field(default=True, description="Adapt the MLP's matrices.")
    lora_train_unembedding: bool = Field(default=False, description="Adapt the unembedding.")
    lora_target_modules: list[Annotated[str, Field(min_length=1, max_length=255)]] = Field(
        default=[],
        max_length=64,
        description="Adapt the matrices of these names, such as q_proj, in place of the groups; empty: the groups.",
    )

    @property
    def alpha(self) -> float:
        """The scale's numerator."""
        return self.lora_alpha or float(self.lora_rank)

    @property
    def needs_lora_modules(self) -> bool:
        """Whether the adapter has a scale or matrices of its own choice."""
        return bool(self.lora_rank) and (self.alpha != self.lora_rank or bool(self.lora_target_modules))

    def to_proto(self) -> training_pb2.LoraConfig | None:
        """The adapter to ask for; None when every weight is trained."""
        if not self.lora_rank:
            return None
        config = training_pb2.LoraConfig(rank=self.lora_rank, alpha=self.alpha, target_modules=self.lora_target_modules)
        if not self.lora_target_modules:
            config.train_attention = self.lora_train_attention
            config.train_mlp = self.lora_train_mlp
            config.train_unembedding = self.lora_train_unembedding
        return config


def check_lora(context: SubmitContext) -> None:
    """Refuses keys that would have no effect, and an adapter of nothing. Raises INVALID_ARGUMENT CONFIG_INVALID."""
    options = context.options(LoraOptions)
    changed = [
        key
        for key, field in LoraOptions.model_fields.items()
        if getattr(options, key) != field.get_default(call_default_factory=True)
    ]
    for key in changed:
        if key != "lora_rank" and not options.lora_rank:
            raise context.conflict(
                (key, "lora_rank"),
                f"{key} has no effect with lora_rank 0, which trains every weight: leave it out, or set lora_rank",
            )
        if key in _GROUPS and options.lora_target_modules:
            raise context.conflict(
                (key, "lora_target_modules"),
                f"{key} has no effect with lora_target_modules, which replaces the groups: leave one of them out",
            )
    if options.lora_rank and not options.lora_target_modules and not any(getattr(options, key) for key in _GROUPS):
        raise context.conflict(
            _GROUPS, f"{', '.join(_GROUPS)} are all false: nothing would be trained, set one of them"
        )


def as_config_error(error: KitchenError) -> KitchenError:
    """A refusal of a session, in terms of the configuration where one of its keys is meant."""
    field = error.metadata.get("field", "")
    known = {"dtype": "dtype", "base_model": "model", "lora": "lora_rank"}
    key = f"lora_{field.removeprefix('lora.')}" if field.startswith("lora.") else known.get(field)
    if key is None:
        return error
    return field_error(f"config.{key}", error.message, reason=error.reason)
