"""Chat with models of OpenAI, or of any server that speaks its Chat Completions API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from crucible.port.llm.v1 import llm_pb2
from crucible_adapters.llm import openai_form
from crucible_adapters.llm.checks import ChatRequest
from crucible_adapters.llm.errors import context_limit
from crucible_adapters.llm.options import ChatOptions
from crucible_adapters.llm.replies import Draft, Piece
from crucible_adapters.llm.service import Call, ChatAdapter
from crucible_adapters.retries import retry_after
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import KitchenError

# The statuses of errors that come within a stream, whose own status is 200.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
}
_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_WITHHELD = ("content_filter", "content_policy_violation")


class OpenAIOptions(ChatOptions):
    """Which model, where, how long and at what price."""

    organization: str = Field(default="", description="Organization that is billed; empty: the key's own.")
    project: str = Field(default="", description="Project that is billed; empty: the key's own.")
    max_tokens_parameter: Literal["max_completion_tokens", "max_tokens"] = Field(
        default="max_completion_tokens",
        description="Name under which the limit of a reply is sent; older servers know max_tokens only.",
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="How much models that reason do so; none: the provider's default."
    )


class OpenAILLM(ChatAdapter):
    """LLMClient over the package openai. With a base_url of somebody else's it needs no key."""

    description = AdapterDescription(
        name="openai",
        port="llm",
        capabilities=("llm.json_schema", "llm.list_models", "llm.seed", "llm.stream", "llm.tools"),
        options=OpenAIOptions,
        secrets=("api_key",),
    )
    provider = "openai"
    package = "openai"
    address = "https://api.openai.com/v1"
    lacking: ClassVar[Mapping[str, str]] = {
        "tool_calls.signature": "is set, but OpenAI signs no calls: it belongs to another provider"
    }

    _options: OpenAIOptions

    def __init__(self, options: OpenAIOptions, context: AdapterContext, **more: Any) -> None:
        super().__init__(options, context, **more)
        self.needs_key = not options.base_url or options.base_url == self.address

    def _open(self, http: Any, timeout: Any) -> Any:
        client, headers = open_client(http, timeout, self._key, self._said.address, self._options)
        self._more = {"timeout": timeout, "extra_headers": headers}
        return client

    def _arguments(self, request: ChatRequest, model: str, max_tokens: int | None) -> dict[str, Any]:
        arguments = openai_form.request_form(request, model)
        if max_tokens is not None:
            arguments[self._options.max_tokens_parameter] = max_tokens
        if self._options.reasoning_effort is not None:
            arguments["reasoning_effort"] = self._options.reasoning_effort
        return arguments

    async def _complete(self, client: Any, call: Call, draft: Draft) -> None:
        import openai

        try:
            completion = await client.chat.completions.create(**call.arguments, **self._more)
        except openai.BadRequestError as error:
            if not _is_withheld(error, draft):
                raise
            return
        with self._said.reading():
            openai_form.read_completion(completion.to_dict(mode="json", warnings=False), draft, call.request)

    async def _stream(self, client: Any, call: Call, draft: Draft) -> AsyncIterator[Piece]:
        import openai

        arguments = {**call.arguments, "stream": True, "stream_options": {"include_usage": True}}
        try:
            stream = await client.chat.completions.create(**arguments, **self._more)
        except openai.BadRequestError as error:
            if not _is_withheld(error, draft):
                raise
            return
        reader = openai_form.StreamReader(draft, call.request)
        try:
            async for chunk in stream:
                with self._said.reading():
                    pieces = reader.read(chunk.to_dict(mode="json", warnings=False))
                for piece in pieces:
                    yield piece
            with self._said.reading():
                reader.end()
        finally:
            await stream.close()

    async def _models(self, client: Any) -> AsyncIterator[llm_pb2.LanguageModel]:
        async for model in client.models.list(**self._more):
            with self._said.reading():
                # What vLLM and its like tell beyond the API.
                length = (model.model_extra or {}).get("max_model_len")
                found = llm_pb2.LanguageModel(name=model.id, context_tokens=length)
            yield found

    def _translated(self, error: Exception, model: str) -> KitchenError | None:
        import openai

        match error:
            case openai.APITimeoutError():
                return self._said.by_transport(error.__cause__ or error) or self._said.timed_out()
            case openai.APIConnectionError():
                known = self._said.by_transport(error.__cause__) if error.__cause__ is not None else None
                return known or self._said.unavailable("can't be reached, or broke the connection")
            case openai.APIResponseValidationError():
                return self._said.malformed("with a body that is not of its API's form")
            case openai.APIError():
                return self._by_status(error, model)
            case ValueError():  # JSON that can't be read; the arguments were checked before
                return self._said.malformed("with a body that is no JSON")
        return None

    def _by_status(self, error: Any, model: str) -> KitchenError:
        body = error.body if isinstance(error.body, Mapping) else {}
        text, code = body.get("message"), str(error.code)
        response = getattr(error, "response", None)
        status = 0 if response is None else response.status_code
        if not status:
            # Within a stream: servers name the kind, or give a status as the code.
            status = _STATUS.get(str(error.type), int(code) if code.isdecimal() and len(code) == 3 else 500)
        if code in _SPENT or error.type in _SPENT:
            return self._said.quota_exhausted(text, status)
        limit = context_limit(text)
        if code == "context_length_exceeded" or limit is not None:
            return self._said.context_too_long(text, limit)
        if code == "model_not_found":
            status = 404
        delay = None if response is None else retry_after(response.headers, now=self._clock.wall())
        return self._said.by_status(status, text, model=model, delay=delay)


def open_client(http: Any, timeout: Any, key: str, address: str, options: Any) -> tuple[Any, dict[str, Any]]:
    """The library's client, and the headers that every request has to have.

    Args:
        key: empty: none.
        options: with `organization` and `project`.
    """
    import openai

    # Without a key no header may claim one; the library reads OPENAI_API_KEY in place of None.
    headers = {} if key else {"Authorization": openai.Omit()}
    client = openai.AsyncOpenAI(
        api_key=key, base_url=address, timeout=timeout, max_retries=0, http_client=http, _enforce_credentials=bool(key)
    )
    # Set here, as the constructor takes them from the environment in place of None.
    client.organization = options.organization or None
    client.project = options.project or None
    return client, headers


def _is_withheld(error: Any, draft: Draft) -> bool:
    """Whether a refusal is for the conversation's content; the draft then is the reply."""
    if error.code not in _WITHHELD:
        return False
    draft.finish_reason, draft.ended = llm_pb2.FINISH_REASON_CONTENT_FILTER, True
    draft.raw = {"error": {"code": error.code}}
    return True
