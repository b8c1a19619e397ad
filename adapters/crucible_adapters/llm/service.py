"""The port's calls, the same for every provider: check, send, try again, read, tell."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeVar

from crucible.port.llm.v1 import llm_pb2, llm_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_adapters.llm.checks import ChatRequest, check_request
from crucible_adapters.llm.errors import Provider
from crucible_adapters.llm.library import Library, check_address, usable_key
from crucible_adapters.llm.options import ChatOptions
from crucible_adapters.llm.replies import Draft, Piece
from crucible_adapters.retries import Clock, retried
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import KitchenError, field_error

T = TypeVar("T")
_SYSTEM_CLOCK = Clock()
_MAX_MODELS = 10_000


class Call(NamedTuple):
    """A request as the provider takes it.

    Attributes:
        model: the model's name.
        arguments: of the library's method.
        request: what it was made of.
    """

    model: str
    arguments: dict[str, Any]
    request: ChatRequest


class ChatAdapter(llm_pb2_grpc.LLMServiceServicer):
    """Chat through a provider's own library, which is loaded, in a thread, when the first call needs it.

    Args:
        clock: time and chance; tests give their own.
    """

    description: ClassVar[AdapterDescription]
    provider: ClassVar[str]
    """As in ReplyMeta."""
    package: ClassVar[str]
    """Module of the library."""
    address: ClassVar[str]
    """Where its API is unless the options say otherwise."""
    needs_key: bool = True
    lacking: ClassVar[Mapping[str, str]] = {}
    """As check_request takes it."""

    def __init__(self, options: Any, context: AdapterContext, *, clock: Clock = _SYSTEM_CLOCK) -> None:
        self._options: ChatOptions = options
        self._clock = clock
        check_address(options.base_url)
        self._key = usable_key(context.secrets.get("api_key", ""), self.provider)
        self._said = Provider(
            name=self.provider, address=options.base_url or self.address, secrets=(self._key,) if self._key else ()
        )
        self._library = Library(
            self.package, "llm", self._said, timeout_seconds=options.timeout_seconds, opening=self._open
        )

    @abstractmethod
    def _open(self, http: Any, timeout: Any) -> Any:
        """The library's client; runs in a thread. `http` is the httpx2.AsyncClient that it has to use."""

    @abstractmethod
    def _arguments(self, request: ChatRequest, model: str, max_tokens: int | None) -> dict[str, Any]:
        """The request as the library's method takes it. Raises what is wrong with it."""

    @abstractmethod
    async def _complete(self, client: Any, call: Call, draft: Draft) -> None:
        """Asks once for a whole reply and fills the draft with it."""

    @abstractmethod
    def _stream(self, client: Any, call: Call, draft: Draft) -> AsyncIterator[Piece]:
        """Asks once for a reply in pieces, gives them and fills the draft. Closing it ends the HTTP request."""

    @abstractmethod
    async def _models(self, client: Any) -> AsyncIterator[llm_pb2.LanguageModel]:
        """All models, without prices."""
        yield llm_pb2.LanguageModel()

    @abstractmethod
    def _translated(self, error: Exception, model: str) -> KitchenError | None:
        """The error of the port that one of the library's exceptions stands for; None: it is none of those."""

    async def probe(self) -> str:
        """That it has no key and needs one; else empty. Asks nobody: each call to the provider may cost."""
        return self._said.no_key().message if self.needs_key and not self._key else ""

    async def close(self) -> None:
        """Ends the connections."""
        await self._library.close()

    async def Chat(self, request: llm_pb2.ChatRequest, context: Any) -> llm_pb2.ChatResponse:
        call, client = self._call(request), await self._opened()
        started = self._clock.monotonic()

        async def attempt() -> Draft:
            draft = Draft()
            with self._errors(call.model):
                await self._complete(client, call, draft)
            return draft

        draft = await self._retried(attempt, context)
        return llm_pb2.ChatResponse(reply=self._reply(draft, call, started))

    async def StreamChat(
        self, request: llm_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[llm_pb2.StreamChatResponse]:
        call, client = self._call(request), await self._opened()
        started = self._clock.monotonic()

        # An attempt ends with the first piece: what has been shown can't be taken back.
        async def attempt() -> tuple[Draft, Any, Piece | None]:
            draft = Draft()
            pieces: Any = self._stream(client, call, draft)
            try:
                with self._errors(call.model):
                    first = await anext(pieces, None)
                if first is None:
                    self._check_ended(draft)
                return draft, pieces, first
            except BaseException:
                await pieces.aclose()
                raise

        draft, pieces, piece = await self._retried(attempt, context)
        try:
            while piece is not None:
                yield piece
                with self._errors(call.model):
                    piece = await anext(pieces, None)
        finally:
            await pieces.aclose()
        self._check_ended(draft)
        yield llm_pb2.StreamChatResponse(reply=self._reply(draft, call, started))

    async def ListModels(self, request: llm_pb2.ListModelsRequest, context: Any) -> llm_pb2.ListModelsResponse:
        size, scope = paging.page_size(request.page_size), f"ListModels\0{self.provider}"
        after = paging.decode(request.page_token, scope)
        client = await self._opened()

        async def attempt() -> dict[str, llm_pb2.LanguageModel]:
            found: dict[str, llm_pb2.LanguageModel] = {}
            with self._errors(""):
                async for model in self._models(client):
                    found[model.name] = model
                    if len(found) >= _MAX_MODELS:
                        break
            return found

        found = await self._retried(attempt, context)
        names = sorted(name for name in found if not after or name > after[0])
        for name in names[:size]:
            self._add_prices(found[name])
        token = paging.encode([names[size - 1]], scope) if len(names) > size else ""
        return llm_pb2.ListModelsResponse(models=[found[name] for name in names[:size]], next_page_token=token)

    def _call(self, request: ChatRequest) -> Call:
        check_request(request, self.description.capabilities, lacking=self.lacking)
        model = request.model or self._options.model
        if not model:
            raise field_error("model", "is empty, and the adapter has no default: name one, or set its option model")
        limit = request.options.max_tokens if request.options.HasField("max_tokens") else self._options.max_tokens
        return Call(model, self._arguments(request, model, limit), request)

    def _check_ended(self, draft: Draft) -> None:
        if not draft.ended:
            raise self._said.unavailable("ended its stream in the middle of the reply")

    def _reply(self, draft: Draft, call: Call, started: float) -> llm_pb2.ChatReply:
        latency = (self._clock.monotonic() - started) * 1e3
        with self._said.reading():
            return draft.reply(
                provider=self.provider, asked=call.model, prices=self._options.prices, latency_ms=latency
            )

    def _add_prices(self, model: llm_pb2.LanguageModel) -> None:
        price = self._options.prices.get(model.name)
        if price is not None:
            model.input_price_per_million_tokens.CopyFrom(usage_pb2.Cost(amount=price.input, currency="USD"))
            model.output_price_per_million_tokens.CopyFrom(usage_pb2.Cost(amount=price.output, currency="USD"))

    async def _retried(self, attempt: Callable[[], Awaitable[T]], context: Any) -> T:
        remaining = context.time_remaining()
        return await retried(attempt, self._options.retries, time_remaining=remaining, clock=self._clock)

    @contextmanager
    def _errors(self, model: str) -> Iterator[None]:
        """Around the library: its exceptions become errors of the port. They are not kept as causes: their texts and
        requests may hold the key."""
        try:
            yield
        except KitchenError:
            raise
        except Exception as error:
            known = self._translated(error, model) or self._said.by_transport(error)
            if known is None:
                raise
            raise known from None

    async def _opened(self) -> Any:
        if self.needs_key and not self._key:
            raise self._said.no_key()
        return await self._library.client()
