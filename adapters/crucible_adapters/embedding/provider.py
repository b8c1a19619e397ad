"""Embeddings by a provider, the same for every one: batches, tries, sums, and which text is too long."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from crucible.port.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_adapters.embedding.checks import check_request, check_size, normalized, text_too_long
from crucible_adapters.listing import page
from crucible_adapters.llm.errors import Provider
from crucible_adapters.llm.library import Library, check_address, usable_key
from crucible_adapters.llm.options import ChatOptions
from crucible_adapters.retries import Clock, RetryPolicy, retried
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import KitchenError
from crucible_kit.tensors import to_tensor

_SYSTEM_CLOCK = Clock()


class ProvidedModel(AdapterOptions):
    """What ListModels tells of a model."""

    dimension: int = Field(ge=1, le=65536, description="Length of its vectors unless a request says another.")
    max_input_tokens: int = Field(default=0, ge=0, description="Longest text in tokens; 0: not known.")
    price: float | None = Field(default=None, ge=0, description="USD per million tokens; none: calls have no cost.")


class ProviderOptions(AdapterOptions):
    """What is set for every provider; each adds its models."""

    model: str = Field(min_length=1, max_length=255, description="Model of requests that name none.")
    base_url: str = Field(default="", description="Address of the API; empty: the provider's own.")
    timeout_seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Longest wait for a connection, and for the next bytes of an answer."
    )
    batch_texts: int = Field(default=2048, ge=1, le=2048, description="Most texts in one request to the provider.")
    batch_bytes: int = Field(
        default=600_000,
        ge=1,
        description="Most bytes of text (UTF-8) in one request to the provider, unless a single text is longer.",
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy, description="When a request is sent again; the library's own retries are off."
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return ChatOptions(base_url=value).base_url


class Batch(NamedTuple):
    """Texts of one request to the provider.

    Attributes:
        dimension: that is asked for; None: the model's own.
        use: what the vectors are for.
    """

    model: str
    texts: Sequence[str]
    dimension: int | None
    use: embedding_pb2.TextUse


class Answer(NamedTuple):
    """What one request was answered.

    Attributes:
        vectors_ND: float32, a row for each text.
        tokens: that were read; None: it does not tell.
    """

    model: str
    vectors_ND: np.ndarray
    tokens: int | None


class TextTooLongError(Exception):
    """The provider refuses a text as too long.

    Attributes:
        place: of the text within the request; None: it does not tell.
        limit: in tokens; None: it does not tell.
        tokens: that the text has; None: not known.
    """

    def __init__(self, place: int | None, limit: int | None, tokens: int | None = None) -> None:
        super().__init__()
        self.place = place
        self.limit = limit
        self.tokens = tokens


class ProviderEmbedding(embedding_pb2_grpc.EmbeddingServiceServicer):
    """The EmbeddingClient port over a provider's own library, which is loaded, in a thread, by the first call.

    Args:
        clock: time and chance; tests give their own.
    """

    description: ClassVar[AdapterDescription]
    provider: ClassVar[str]
    """As manifests name it."""
    package: ClassVar[str]
    """Module of the library."""
    address: ClassVar[str]
    """Where its API is unless the options say otherwise."""
    needs_key: bool = True

    def __init__(self, options: Any, context: AdapterContext, *, clock: Clock = _SYSTEM_CLOCK) -> None:
        self._options = options
        self._clock = clock
        check_address(options.base_url)
        self._key = usable_key(context.secrets.get("api_key", ""), self.provider)
        self._said = Provider(
            name=self.provider, address=options.base_url or self.address, secrets=(self._key,) if self._key else ()
        )
        self._library = Library(
            self.package, "embeddings", self._said, timeout_seconds=options.timeout_seconds, opening=self._open
        )

    @abstractmethod
    def _open(self, http: Any, timeout: Any) -> Any:
        """The library's client; runs in a thread. `http` is the httpx2.AsyncClient that it has to use."""

    @abstractmethod
    async def _embed(self, client: Any, batch: Batch) -> Answer:
        """Asks once.

        Raises:
            TextTooLongError: before anything is sent, or as _translated.
        """

    @abstractmethod
    def _translated(self, error: Exception, model: str) -> Exception | None:
        """What one of the library's exceptions stands for: an error of the port or a TextTooLongError; None: it is none
        of those."""

    async def probe(self) -> str:
        """That it has no key and needs one; else empty. Asks nobody: each call to the provider may cost."""
        return self._said.no_key().message if self.needs_key and not self._key else ""

    async def close(self) -> None:
        """Ends the connections."""
        await self._library.close()

    async def EmbedTexts(
        self, request: embedding_pb2.EmbedTextsRequest, context: Any
    ) -> embedding_pb2.EmbedTextsResponse:
        check_request(request, self.description.capabilities)
        dimension = request.dimension if request.HasField("dimension") else None
        model = request.model or self._options.model
        self._check_model(model)
        if dimension is not None:
            check_size(len(request.texts), dimension)
        if self.needs_key and not self._key:
            raise self._said.no_key()
        client, answers = await self._library.client(), list[Answer]()
        remaining = context.time_remaining()
        deadline = None if remaining is None else self._clock.monotonic() + remaining
        for first, texts in self._batches(request.texts):
            answer = await self._asked(client, Batch(model, texts, dimension, request.use), first, deadline)
            if not answers:
                # Known only now: not every model has a dimension that was asked for.
                check_size(len(request.texts), answer.vectors_ND.shape[1])
            elif answer.vectors_ND.shape[1] != answers[0].vectors_ND.shape[1]:
                raise self._said.malformed("with vectors of different lengths")
            answers.append(answer)
        return self._response(answers, model, normalize=request.normalize)

    async def ListModels(
        self, request: embedding_pb2.ListModelsRequest, context: Any
    ) -> embedding_pb2.ListModelsResponse:
        known: Mapping[str, ProvidedModel] = self._options.models
        found = [_model(name, known[name]) for name in sorted(known)]
        models, token = page(found, lambda each: each.name, request, "ListModels")
        return embedding_pb2.ListModelsResponse(models=models, next_page_token=token)

    def _check_model(self, model: str) -> None:
        """Raises FIELD_INVALID for a name that no model of the provider's can have."""

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Texts as they go into a request each, with the index of the first."""
        first, batch, size = 0, list[str](), 0
        for number, text in enumerate(texts):
            length = len(text.encode())
            if batch and (len(batch) >= self._options.batch_texts or size + length > self._options.batch_bytes):
                yield first, batch
                first, batch, size = number, [], 0
            batch.append(text)
            size += length
        yield first, batch

    async def _asked(self, client: Any, batch: Batch, first: int, deadline: float | None) -> Answer:
        """One batch, tried again by the policy; `first` is the index of its first text."""

        async def send(texts: Sequence[str]) -> Answer:
            async def attempt() -> Answer:
                with self._errors(batch.model):
                    answer = await self._embed(client, batch._replace(texts=texts))
                return self._checked(answer, len(texts), batch.dimension)

            remaining = None if deadline is None else deadline - self._clock.monotonic()
            return await retried(attempt, self._options.retries, time_remaining=remaining, clock=self._clock)

        try:
            return await send(batch.texts)
        except TextTooLongError as error:
            refused = error
        texts, place = batch.texts, refused.place
        if place is None or place >= len(texts):
            place = 0
            # The provider does not tell which one: halves are asked until one text is left.
            while len(texts) > 1:
                half = len(texts) // 2
                try:
                    await send(texts[:half])
                except TextTooLongError:
                    texts = texts[:half]
                else:
                    place, texts = place + half, texts[half:]
        raise text_too_long(first + place, refused.limit, tokens=refused.tokens)

    def _checked(self, answer: Answer, count: int, dimension: int | None) -> Answer:
        shape = answer.vectors_ND.shape
        if len(shape) != 2 or shape[0] != count or not shape[1] or not np.isfinite(answer.vectors_ND).all():
            raise self._said.malformed("with something else than one finite vector for each text")
        if dimension is not None and shape[1] != dimension:
            raise self._said.malformed(f"with vectors of {shape[1]} numbers where {dimension} were asked for")
        return answer

    @contextmanager
    def _errors(self, model: str) -> Iterator[None]:
        """Around the library: its exceptions become errors of the port. They are not kept as causes: their texts and
        requests may hold the key."""
        try:
            yield
        except (KitchenError, TextTooLongError):
            raise
        except Exception as error:
            known = self._translated(error, model) or self._said.by_transport(error)
            if known is None:
                raise
            raise known from None

    def _response(self, answers: Sequence[Answer], model: str, *, normalize: bool) -> embedding_pb2.EmbedTextsResponse:
        vectors_ND = np.concatenate([each.vectors_ND for each in answers])
        response = embedding_pb2.EmbedTextsResponse(
            model=answers[0].model,
            dimension=vectors_ND.shape[1],
            vectors=to_tensor(normalized(vectors_ND) if normalize else vectors_ND),
        )
        counts = [each.tokens for each in answers if each.tokens is not None]
        # A sum without one batch's would be wrong.
        if len(counts) == len(answers):
            response.usage.CopyFrom(usage_pb2.TokenUsage(input_tokens=sum(counts)))
            known = self._options.models.get(model)
            if known is not None and known.price is not None:
                response.cost.CopyFrom(usage_pb2.Cost(amount=sum(counts) * known.price / 1e6, currency="USD"))
        return response


def _model(name: str, known: ProvidedModel) -> embedding_pb2.EmbeddingModel:
    model = embedding_pb2.EmbeddingModel(name=name, dimension=known.dimension, max_input_tokens=known.max_input_tokens)
    if known.price is not None:
        model.price_per_million_tokens.CopyFrom(usage_pb2.Cost(amount=known.price, currency="USD"))
    return model
