"""The library's HTTP requests: sent again by the adapter's policy, errors told as the ports tell them."""

from __future__ import annotations

import logging
import ssl
from functools import cache, partial
from typing import Any, TypedDict
from urllib.request import getproxies, proxy_bypass

import httpx

from crucible_adapters.llm.errors import Provider
from crucible_adapters.retries import Clock, RetryPolicy, retried, retry_after
from crucible_adapters.tinker.errors import by_status
from crucible_kit.errors import KitchenError, UnavailableError

_CONNECT_SECONDS = 10.0
# What goes on beside the calls: the library deals with failures of it, and nobody waits for it.
_BESIDE = ("/session_heartbeat", "/telemetry", "/finish", "/client/dynamic_config", "/cancel_future")
_POLL = "/retrieve_future"
# The server may hold a poll for 30 s.
_POLL_SECONDS = 45.0
_TRY_AGAIN = 408
"""Of a poll: the result is not there yet."""
_TIMED_OUT = "PROVIDER_TIMEOUT"
# They say a line for every request, and for every poll that finds no result yet.
_TALKATIVE = {"httpx": logging.WARNING, "tinker.lib.api_future_impl": logging.ERROR}


class PolicyTransport(httpx.AsyncBaseTransport):
    """Sends requests, again where the policy says so. Every request of the API may be sent twice: a number in it tells
    the server that it is the same.

    Raises what the library passes on as it is, with the error of the port in it.
    """

    def __init__(self, said: Provider, policy: RetryPolicy, timeout_seconds: float, clock: Clock) -> None:
        self._said = said
        self._policy = policy
        self._timeout = timeout_seconds
        self._clock = clock
        self._inner: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._inner is None:
            # All requests go to one address.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            proxy = _proxy(request.url)
            self._inner = httpx.AsyncHTTPTransport(verify=_authorities(), limits=limits, proxy=proxy)
        if request.url.path.endswith(_BESIDE):
            return await self._inner.handle_async_request(request)
        polls = request.url.path.endswith(_POLL)
        seconds = max(self._timeout, _POLL_SECONDS) if polls else self._timeout
        timeout = request.extensions.get("timeout", {})
        connect = min(_CONNECT_SECONDS, self._timeout)
        request.extensions["timeout"] = {**dict.fromkeys(timeout, seconds), "connect": connect}
        from tinker._exceptions import _AuthFlowError  # pyright: ignore[reportPrivateUsage]

        try:
            attempt = partial(self._attempt, self._inner, request)
            return await retried(attempt, self._policy, time_remaining=None, clock=self._clock)
        except KitchenError as error:
            if error.reason == _TIMED_OUT:
                error = self._said.timed_out()
            # What the library hands through unchanged and never tries again.
            raise _AuthFlowError(error) from None

    async def aclose(self) -> None:
        if self._inner is not None:
            await self._inner.aclose()

    async def _attempt(self, inner: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        try:
            answer = await inner.handle_async_request(request)
            try:
                content = b"".join([part async for part in answer.aiter_raw()])
            finally:
                await answer.aclose()
            response = httpx.Response(answer.status_code, headers=answer.headers, content=content)
        except httpx.ConnectTimeout as error:
            raise self._said.unavailable(f"can't be reached ({type(error).__name__})") from None
        except httpx.TimeoutException:
            # Only here, where it counts as worth another try.
            raise UnavailableError("no answer in time", reason=_TIMED_OUT) from None
        except httpx.DecodingError:
            raise self._said.malformed("a body that can't be decompressed") from None
        except httpx.TransportError as error:
            raise self._said.unavailable(
                f"can't be reached, or broke the connection ({type(error).__name__})"
            ) from None
        status = response.status_code
        waiting = status == _TRY_AGAIN and request.url.path.endswith(_POLL)
        if 200 <= status < 300 or waiting:
            return response
        raise by_status(
            self._said, status, _words(response), delay=retry_after(response.headers, now=self._clock.wall())
        )


@cache
def _authorities() -> ssl.SSLContext:
    """Whom connections trust: the machine's authorities too. Reading them takes longer than a connection does."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def _proxy(url: httpx.URL) -> str | None:
    """The proxy that the environment names for an address; a transport of one's own is not told."""
    if proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def _words(response: httpx.Response) -> object:
    """The server's own words in an error's body."""
    try:
        body = response.json()
    except ValueError:
        return None
    if isinstance(body, dict):
        for key in ("detail", "error", "message"):
            if isinstance(body.get(key), str):
                return body[key]
    return None


class Opening(TypedDict):
    """Where and as whom the library goes."""

    base_url: str | None
    api_key: str
    project_id: str | None
    user_metadata: dict[str, str]


def open_service(opening: Opening, transport: PolicyTransport, *, telemetry: bool) -> Any:
    """The library's ServiceClient with an open session. Blocks: it asks the server. Raises what `translated` knows."""
    import tinker

    _quieten()
    service = tinker.ServiceClient(**opening)
    # The library would make it of its own class when it is first needed.
    service._session_holder = _holder(transport, telemetry)(**opening)  # pyright: ignore[reportPrivateUsage]
    return service


def open_rest(opening: Opening, transport: PolicyTransport, *, telemetry: bool) -> Any:
    """The library's RestClient, without a session. Blocks and raises as `open_service` does."""
    import tinker

    _quieten()
    holder = _holder(transport, telemetry)
    return tinker.RestClient(
        _holder=holder(base_url=opening["base_url"], api_key=opening["api_key"], _skip_session=True)
    )


def _quieten() -> None:
    for name, level in _TALKATIVE.items():
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(level)


def _holder(transport: PolicyTransport, telemetry: bool) -> Any:
    from tinker.lib.internal_client_holder import InternalClientHolder

    http = httpx.AsyncClient(transport=transport, follow_redirects=False, timeout=None)

    class Holder(InternalClientHolder):
        """The library's connections over our transport, which alone tries again."""

        def _create_client_connection_pool(self, *args: Any, **kwargs: Any) -> Any:
            pool = super()._create_client_connection_pool(*args, **kwargs)
            pool._constructor_kwargs.update(http_client=http, max_retries=0)
            return pool

        async def execute_with_retries(self, func: Any, *args: Any, **kwargs: Any) -> Any:
            return await func(*args, **kwargs)

        @property
        def _telemetry(self) -> Any:
            return self.__dict__.get("_kept_telemetry")

        @_telemetry.setter
        def _telemetry(self, value: Any) -> None:
            if value is not None and not telemetry:
                value._closed = True
                value.stop()
                value = None
            self.__dict__["_kept_telemetry"] = value

    return Holder
