"""What several tests of a module share because it takes long to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crucible_adapters.embedding.minilm.service import Model
from crucible_adapters.embedding.minilm.spec import MiniLMOptions
from tests.conformance.adapters import HubSite
from tests.conformance.adapters import hub_site as opened_hub_site


@pytest.fixture(scope="module")
def hub_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubSite]:
    """A hub on this machine, for the adapters that are set to it."""
    with opened_hub_site(tmp_path_factory.mktemp("hub")) as site:
        yield site


@pytest.fixture(scope="module")
def minilm() -> Model:
    """The local embedding model."""
    from crucible_adapters.embedding.minilm.model import MiniLM

    return MiniLM(MiniLMOptions(threads=1))
