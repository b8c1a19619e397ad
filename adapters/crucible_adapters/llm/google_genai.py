"""Chat with models of Google through the Gemini API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from pydantic import Field

from crucible.port.llm.v1 import llm_pb2
from crucible_adapters.llm import google_form
from crucible_adapters.llm.checks import ChatRequest
from crucible_adapters.llm.errors import Provider, context_limit
from crucible_adapters.llm.options import ChatOptions
from crucible_adapters.llm.replies import Draft, Piece
from crucible_adapters.llm.service import Call, ChatAdapter
from crucible_adapters.retries import retry_after
from crucible_kit.adapter import AdapterDescription
from crucible_kit.errors import KitchenError

# The responses of the request that is being sent: the library gives no way to close the stream that it reads.
_responses: ContextVar[list[Any] | None] = ContextVar("google_genai_responses", default=None)


class GoogleGenAIOptions(ChatOptions):
    """Which model, where, how long and at what price."""

    api_version: str = Field(
        default="", pattern=r"^[a-z0-9]*$", description="Version of the API, such as v1beta; empty: the library's own."
    )


class GoogleGenAILLM(ChatAdapter):
    """LLMClient over the package google-genai."""

    description = AdapterDescription(
        name="google-genai",
        port="llm",
        capabilities=(*("llm.json_schema", "llm.list_models", "llm.seed", "llm.stream", "llm.thinking", "llm.tools"),),
        options=GoogleGenAIOptions,
        secrets=("api_key",),
    )
    provider = "google_genai"
    package = "google.genai"
    address = "https://generativelanguage.googleapis.com"
    lacking: ClassVar[Mapping[str, str]] = {
        "messages.name": "is set, but the Gemini API takes no names of authors: leave it out"
    }

    _options: GoogleGenAIOptions

    def _open(self, http: Any, timeout: Any) -> Any:
        http.event_hooks["response"] = [_note]
        return open_client(http, self._key, self._said.address, self._options)

    def _arguments(self, request: ChatRequest, model: str, max_tokens: int | None) -> dict[str, Any]:
        return google_form.request_form(request, model, max_tokens)

    async def _complete(self, client: Any, call: Call, draft: Draft) -> None:
        # Checked here: the same exception of the call itself is about the reply.
        arguments = _checked(call.arguments)
        with parsing(self._said):
            response = await client.aio.models.generate_content(**arguments)
        with self._said.reading():
            reader = google_form.ResponseReader(draft)
            reader.read(response.model_dump(exclude_none=True), response.model_dump(mode="json", exclude_none=True))
            reader.end()
            if not draft.ended:
                raise ValueError("no candidate")

    async def _stream(self, client: Any, call: Call, draft: Draft) -> AsyncIterator[Piece]:
        responses: list[Any] = []
        chunks: Any = await client.aio.models.generate_content_stream(**_checked(call.arguments))
        reader = google_form.ResponseReader(draft)
        try:
            while True:
                # Set for the time of one step only: between the pieces other tasks' code may run in this context.
                token = _responses.set(responses)
                try:
                    with parsing(self._said):
                        chunk = await anext(chunks, None)
                finally:
                    _responses.reset(token)
                if chunk is None:
                    break
                with self._said.reading():
                    pieces = reader.read(
                        chunk.model_dump(exclude_none=True), chunk.model_dump(mode="json", exclude_none=True)
                    )
                for piece in pieces:
                    yield piece
            with self._said.reading():
                reader.end()
        finally:
            for response in responses:
                await response.aclose()
            await chunks.aclose()

    async def _models(self, client: Any) -> AsyncIterator[llm_pb2.LanguageModel]:
        async for model in await client.aio.models.list(config={"page_size": 1000}):
            with self._said.reading():
                if "generateContent" not in (model.supported_actions or ["generateContent"]):
                    continue
                found = llm_pb2.LanguageModel(
                    name=model.name.removeprefix("models/"),
                    context_tokens=model.input_token_limit,
                    max_output_tokens=model.output_token_limit,
                )
            yield found

    def _translated(self, error: Exception, model: str) -> KitchenError | None:
        return translated(error, model, self._said, now=self._clock.wall())


def open_client(http: Any, key: str, address: str, options: Any) -> Any:
    """The library's client. `options` are those with `api_version` and `timeout_seconds`."""
    from google import genai
    from google.genai import types

    return genai.Client(
        enterprise=False,
        api_key=key,
        http_options=types.HttpOptions(
            base_url=address,
            api_version=options.api_version or None,
            timeout=max(1, int(options.timeout_seconds * 1e3)),
            httpx_async_client=http,
        ),
    )


@contextmanager
def parsing(said: Provider) -> Iterator[None]:
    """Around the library's own reading of replies, which stumbles over other forms."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise said.malformed(f"with a body that is not of its API's form ({type(error).__name__})") from None


def translated(error: Exception, model: str, said: Provider, *, now: float) -> KitchenError | None:
    """The error of the port that one of the library's exceptions stands for; None: it is none of those.

    Args:
        now: seconds since 1970.
    """
    from google.genai import errors

    match error:
        case errors.APIError():
            return _by_status(error, model, said, now)
        case ValueError():  # JSON that can't be read, or is of another form; the arguments were checked before
            return said.malformed("with a body that is not of its API's form")
    return None


def _by_status(error: Any, model: str, said: Provider, now: float) -> KitchenError:
    text, reasons, delay = error.message, *_details(error.details)
    status = error.code if isinstance(error.code, int) else 500
    if "API_KEY_INVALID" in reasons or error.status == "UNAUTHENTICATED":
        status = 401
    if status == 429 and any("PerDay" in each for each in reasons):
        return said.quota_exhausted(text, status)
    limit = context_limit(text)
    if limit is not None:
        return said.context_too_long(text, limit)
    headers = getattr(error.response, "headers", None)
    if delay is None and headers is not None:
        delay = retry_after(headers, now=now)
    return said.by_status(status, text, model=model, delay=delay)


async def _note(response: Any) -> None:
    noted = _responses.get()
    if noted is not None:
        noted.append(response)


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the library's types, which check them."""
    from google.genai import types

    return {
        "model": arguments["model"],
        "contents": [types.Content.model_validate(each) for each in arguments["contents"]],
        "config": types.GenerateContentConfig.model_validate(arguments["config"]),
    }


def _details(body: Any) -> tuple[list[str], float | None]:
    """Reasons and ids of quotas in an error's details, and the delay of its RetryInfo in seconds."""
    reasons: list[str] = []
    delay: float | None = None
    error = body.get("error", body) if isinstance(body, dict) else {}
    details = error.get("details") if isinstance(error, dict) else None
    for each in details if isinstance(details, list) else []:
        if not isinstance(each, dict):
            continue
        reasons.append(str(each.get("reason", "")))
        violations = each.get("violations")
        reasons += [str(one.get("quotaId", "")) for one in violations or [] if isinstance(one, dict)]
        told = str(each.get("retryDelay", ""))
        if told.endswith("s") and told[:-1].replace(".", "", 1).isdecimal():
            delay = float(told[:-1])
    return reasons, delay
