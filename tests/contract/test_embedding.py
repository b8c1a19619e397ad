"""Embedding: one row a text, whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crucible.port.embedding.v1 import embedding_pb2 as pb
from crucible_adapters.fakes.embedding import FakeEmbedding, FakeEmbeddingOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError, UnimplementedError
from crucible_kit.tensors import from_tensor
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused

TEXTS = ["the cat sat", "a dog ran away", "the cat ran", "!"]


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakeEmbedding(FakeEmbeddingOptions(), context))


async def embed(stub: Any, *texts: str, **fields: Any) -> pb.EmbedTextsResponse:
    return await stub.EmbedTexts(pb.EmbedTextsRequest(texts=texts, **fields))


async def test_vectors_come_as_one_tensor_a_row_a_text(stub: Any) -> None:
    response = await embed(stub, *TEXTS)
    vectors_ND = from_tensor(response.vectors)
    assert (vectors_ND.shape, vectors_ND.dtype) == ((4, 64), np.float32)
    assert (response.model, response.dimension) == ("fake-embedding", 64)
    assert response.usage.input_tokens == 3 + 4 + 3 + 1 and response.usage.output_tokens == 0
    assert response.cost.currency == "USD" and response.cost.amount == pytest.approx(11 * 0.1 / 1e6)
    for number, text in enumerate(TEXTS):
        assert np.array_equal(from_tensor((await embed(stub, text)).vectors)[0], vectors_ND[number])


async def test_texts_that_share_words_are_near(stub: Any) -> None:
    a_D, b_D, c_D, _ = from_tensor((await embed(stub, *TEXTS, normalize=True)).vectors)
    assert a_D @ c_D > a_D @ b_D
    assert np.allclose([a_D @ a_D, b_D @ b_D], 1)
    assert not np.allclose(np.linalg.norm(from_tensor((await embed(stub, TEXTS[0])).vectors)), 1)


async def test_zeros_stay_zeros(stub: Any) -> None:
    vectors_ND = from_tensor((await embed(stub, "   ", "x", normalize=True)).vectors)
    assert not vectors_ND[0].any() and np.isfinite(vectors_ND).all() and vectors_ND[1].any()


async def test_a_seed_gives_other_vectors(local: Binding, context: AdapterContext) -> None:
    stubs = [await local.stub(FakeEmbedding(FakeEmbeddingOptions(seed=seed), context)) for seed in (0, 0, 1)]
    same, again, other = [from_tensor((await embed(each, *TEXTS)).vectors) for each in stubs]
    assert np.array_equal(same, again) and not np.array_equal(same, other)


async def test_the_dimension_is_the_caller_s_choice(stub: Any) -> None:
    response = await embed(stub, "x", model="fake-embedding-large", dimension=7)
    assert (response.dimension, list(response.vectors.shape)) == (7, [1, 7])
    assert (await embed(stub, "x", model="fake-embedding-large")).dimension == 256
    with refused(InvalidArgumentError, "FIELD_INVALID", field="dimension"):
        await embed(stub, "x", dimension=0)


async def test_one_bad_text_refuses_the_call(stub: Any) -> None:
    with refused(InvalidArgumentError, "FIELD_INVALID", field="texts[1]"):
        await embed(stub, "a", "", "b")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="texts"):
        await embed(stub)
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(stub, "a", "b", "word " * 2049)
    assert caught.value.reason == "TEXT_TOO_LONG"
    assert (caught.value.metadata["index"], caught.value.metadata["limit"]) == ("2", "2048")


async def test_what_is_not_there_is_refused(stub: Any) -> None:
    with refused(NotFoundError, "MODEL_NOT_FOUND", says="fake-embedding-large"):
        await embed(stub, "a", model="other")
    with refused(UnimplementedError, "CAPABILITY_MISSING", says="embedding.text_use"):
        await embed(stub, "a", use=pb.TEXT_USE_QUERY)
    with refused(ResourceExhaustedError, "RATE_LIMITED"):
        await embed(stub, "a", "raise RATE_LIMITED")
    with refused(ResourceExhaustedError, "RESULT_TOO_LARGE", says="fewer texts"):
        await embed(stub, *["a"] * 200, dimension=65536)


async def test_models_are_listed(stub: Any) -> None:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(each.name, each.dimension) for each in models] == [("fake-embedding", 64), ("fake-embedding-large", 256)]
    await assert_pages(stub.ListModels, pb.ListModelsRequest(), "models")
