"""Chat with models of Anthropic through its Messages API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from crucible.port.llm.v1 import llm_pb2
from crucible_adapters.llm import anthropic_form
from crucible_adapters.llm.checks import ChatRequest
from crucible_adapters.llm.errors import context_limit
from crucible_adapters.llm.options import ChatOptions
from crucible_adapters.llm.replies import Draft, Piece
from crucible_adapters.llm.service import Call, ChatAdapter
from crucible_adapters.retries import retry_after
from crucible_kit.adapter import AdapterDescription
from crucible_kit.errors import KitchenError

_NO_SAMPLING = "is set, but the API of Anthropic takes none: leave it out"
# The statuses of errors that come within a stream, whose own status is 200.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "api_error": 500,
    "overloaded_error": 529,
}
_SPENT = ("contract_spend_limit_reached", "enforced_spend_limit_reached", "linked_organization_spend_limit_reached")


class AnthropicOptions(ChatOptions):
    """Which model, where, how long and at what price."""

    max_tokens: int = Field(
        default=4096, ge=1, description="Most tokens of a reply whose request sets no limit; the API has no default."
    )
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="How much effort the model puts into replies; none: the provider's default."
    )
    workspace_id: str = Field(
        default="", description="Workspace to work in, for keys that may use several; empty: none."
    )


class AnthropicLLM(ChatAdapter):
    """LLMClient over the package anthropic."""

    description = AdapterDescription(
        name="anthropic",
        port="llm",
        capabilities=("llm.json_schema", "llm.list_models", "llm.stream", "llm.thinking", "llm.tools"),
        options=AnthropicOptions,
        secrets=("api_key",),
    )
    provider = "anthropic"
    package = "anthropic"
    address = "https://api.anthropic.com"
    lacking: ClassVar[Mapping[str, str]] = {
        "options.temperature": _NO_SAMPLING,
        "options.top_p": _NO_SAMPLING,
        "messages.name": "is set, but the API of Anthropic takes no names of authors: leave it out",
        "tool_calls.signature": "is set, but Anthropic signs no calls: it belongs to another provider",
    }

    _options: AnthropicOptions

    def _open(self, http: Any, timeout: Any) -> Any:
        import anthropic

        self._timeout = timeout
        return anthropic.AsyncAnthropic(
            api_key=self._key,
            base_url=self._said.address,
            timeout=timeout,
            max_retries=0,
            http_client=http,
            # Spans would hold what the kitchen's own tracing holds, or the conversation.
            open_telemetry=False,
        )

    def _arguments(self, request: ChatRequest, model: str, max_tokens: int | None) -> dict[str, Any]:
        assert max_tokens is not None
        arguments = anthropic_form.request_form(request, model, max_tokens)
        if self._options.effort is not None:
            arguments.setdefault("output_config", {})["effort"] = self._options.effort
        if self._options.workspace_id:
            arguments["workspace_id"] = self._options.workspace_id
        return arguments

    async def _complete(self, client: Any, call: Call, draft: Draft) -> None:
        message = await client.messages.create(**call.arguments, timeout=self._timeout)
        with self._said.reading():
            anthropic_form.read_message(message.to_dict(mode="json", warnings=False), draft)

    async def _stream(self, client: Any, call: Call, draft: Draft) -> AsyncIterator[Piece]:
        stream = await client.messages.create(**call.arguments, stream=True, timeout=self._timeout)
        reader = anthropic_form.StreamReader(draft)
        try:
            async for event in stream:
                with self._said.reading():
                    pieces = reader.read(event.to_dict(mode="json", warnings=False))
                for piece in pieces:
                    yield piece
        finally:
            await stream.close()

    async def _models(self, client: Any) -> AsyncIterator[llm_pb2.LanguageModel]:
        async for model in client.models.list(limit=1000, timeout=self._timeout):
            with self._said.reading():
                found = llm_pb2.LanguageModel(
                    name=model.id, context_tokens=model.max_input_tokens, max_output_tokens=model.max_tokens
                )
            yield found

    def _translated(self, error: Exception, model: str) -> KitchenError | None:
        import anthropic

        match error:
            case anthropic.APITimeoutError():
                return self._said.by_transport(error.__cause__ or error) or self._said.timed_out()
            case anthropic.APIConnectionError():
                known = self._said.by_transport(error.__cause__) if error.__cause__ is not None else None
                return known or self._said.unavailable("can't be reached, or broke the connection")
            case anthropic.APIResponseValidationError():
                return self._said.malformed("with a body that is not of its API's form")
            case anthropic.APIStatusError():
                return self._by_status(error, model)
            case ValueError():  # JSON that can't be read; the arguments were checked before
                return self._said.malformed("with a body that is no JSON")
        return None

    def _by_status(self, error: Any, model: str) -> KitchenError:
        status, text = error.status_code, error.api_message
        if 200 <= status < 300:
            status = _STATUS.get(str(error.type), 500)
        if error.error_code in _SPENT or (isinstance(text, str) and "credit balance is too low" in text):
            return self._said.quota_exhausted(text, status)
        limit = context_limit(text)
        if limit is not None:
            return self._said.context_too_long(text, limit)
        delay = retry_after(error.response.headers, now=self._clock.wall())
        return self._said.by_status(status, text, model=model, delay=delay)
