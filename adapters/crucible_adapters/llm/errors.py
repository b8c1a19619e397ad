"""What providers answer in place of a reply, as errors of the port. One place for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from crucible_adapters.retries import STATUS
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    capability_missing,
)

_SAID_CHARACTERS = 600
_MARK = "[redacted]"
# "maximum context length is 8192 tokens", "prompt is too long: 9000 tokens > 8192 maximum",
# "exceeds the maximum number of tokens allowed (8192)"
_CONTEXT_LIMITS = (
    re.compile(r"maximum (?:context|model) length (?:is|of) (\d+)", re.IGNORECASE),
    re.compile(r"prompt is too long: \d+ tokens > (\d+)", re.IGNORECASE),
    re.compile(r"maximum number of (?:input )?tokens allowed \(?(\d+)", re.IGNORECASE),
)


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Whose answers they are.

    Attributes:
        name: such as anthropic.
        address: where its API is.
        secrets: values that no error shows.
    """

    name: str
    address: str
    secrets: tuple[str, ...] = ()

    def said(self, text: object) -> str:
        """The provider's own words, cut and without secrets, with a colon before them; empty: it said nothing."""
        words = " ".join(text.split()) if isinstance(text, str) else ""
        words = redacted(words, self.secrets)[:_SAID_CHARACTERS]
        return f": {words}" if words else ""

    def unavailable(self, why: str, *, reason: str = "PROVIDER_UNAVAILABLE", **facts: Any) -> UnavailableError:
        """It is not reached, or in trouble."""
        return UnavailableError(
            f"{self.name} at {self.address} {why}: try again, or check base_url and the network",
            reason=reason,
            **self._facts(facts),
        )

    def timed_out(self) -> DeadlineExceededError:
        """It does not answer in time."""
        return DeadlineExceededError(
            f"{self.name} at {self.address} sent nothing within timeout_seconds: raise it, or ask for less",
            reason="PROVIDER_TIMEOUT",
            metadata={"provider": self.name},
        )

    def malformed(self, what: str) -> DataLossError:
        """What it answers is not of its API's form."""
        return DataLossError(
            f"{self.name} at {self.address} answers {what}: check that base_url is the address of its API",
            reason="PROVIDER_REPLY_MALFORMED",
            metadata={"provider": self.name},
        )

    def closed(self) -> UnavailableError:
        """The adapter is closed."""
        return UnavailableError(f"the {self.name} adapter is closed", reason="ADAPTER_CLOSED")

    def no_key(self) -> UnauthenticatedError:
        """The adapter has no key."""
        return UnauthenticatedError(
            f"the {self.name} adapter has no key, its secret api_key: name the environment variable that holds it in "
            "the manifest, `secrets: {api_key: VARIABLE}`",
            reason="PROVIDER_CREDENTIALS",
            metadata={"provider": self.name},
        )

    def context_too_long(self, text: object, limit: int | None) -> InvalidArgumentError:
        """The conversation leaves no room for a reply."""
        problem = f"are too long for the model{self.said(text)}"
        return InvalidArgumentError(
            f"messages: {problem}",
            reason="CONTEXT_LENGTH_EXCEEDED",
            metadata={"field": "messages", "provider": self.name, **({"limit": limit} if limit is not None else {})},
            fields=[FieldViolation("messages", problem)],
        )

    def quota_exhausted(self, text: object, status: int | None = None) -> ResourceExhaustedError:
        """Nothing more until somebody pays, or until the next period."""
        return ResourceExhaustedError(
            f"the quota or credit at {self.name} is used up{self.said(text)}",
            reason="QUOTA_EXHAUSTED",
            **self._facts({"status": status}),
        )

    def by_status(self, status: int, text: object, *, model: str = "", delay: float | None = None) -> KitchenError:
        """The error of an HTTP status.

        Args:
            text: the provider's own words.
            model: which one was asked; empty: the list of them.
            delay: seconds after which it wants to be asked again; None: it does not tell.
        """
        said, facts = self.said(text), self._facts({"status": status})
        if status == 401:
            # Its words are left out: providers show a part of the key that they refuse.
            return UnauthenticatedError(
                f"{self.name} refuses the key: check the environment variable that the manifest names for the secret "
                "api_key",
                reason="PROVIDER_CREDENTIALS",
                **facts,
            )
        if status == 402:
            return self.quota_exhausted(text, status)
        if status == 403:
            return PermissionDeniedError(
                f"the key may not do that at {self.name}{said}", reason="PROVIDER_FORBIDDEN", **facts
            )
        if status == 404 and not model:
            fix = f"{self.address} has no list of models: check that base_url is the address of its API"
            return capability_missing("llm", "llm.list_models", fix)
        if status == 404:
            return NotFoundError(
                f"model: {self.name} at {self.address} has no {model!r}: check the model's name, and that base_url is "
                f"the address of its API{said}",
                reason="MODEL_NOT_FOUND",
                metadata={**facts["metadata"], "model": model, "field": "model"},
            )
        if status == 429:
            return ResourceExhaustedError(
                f"{self.name} wants fewer requests{said}", reason="RATE_LIMITED", retry_delay=delay, **facts
            )
        if status in (408, 409) or status >= 500:
            return self.unavailable(f"answers {status}{said}", status=status, delay=delay)
        if status < 400:
            return self.malformed(f"{status}, which its API does not")
        limit = context_limit(text)
        if limit is not None:
            return self.context_too_long(text, limit)
        return InvalidArgumentError(
            f"{self.name} at {self.address} refuses the request with {status}{said}",
            reason="PROVIDER_REFUSED_REQUEST",
            **facts,
        )

    def by_transport(self, error: BaseException) -> KitchenError | None:
        """The error of one of the HTTP library's; None: it is none. Its text may hold headers, and is left out."""
        import httpx2

        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return self.timed_out()
        if isinstance(error, httpx2.TransportError | httpx2.StreamError):
            return self.unavailable(f"can't be reached, or broke the connection ({type(error).__name__})")
        if isinstance(error, httpx2.DecodingError):
            return self.malformed("a body that can't be decompressed")
        if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
            return self.unavailable("has an address that can't be used")
        return None

    def _facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        status, delay = facts.get("status"), facts.get("delay")
        metadata = {"provider": self.name, **({STATUS: status} if status is not None else {})}
        return {"metadata": metadata, **({"retry_delay": delay} if delay is not None else {})}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of a reply: what does not have the API's form is an error of the provider's."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, KitchenError):
                raise
            raise self.malformed(f"with a reply that is not of its API's form ({type(error).__name__})") from None


def context_limit(text: object) -> int | None:
    """The longest sequence that a refusal of a conversation names, in tokens; None: it is about something else."""
    if not isinstance(text, str):
        return None
    found = next((match for each in _CONTEXT_LIMITS if (match := each.search(text))), None)
    return int(found[1]) if found else None


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, as they are and as they stand in a URL."""
    for secret in secrets:
        for form in {secret, quote(secret, safe="")} - {""}:
            text = text.replace(form, _MARK)
    return text


def unusable(field: str, problem: str) -> UnimplementedError:
    """A field of the request that the provider has nothing like."""
    return UnimplementedError(
        f"{field}: {problem}",
        reason="CAPABILITY_MISSING",
        metadata={"port": "llm", "field": field},
        fields=[FieldViolation(field, problem)],
    )
