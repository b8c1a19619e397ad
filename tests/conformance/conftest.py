"""What several tests of a module share because it takes long to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.adapters import HubSite
from tests.conformance.adapters import hub_site as opened_hub_site


@pytest.fixture(scope="module")
def hub_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubSite]:
    """A hub on this machine, for the adapters that are set to it."""
    with opened_hub_site(tmp_path_factory.mktemp("hub")) as site:
        yield site
