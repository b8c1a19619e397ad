"""Embeddings: each text its vector, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from crucible.port.embedding.v1 import embedding_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused
from crucible_kit.conformance.llm import check_cost
from crucible_kit.conformance.paging import Page, check_names
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.tensors import from_tensor

_TEXTS = ("the cat sat on the mat", "stocks fell sharply today", "h\u00e9llo \U0001f389 \u4f60\u597d", "a")


class EmbeddingSettings(SuiteSettings):
    """Settings of the suite of embeddings."""

    model: str = Field(default="", description="Model to use. Empty: the adapter's default.")
    dimension: int = Field(default=64, ge=1, description="A length of vectors that the model can be asked for.")
    absolute: float = Field(default=1e-3, gt=0, description="By how much a vector's numbers may differ between calls.")


SUITE = Suite(port="embedding", settings=EmbeddingSettings)
Embedding = Context[EmbeddingSettings]


async def embed(context: Embedding, texts: Sequence[str], **fields: Any) -> NDArray[np.floating]:
    """The vectors of texts, float32 of shape [n, d], after looking at the answer."""
    request = pb.EmbedTextsRequest(**{"model": context.settings.model, "texts": texts, **fields})
    response = await context.stub.EmbedTexts(request)
    check_equal(response.vectors.dtype, tensor_pb2.D_TYPE_FLOAT32, "dtype of the vectors")
    check_equal(list(response.vectors.shape), [len(texts), response.dimension], "shape of the vectors")
    check(response.dimension > 0, "a dimension above 0", response.dimension)
    check(bool(response.model), "the model that made them", "an empty one")
    vectors_ND = from_tensor(response.vectors)
    check(bool(np.isfinite(vectors_ND).all()), "finite numbers", "others")
    if response.HasField("usage"):
        check(response.usage.input_tokens >= 0, "input_tokens of at least 0", response.usage.input_tokens)
        check_equal(response.usage.output_tokens, 0, "output_tokens")
    if response.HasField("cost"):
        check_cost(response.cost)
    return vectors_ND


def _check_same(context: Embedding, got: NDArray[np.floating], expected: NDArray[np.floating], what: str) -> None:
    check_equal(got.shape, expected.shape, f"the shape of {what}")
    distance = float(np.abs(got - expected).max(initial=0.0))
    check(distance <= context.settings.absolute, f"{what} to be the same", f"numbers {distance} apart")


@SUITE.samples
async def _samples(context: Embedding) -> Samples:
    return {
        "EmbedTexts": pb.EmbedTextsRequest(model=context.settings.model, texts=["a"]),
        "ListModels": pb.ListModelsRequest(),
    }


@SUITE.requirement(
    "EMB-EMBED-01",
    "EmbedTexts MUST give float32 vectors of shape [n, d], one for each text, finite, different ones for different "
    "texts.",
    quote="The vectors, float32 of shape [n, d], dense; row i is text i's.",
)
async def _vectors(context: Embedding) -> None:
    vectors_ND = await embed(context, _TEXTS)
    for one in range(len(_TEXTS)):
        for other in range(one):
            same = np.array_equal(vectors_ND[one], vectors_ND[other])
            check(not same, f"different vectors of {_TEXTS[one]!r} and {_TEXTS[other]!r}", "the same")


@SUITE.requirement(
    "EMB-EMBED-02",
    "The same text MUST have the same vector, whatever else is in the batch and wherever it stands.",
    quote="The same text gives the same vector on the same model as far as the provider can, whatever else",
)
async def _alone(context: Embedding) -> None:
    together = await embed(context, _TEXTS)
    for place, text in enumerate(_TEXTS):
        _check_same(context, (await embed(context, [text]))[0], together[place], f"the vector of {text!r} alone")
    _check_same(context, await embed(context, _TEXTS[::-1]), together[::-1], "the vectors in another order")
    _check_same(context, await embed(context, [_TEXTS[0]] * 3), together[[0, 0, 0]], "the vectors of one text 3 times")


@SUITE.requirement(
    "EMB-EMBED-03",
    "With `normalize` vectors MUST have length 1 and the same direction.",
    quote="Scale each vector to length 1 (L2). A vector of zeros stays so.",
)
async def _normalises(context: Embedding) -> None:
    plain, scaled = await embed(context, _TEXTS), await embed(context, _TEXTS, normalize=True)
    lengths = np.linalg.norm(plain.astype(np.float64), axis=1, keepdims=True)
    expected = np.divide(plain, lengths, out=np.zeros_like(plain), where=lengths > 0)
    _check_same(context, scaled, expected.astype(np.float32), "normalised vectors and vectors over their lengths")


@SUITE.requirement(
    "EMB-EMBED-04",
    "One bad text MUST refuse the whole call: an empty one is INVALID_ARGUMENT FIELD_INVALID.",
    quote="All or nothing: one bad text refuses the call.",
)
async def _empty(context: Embedding) -> None:
    for texts in (["", "a"], ["a", ""]):
        await check_refused(embed(context, texts), "INVALID_ARGUMENT", "FIELD_INVALID", what="an empty text")


@SUITE.requirement(
    "EMB-EMBED-05",
    "An unknown model MUST be NOT_FOUND MODEL_NOT_FOUND.",
)
async def _unknown_model(context: Embedding) -> None:
    call = embed(context, ["a"], model="no-model-is-called-so")
    await check_refused(call, "NOT_FOUND", "MODEL_NOT_FOUND", what="an unknown model")


@SUITE.requirement(
    "EMB-EMBED-06",
    "Batches MUST be taken up to the contract's 2,048 texts.",
    quote="An adapter splits batches larger than its provider takes.",
)
async def _large_batches(context: Embedding) -> None:
    texts = [f"{number % 7}" for number in range(2048)]
    vectors_ND = await embed(context, texts)
    _check_same(context, vectors_ND[7:14], vectors_ND[:7], "the vectors of the same texts in one large batch")


@SUITE.requirement(
    "EMB-DIMENSION-01",
    "Vectors MUST have the length that is asked for.",
    quote="Length d of the vectors. Needs the capability `embedding.dimension`.",
    capability="embedding.dimension",
)
async def _dimensions(context: Embedding) -> None:
    wanted = context.settings.dimension
    vectors_ND = await embed(context, _TEXTS, dimension=wanted)
    check_equal(vectors_ND.shape[1], wanted, "the length of the vectors")


@SUITE.requirement(
    "EMB-DIMENSION-02",
    "A length MUST be UNIMPLEMENTED CAPABILITY_MISSING where embedding.dimension is not declared.",
    quote="Needs the capability `embedding.dimension`.",
    without="embedding.dimension",
)
async def _no_dimensions(context: Embedding) -> None:
    call = embed(context, ["a"], dimension=context.settings.dimension)
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="a length of vectors")


@SUITE.requirement(
    "EMB-USE-01",
    "A use of vectors MUST be taken where embedding.text_use is declared.",
    quote="Needs the capability `embedding.text_use` unless unspecified.",
    capability="embedding.text_use",
)
async def _uses(context: Embedding) -> None:
    for use in (pb.TEXT_USE_QUERY, pb.TEXT_USE_DOCUMENT):
        await embed(context, ["a"], use=use)


@SUITE.requirement(
    "EMB-USE-02",
    "A use of vectors MUST be UNIMPLEMENTED CAPABILITY_MISSING where embedding.text_use is not declared.",
    quote="Needs the capability `embedding.text_use` unless unspecified.",
    without="embedding.text_use",
)
async def _no_uses(context: Embedding) -> None:
    call = embed(context, ["a"], use=pb.TEXT_USE_QUERY)
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="a use of vectors")


@SUITE.requirement(
    "EMB-MODELS-01",
    "ListModels MUST list the models by name, each once, in pages of any size, with the lengths of their vectors.",
    quote="ListModels lists the models, sorted by name.",
    capability="embedding.list_models",
)
async def _models(context: Embedding) -> None:
    async def page(size: int, token: str) -> Page:
        response = await context.stub.ListModels(pb.ListModelsRequest(page_size=size, page_token=token))
        return Page([model.name for model in response.models], response.next_page_token)

    await check_names(page, "the models")
    for model in (await context.stub.ListModels(pb.ListModelsRequest())).models:
        vectors_ND = await embed(context, ["a"], model=model.name)
        check_equal(vectors_ND.shape[1], model.dimension, f"the length of vectors of {model.name}, as it is listed,")


@SUITE.requirement(
    "EMB-MODELS-02",
    "A text longer than the model takes MUST be INVALID_ARGUMENT TEXT_TOO_LONG: nothing is cut.",
    quote="INVALID_ARGUMENT TEXT_TOO_LONG, with the index of the text and the limit in tokens; nothing is cut.",
    capability="embedding.list_models",
)
async def _too_long(context: Embedding) -> None:
    models = (await context.stub.ListModels(pb.ListModelsRequest())).models
    small = [each for each in models if 0 < each.max_input_tokens <= 65536]
    if not small:
        raise CheckSkipped("no model says how long a text it takes")
    text = "word " * (small[0].max_input_tokens + 16)
    call = embed(context, ["a", text], model=small[0].name)
    await check_refused(call, "INVALID_ARGUMENT", "TEXT_TOO_LONG", what="a text that is too long")
