"""A vector store in memory that looks at every item."""

from __future__ import annotations

from pydantic import Field

from crucible_adapters.vector.memory import MemoryStore
from crucible_adapters.vector.service import VectorStoreAdapter
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions


class FakeVectorStoreOptions(AdapterOptions):
    """As all fakes have them."""

    seed: int = Field(default=0, description="Without effect: nothing is drawn.")


class FakeVectorStore(VectorStoreAdapter):
    """Collections in memory; search is exact."""

    description = AdapterDescription(name="fake-vector", port="vector", options=FakeVectorStoreOptions)

    def __init__(self, options: FakeVectorStoreOptions, context: AdapterContext) -> None:
        super().__init__(MemoryStore())
