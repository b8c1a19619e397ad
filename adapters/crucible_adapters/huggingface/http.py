"""The libraries' HTTP client, with limits of time on every request."""

from __future__ import annotations

from typing import Any

from huggingface_hub import is_offline_mode, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import httpx

# The library waits so long by itself when the hub asks for it; longer waits are the caller's to plan.
MAX_RETRY_AFTER_SECONDS = 5.0
_UNKNOWN_WAIT_SECONDS = 30.0


class RateLimited(Exception):
    """The hub wants fewer requests. No type of the library's: it retries those for minutes."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the hub asks to wait {seconds:g} s")
        self.seconds = seconds


def install(*, timeout: float) -> None:
    """Makes the libraries use a client whose requests wait at most `timeout` seconds for the next piece."""
    set_client_factory(lambda: _Client(timeout))


class _Client(httpx.Client):
    def __init__(self, timeout: float) -> None:
        super().__init__(event_hooks={"response": [_refuse_long_waits]}, follow_redirects=True, timeout=timeout)
        self._limit = timeout

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        if is_offline_mode():
            raise OfflineModeIsEnabled(f"{request.url.host} is not asked: HF_HUB_OFFLINE is set")
        # The library asks for some requests without a limit.
        given = request.extensions.get("timeout", {})
        limits = {kind: given.get(kind) or self._limit for kind in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": limits}
        return super().send(request, **options)


def _refuse_long_waits(response: httpx.Response) -> None:
    if response.status_code == 429:
        seconds = retry_after(response)
        if seconds is not None and seconds > MAX_RETRY_AFTER_SECONDS:
            raise RateLimited(seconds)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds after which the hub takes requests again: Retry-After, or `t` of the RateLimit header; None: not told."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    for part in response.headers.get("ratelimit", "").split(";"):
        name, _, seconds = part.strip().partition("=")
        if name == "t" and seconds.isdigit():
            return float(seconds)
    return None


def wait_of(response: httpx.Response) -> float:
    """Seconds to wait after a 429 before the next request."""
    seconds = retry_after(response)
    return _UNKNOWN_WAIT_SECONDS if seconds is None else seconds
