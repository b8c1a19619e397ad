"""How the host starts the torch engine. Light: imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crucible_kit.adapter import AdapterOptions, ProcessAdapter


class TorchEngineOptions(AdapterOptions):
    """Settings of the torch engine in a manifest."""

    device: str = "auto"
    """auto (cuda if there is one, else cpu), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Type of weights where a session does not say; auto is the model's own on a GPU and float32 on a CPU."""
    threads: int | None = Field(default=None, ge=1)
    """torch's threads. Absent: one per core."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens, padding included, that run through the model at a time. Smaller needs less memory; no result changes
    beyond rounding."""
    max_full_sessions: int = Field(default=8, ge=0)
    """Most open training sessions that train every weight: each holds a model of its own."""
    max_lora_sessions: int = Field(default=256, ge=0)
    """Most open training sessions with a LoRA adapter: each holds what its rank costs."""
    max_sampling_sessions: int = Field(default=256, ge=0)
    """Most open sampling sessions."""
    max_lora_rank: int = Field(default=256, ge=1, le=4096)
    """Highest rank of an adapter."""
    max_operations_in_flight: int = Field(default=64, ge=1, le=4096)
    """Operations a session may have queued and running."""
    max_tokens_in_flight: int = Field(default=4 * 1024 * 1024, ge=1)
    """Tokens in them: those of the data and prompts, and the most that may be sampled. Padding does not count."""
    lease_seconds: int = Field(default=1800, ge=1)
    """A session that no call names for so long is closed, unless it has unfinished operations."""
    park_after_seconds: int = Field(default=300, ge=0)
    """The tensors of a training session that no call names for so long wait on disk; 0 keeps them in memory."""


TORCH_ENGINE = ProcessAdapter(
    name="torch-engine",
    ports=("training", "sampling"),
    module="crucible_adapters.torch_engine",
    options=TorchEngineOptions,
    environment={
        # Threads that wait for each other spin for well under a millisecond, then sleep. OpenMP's own choice is to spin
        # for longer, which makes two threads many times slower beside another busy process; not to spin costs a tenth.
        "GOMP_SPINCOUNT": "10000",
        # what cuBLAS needs for deterministic products
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    },
    capabilities={
        "training": (
            *("training.checkpoint_files", "training.full", "training.local_model"),
            *("training.lora", "training.lora_modules"),
        ),
        "sampling": ("sampling.follow",),
    },
)
