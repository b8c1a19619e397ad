"""What Chroma answers in place of a result, as errors of the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from crucible_adapters.retries import STATUS, retry_after
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

_SAID_CHARACTERS = 600


class ChromaErrors:
    """Translates exceptions.

    Args:
        address: of the server; empty: it is embedded.
        secrets: values that no error shows.
        now: seconds since 1970.
    """

    def __init__(self, address: str, secrets: tuple[str, ...], *, now: Callable[[], float]) -> None:
        self._now = now
        self._address = address
        self._secrets = secrets
        self._who = f"Chroma at {address}" if address else "the embedded Chroma"

    def check_response(self, response: Any) -> None:
        """Raises the error of an answer that the library would tell without its status or headers."""
        status = response.status_code
        if status in (401, 403, 408, 429) or status >= 500:
            response.read()
            error = self._by_status(status, response.text)
            if status not in (401, 403):
                error.retry_delay = retry_after(response.headers, now=self._now())
            raise error

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Around Chroma's library. Its exceptions are no causes: their requests may hold the token."""
        try:
            yield
        except KitchenError:
            raise
        except Exception as error:
            known = self._known(error)
            if known is None:
                raise
            raise known from None

    def _known(self, error: Exception) -> KitchenError | None:
        import httpx
        from chromadb.errors import ChromaError

        if isinstance(error, KitchenError):
            return error
        if isinstance(error, ChromaError):
            return self._by_code(error)
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return DeadlineExceededError(
                f"{self._who} sent nothing within timeout_seconds: raise it, or ask for less", reason="PROVIDER_TIMEOUT"
            )
        if isinstance(error, httpx.TransportError | httpx.StreamError):
            return self._unavailable(f"can't be reached, or broke the connection ({type(error).__name__})")
        if not self._address:
            return None
        if isinstance(error, ValueError) and str(error).startswith("Could not connect"):
            # The library hides what has happened while it looked for the tenant.
            cause = error.__context__
            known = self._known(cause) if isinstance(cause, Exception) else None
            return known or self._unavailable("can't be reached")
        if isinstance(error, AttributeError | IndexError | KeyError | TypeError | ValueError):
            return self._malformed(type(error).__name__)
        # The library raises a bare Exception for an answer whose body is no error of Chroma's.
        status = getattr(getattr(error.__context__, "response", None), "status_code", None)
        return self._by_status(status, str(error)) if status is not None else None

    def _by_code(self, error: Any) -> KitchenError:
        from chromadb.errors import InternalError, QuotaError

        if isinstance(error, QuotaError):
            return ResourceExhaustedError(
                f"the quota at {self._who} is used up{self._said(error)}", reason="QUOTA_EXHAUSTED"
            )
        if isinstance(error, InternalError) and not self._address:
            return UnavailableError(
                f"the embedded Chroma fails{self._said(error)}: check the disk and the data folder",
                reason="STORE_UNAVAILABLE",
            )
        return self._by_status(error.code(), str(error))

    def _by_status(self, status: int, text: str) -> KitchenError:
        said, metadata = self._said(text), {STATUS: status}
        if status == 401:
            return UnauthenticatedError(
                f"{self._who} refuses the token: check the environment variable that the manifest names for the secret "
                "token",
                reason="PROVIDER_CREDENTIALS",
                metadata=metadata,
            )
        if status == 403:
            return PermissionDeniedError(
                f"the token may not do that at {self._who}{said}", reason="PROVIDER_FORBIDDEN", metadata=metadata
            )
        if status == 404:
            return NotFoundError(
                f"{self._who} has no such collection, database or tenant{said}",
                reason="COLLECTION_NOT_FOUND",
                metadata=metadata,
            )
        if status == 429:
            return ResourceExhaustedError(
                f"{self._who} wants fewer requests{said}", reason="RATE_LIMITED", metadata=metadata
            )
        if status >= 500 or status in (408, 409):
            return self._unavailable(f"answers {status}{said}", status)
        if status < 400:
            return self._malformed(f"status {status}")
        return InvalidArgumentError(
            f"{self._who} refuses the request{said}", reason="PROVIDER_REFUSED_REQUEST", metadata=metadata
        )

    def _unavailable(self, why: str, status: int | None = None) -> UnavailableError:
        return UnavailableError(
            f"{self._who} {why}: try again, or check host and port",
            reason="PROVIDER_UNAVAILABLE",
            metadata={} if status is None else {STATUS: status},
        )

    def _malformed(self, what: str) -> DataLossError:
        return DataLossError(
            f"{self._who} answers what is not of its API's form ({what}): check host and port",
            reason="PROVIDER_REPLY_MALFORMED",
        )

    def _said(self, error: object) -> str:
        words = " ".join(str(error).split())
        for each in self._secrets:
            words = words.replace(each, "[redacted]")
        return f": {words[:_SAID_CHARACTERS]}" if words else ""
