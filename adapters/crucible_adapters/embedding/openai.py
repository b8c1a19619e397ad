"""Embeddings by models of OpenAI, or of any server that speaks its Embeddings API."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from crucible.port.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_adapters.embedding.checks import check_request, check_size, normalized, text_too_long
from crucible_adapters.listing import page
from crucible_adapters.llm.errors import Provider, context_limit
from crucible_adapters.llm.options import ChatOptions
from crucible_adapters.retries import Clock, RetryPolicy, retried, retry_after
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import FailedPreconditionError, UnavailableError
from crucible_kit.tensors import to_tensor

_ADDRESS = "https://api.openai.com/v1"
_SYSTEM_CLOCK = Clock()
_CONNECT_SECONDS = 10.0
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_TOO_LONG = re.compile(r"maximum input length is (\d+) tokens", re.IGNORECASE)
_PLACE = re.compile(r"input\[(\d+)\]")


class OpenAIEmbeddingModel(AdapterOptions):
    """What ListModels tells of a model."""

    dimension: int = Field(ge=1, le=65536, description="Length of its vectors unless a request says another.")
    max_input_tokens: int = Field(default=0, ge=0, description="Longest text in tokens; 0: not known.")
    price: float | None = Field(default=None, ge=0, description="USD per million tokens; none: calls have no cost.")


class OpenAIEmbeddingOptions(AdapterOptions):
    """Which models, where, and how much in one request."""

    model: str = Field(
        default="text-embedding-3-small", min_length=1, max_length=255, description="Model of requests that name none."
    )
    base_url: str = Field(default="", description="Address of the API; empty: OpenAI's.")
    timeout_seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Longest wait for a connection, and for the next bytes of an answer."
    )
    organization: str = Field(default="", description="Organization that is billed; empty: the key's own.")
    project: str = Field(default="", description="Project that is billed; empty: the key's own.")
    batch_texts: int = Field(default=2048, ge=1, le=2048, description="Most texts in one request to the provider.")
    batch_bytes: int = Field(
        default=600_000,
        ge=1,
        description="Most bytes of text (UTF-8) in one request, unless a single text is longer. OpenAI takes 300,000 "
        "tokens.",
    )
    encoding: Literal["base64", "float"] = Field(
        default="base64", description="How vectors are asked for; some servers know float only, which is slower."
    )
    models: dict[str, OpenAIEmbeddingModel] = Field(
        default_factory=lambda: {
            "text-embedding-3-large": OpenAIEmbeddingModel(dimension=3072, max_input_tokens=8192),
            "text-embedding-3-small": OpenAIEmbeddingModel(dimension=1536, max_input_tokens=8192),
            "text-embedding-ada-002": OpenAIEmbeddingModel(dimension=1536, max_input_tokens=8192),
        },
        description="What ListModels lists, by name, as the API does not tell it; others may be asked too.",
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy, description="When a request is sent again; the library's own retries are off."
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return ChatOptions(base_url=value).base_url


class _Answer(NamedTuple):
    """What one request was answered.

    Attributes:
        vectors_ND: float32.
        tokens: that were read; None: it does not tell.
    """

    model: str
    vectors_ND: np.ndarray
    tokens: int | None


class _TooLongError(Exception):
    """The provider refuses a text as too long.

    Attributes:
        place: of the text within the request; None: it does not tell.
        limit: in tokens; None: it does not tell.
    """

    def __init__(self, place: int | None, limit: int | None) -> None:
        super().__init__()
        self.place = place
        self.limit = limit


class OpenAIEmbedding(embedding_pb2_grpc.EmbeddingServiceServicer):
    """The EmbeddingClient port over the package openai, which is loaded, in a thread, when the first call needs it.

    With a base_url of somebody else's it needs no key.

    Args:
        clock: time and chance; tests give their own.
    """

    description = AdapterDescription(
        name="openai-embedding",
        port="embedding",
        capabilities=("embedding.dimension", "embedding.list_models"),
        options=OpenAIEmbeddingOptions,
        secrets=("api_key",),
    )

    def __init__(
        self, options: OpenAIEmbeddingOptions, context: AdapterContext, *, clock: Clock = _SYSTEM_CLOCK
    ) -> None:
        if find_spec("openai") is None:
            raise FailedPreconditionError(
                "builtin:openai needs the Python package openai: pip install 'crucible-kitchen[embeddings]'",
                reason="PACKAGE_MISSING",
                metadata={"package": "openai", "extra": "embeddings"},
            )
        self._options = options
        self._clock = clock
        self._key = context.secrets.get("api_key", "").strip()
        if not all("!" <= each <= "~" for each in self._key):
            raise FailedPreconditionError(
                "the secret api_key holds characters that no key has: check the environment variable that the manifest "
                "names",
                reason="PROVIDER_CREDENTIALS",
            )
        self._said = Provider(
            name="openai", address=options.base_url or _ADDRESS, secrets=(self._key,) if self._key else ()
        )
        self._needs_key = options.base_url in ("", _ADDRESS)
        self._lock = asyncio.Lock()
        self._http: Any = None
        self._client: Any = None
        self._headers: dict[str, Any] = {}
        self._closed = False

    async def close(self) -> None:
        """Ends the connections."""
        async with self._lock:
            self._closed = True
            http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def EmbedTexts(
        self, request: embedding_pb2.EmbedTextsRequest, context: Any
    ) -> embedding_pb2.EmbedTextsResponse:
        check_request(request, self.description.capabilities)
        dimension = request.dimension if request.HasField("dimension") else None
        model = request.model or self._options.model
        if dimension is not None:
            check_size(len(request.texts), dimension)
        client, answers = await self._opened(), list[_Answer]()
        deadline = _deadline(context, self._clock)
        for first, texts in self._batches(request.texts):
            answer = await self._ask(client, model, texts, dimension, first, deadline)
            if not answers:
                # Known only now: not every model has a dimension that was asked for.
                check_size(len(request.texts), answer.vectors_ND.shape[1])
            elif answer.vectors_ND.shape[1] != answers[0].vectors_ND.shape[1]:
                raise self._said.malformed("with vectors of different lengths")
            answers.append(answer)
        vectors_ND = np.concatenate([each.vectors_ND for each in answers])
        response = embedding_pb2.EmbedTextsResponse(
            model=answers[0].model,
            dimension=vectors_ND.shape[1],
            vectors=to_tensor(normalized(vectors_ND) if request.normalize else vectors_ND),
        )
        counts = [each.tokens for each in answers if each.tokens is not None]
        if len(counts) == len(answers):
            response.usage.CopyFrom(usage_pb2.TokenUsage(input_tokens=sum(counts)))
            known = self._options.models.get(model)
            if known is not None and known.price is not None:
                response.cost.CopyFrom(usage_pb2.Cost(amount=sum(counts) * known.price / 1e6, currency="USD"))
        return response

    async def ListModels(
        self, request: embedding_pb2.ListModelsRequest, context: Any
    ) -> embedding_pb2.ListModelsResponse:
        found = [_model(name, self._options.models[name]) for name in sorted(self._options.models)]
        models, token = page(found, lambda each: each.name, request, "ListModels")
        return embedding_pb2.ListModelsResponse(models=models, next_page_token=token)

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

    async def _ask(
        self, client: Any, model: str, texts: list[str], dimension: int | None, first: int, deadline: float | None
    ) -> _Answer:
        """One batch, tried again by the policy; `first` is the index of its first text."""

        async def send(some: list[str]) -> _Answer:
            async def attempt() -> _Answer:
                return await self._attempt(client, model, some, dimension)

            remaining = None if deadline is None else deadline - self._clock.monotonic()
            return await retried(attempt, self._options.retries, time_remaining=remaining, clock=self._clock)

        try:
            return await send(texts)
        except _TooLongError as error:
            place, limit = error.place, error.limit
        if place is None or place >= len(texts):
            place = 0
            # The provider does not tell which one: halves are asked until one text is left.
            while len(texts) > 1:
                half = len(texts) // 2
                try:
                    await send(texts[:half])
                except _TooLongError:
                    texts = texts[:half]
                else:
                    place, texts = place + half, texts[half:]
        raise text_too_long(first + place, limit)

    async def _attempt(self, client: Any, model: str, texts: list[str], dimension: int | None) -> _Answer:
        more: dict[str, Any] = {} if dimension is None else {"dimensions": dimension}
        more["extra_headers"] = self._headers
        try:
            response = await client.embeddings.create(
                model=model, input=texts, encoding_format=self._options.encoding, **more
            )
        # The library's exceptions are no causes: their texts and requests may hold the key.
        except Exception as error:
            known = self._translated(error, model)
            if known is None:
                raise
            raise known from None
        with self._said.reading():
            body = response.to_dict(mode="json", warnings=False)
            vectors_ND = _vectors(body["data"], len(texts))
            tokens = (body.get("usage") or {}).get("prompt_tokens")
            answer = _Answer(str(body.get("model") or model), vectors_ND, None if tokens is None else int(tokens))
        if dimension is not None and vectors_ND.shape[1] != dimension:
            raise self._said.malformed(
                f"with vectors of {vectors_ND.shape[1]} numbers where {dimension} were asked for"
            )
        return answer

    def _translated(self, error: Exception, model: str) -> Exception | None:
        """What one of the library's exceptions stands for; None: it is none of those."""
        import openai

        match error:
            case openai.APITimeoutError():
                return self._said.by_transport(error.__cause__ or error) or self._said.timed_out()
            case openai.APIConnectionError():
                known = self._said.by_transport(error.__cause__) if error.__cause__ is not None else None
                return known or self._said.unavailable("can't be reached, or broke the connection")
            case openai.APIResponseValidationError():
                return self._said.malformed("with a body that is not of its API's form")
            case openai.APIStatusError():
                return self._by_status(error, model)
            case ValueError():
                # Of the library itself: it wants data, and JSON that can be read.
                return self._said.malformed("with a body that is not of its API's form")
        return self._said.by_transport(error)

    def _by_status(self, error: Any, model: str) -> Exception:
        body = error.body if isinstance(error.body, Mapping) else {}
        text, status = body.get("message"), error.status_code
        if error.code in _SPENT or error.type in _SPENT:
            return self._said.quota_exhausted(text, status)
        if status == 400 and isinstance(text, str):
            limit = _TOO_LONG.search(text)
            known = int(limit[1]) if limit else context_limit(text)
            if known is not None:
                place = _PLACE.search(text)
                return _TooLongError(int(place[1]) if place else None, known)
        delay = retry_after(error.response.headers, now=self._clock.wall())
        return self._said.by_status(status, text, model=model, delay=delay)

    async def _opened(self) -> Any:
        async with self._lock:
            if self._closed:
                raise UnavailableError("the openai-embedding adapter is closed", reason="ADAPTER_CLOSED")
            if self._needs_key and not self._key:
                raise self._said.no_key()
            if self._client is None:
                self._http, self._client = await asyncio.to_thread(self._load)
            return self._client

    def _load(self) -> tuple[Any, Any]:
        import httpx2
        import openai

        seconds = self._options.timeout_seconds
        timeout = httpx2.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds))
        http = httpx2.AsyncClient(timeout=timeout, follow_redirects=False)
        # Without a key no header may claim one; the library reads OPENAI_API_KEY in place of None.
        self._headers = {} if self._key else {"Authorization": openai.Omit()}
        client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._said.address,
            timeout=timeout,
            max_retries=0,
            http_client=http,
            _enforce_credentials=bool(self._key),
        )
        # Set here, as the constructor takes them from the environment in place of None.
        client.organization = self._options.organization or None
        client.project = self._options.project or None
        return http, client


def _vectors(data: list[Any], count: int) -> np.ndarray:
    """The vectors of an answer in the order of its indices, float32 of shape [n, d].

    Raises:
        ValueError: it is not one finite vector for each text. Other exceptions tell of another form.
    """
    rows = {int(each["index"]): _vector(each["embedding"]) for each in data}
    if len(data) != count or sorted(rows) != list(range(count)):
        raise ValueError("indices")
    vectors_ND = np.stack([rows[number] for number in range(count)])
    if vectors_ND.ndim != 2 or not vectors_ND.shape[1] or not np.isfinite(vectors_ND).all():
        raise ValueError("vectors")
    return vectors_ND


def _vector(value: Any) -> np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    return np.asarray(value, np.float32)


def _model(name: str, known: OpenAIEmbeddingModel) -> embedding_pb2.EmbeddingModel:
    model = embedding_pb2.EmbeddingModel(name=name, dimension=known.dimension, max_input_tokens=known.max_input_tokens)
    if known.price is not None:
        model.price_per_million_tokens.CopyFrom(usage_pb2.Cost(amount=known.price, currency="USD"))
    return model


def _deadline(context: Any, clock: Clock) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else clock.monotonic() + remaining
