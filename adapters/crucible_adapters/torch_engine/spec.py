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


TORCH_ENGINE = ProcessAdapter(
    name="torch-engine",
    ports=("training", "sampling"),
    module="crucible_adapters.torch_engine",
    options=TorchEngineOptions,
    environment={
        # waiting threads that spin make two threads many times slower beside another busy process
        "OMP_WAIT_POLICY": "PASSIVE",
        # what cuBLAS needs for deterministic products
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    },
)
