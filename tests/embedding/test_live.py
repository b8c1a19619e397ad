"""The same, asked of the providers themselves: `make test-live`, with a key in the environment."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError
from crucible_kit.tensors import from_tensor
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.embedding.conftest import embed
from tests.embedding.wires import Wire

pytestmark = pytest.mark.live


async def open_stub(wire: Wire, binding: Binding, folder: Path, key: str) -> Any:
    kind: Any = wire.adapter
    return await binding.stub(
        kind(kind.description.options(), AdapterContext(data_dir=folder, secrets={"api_key": key}))
    )


@pytest.fixture
async def live(wire: Wire, binding: Binding, tmp_path: Path) -> AsyncIterator[Any]:
    key = os.environ.get(wire.variable, "")
    if not key:
        pytest.skip(f"{wire.variable} is not set")
    yield await open_stub(wire, binding, tmp_path, key)


async def test_near_texts_have_near_vectors(live: Any) -> None:
    response = await embed(live, "a small cat", "a little kitten", "the law of taxes", dimension=256, normalize=True)
    vectors_ND = from_tensor(response.vectors)
    assert vectors_ND.shape == (3, 256) and np.allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    assert vectors_ND[0] @ vectors_ND[1] > vectors_ND[0] @ vectors_ND[2]


async def test_a_text_that_is_too_long_is_refused(live: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(live, "short", "word " * 20_000)
    assert (caught.value.reason, caught.value.metadata["index"]) == ("TEXT_TOO_LONG", "1")


async def test_an_unknown_model_and_a_wrong_key_are_told(
    wire: Wire, live: Any, binding: Binding, tmp_path: Path
) -> None:
    with refused(NotFoundError, "MODEL_NOT_FOUND"):
        await embed(live, "a", model="no-such-model-4711")
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS"):
        await embed(await open_stub(wire, binding, tmp_path, "sk-wrong-0123456789abcdefghij"), "a")
