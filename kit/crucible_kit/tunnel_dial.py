"""An adapter that dials out: it attaches to a kitchen, and comes back whenever the tunnel breaks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from crucible.adapter.v1 import adapter_pb2, gateway_pb2, gateway_pb2_grpc
from crucible_kit.channel import Channel, connect
from crucible_kit.errors import KitchenError, UnavailableError
from crucible_kit.tunnel_mux import MAX_CALLS
from crucible_kit.tunnel_serving import ServingTunnel

logger = logging.getLogger(__name__)

# Until Welcome: connecting, and what Configure does before.
_WELCOME_SECONDS = 60.0
# Heartbeats without a frame after which the kitchen counts as gone.
_SILENT_HEARTBEATS = 4
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 15.0


def pause_seconds(failures: int) -> float:
    """How long to wait before trying again after so many failures in a row, from 1: doubling from 0.2 s to 15 s, each
    shortened by up to half at random, so that the adapters of a server that comes back don't all come at once.
    """
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1.0)


class DialOut:
    """Attaches servicers to a kitchen under a name, for as long as it runs.

    Args:
        address: the kitchen's.
        name: as in the manifest's `attach:NAME`.
        servicers: by full service name, AdapterService among them.
        info: what it introduces itself with.
        token: bearer token for the kitchen; empty: none.
        credentials: TLS; None is plain text.
        max_calls: in flight.
        grace: seconds that calls in flight have when it ends.
        on_attached: called whenever the kitchen has accepted it.
        pause: seconds before the next try, by the number of failures in a row.
    """

    def __init__(
        self,
        address: str,
        *,
        name: str,
        servicers: Mapping[str, Any],
        info: adapter_pb2.GetAdapterInfoResponse,
        token: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        max_calls: int = MAX_CALLS,
        grace: float = 10.0,
        on_attached: Callable[[], None] = lambda: None,
        pause: Callable[[int], float] = pause_seconds,
    ) -> None:
        self._address = address
        self._name = name
        self._servicers = dict(servicers)
        self._info = info
        self._token = token
        self._credentials = credentials
        self._max_calls = max_calls
        self._grace = grace
        self._on_attached = on_attached
        self._pause = pause
        self._lease = ""
        self._failures = 0
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Makes `run` return, when the calls in flight are answered or their grace is over."""
        self._ended.set()

    async def run(self) -> None:
        """Serves until `end`. A kitchen that can't be reached is tried again for ever.

        Raises:
            KitchenError: what the kitchen refuses it with before it was ever attached, if trying again is no use; and
                ATTACHMENT_SUPERSEDED, another adapter has the name now.
        """
        while not self._ended.is_set():
            try:
                await self._attach_once()
                problem = "the kitchen has ended the tunnel"
            except KitchenError as error:
                if error.reason == "ATTACHMENT_SUPERSEDED" or (not self._lease and not error.retryable):
                    raise
                problem = f"{error.reason}: {error.message}"
            if self._ended.is_set():
                return
            self._failures += 1
            seconds = self._pause(self._failures)
            logger.warning("attach:%s at %s: %s; again in %.1f s", self._name, self._address, problem, seconds)
            try:
                async with asyncio.timeout(seconds):
                    await self._ended.wait()
            except TimeoutError:
                continue

    async def _attach_once(self) -> None:
        """One tunnel, until it ends. Raises how it has failed."""
        hello = gateway_pb2.Hello(name=self._name, info=self._info, lease_token=self._lease, max_calls=self._max_calls)
        tunnel = ServingTunnel(self._servicers, hello)
        channel = connect(
            self._address, credentials=self._credentials, token=self._token, wait_for_ready=False, retry=False
        )
        serving = asyncio.create_task(self._serve(tunnel, channel))
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and tunnel.welcome is not None:
                tunnel.drain()
                await asyncio.wait({serving}, timeout=self._grace)
            if serving.done():
                serving.result()
        finally:
            for task in (serving, ending):
                task.cancel()
            await asyncio.gather(serving, ending, return_exceptions=True)
            await tunnel.close()
            await channel.close()

    async def _serve(self, tunnel: ServingTunnel, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        clock = asyncio.timeout(_WELCOME_SECONDS)
        silence = _WELCOME_SECONDS
        try:
            async with clock:
                async for frame in gateway_pb2_grpc.AdapterGatewayServiceStub(channel).Attach(tunnel.outgoing()):
                    tunnel.dispatch(frame)
                    if frame.HasField("welcome"):
                        silence = _SILENT_HEARTBEATS * (frame.welcome.heartbeat.ToNanoseconds() / 1e9) or silence
                        self._welcomed(frame.welcome)
                    clock.reschedule(loop.time() + silence)
        except TimeoutError as error:
            if isinstance(error, KitchenError) or not clock.expired():
                raise
            raise UnavailableError(
                f"the kitchen has sent nothing for {silence:g} s: its process hangs, or the network is gone",
                reason="KITCHEN_SILENT",
            ) from error

    def _welcomed(self, welcome: gateway_pb2.Welcome) -> None:
        self._lease = welcome.lease_token
        self._failures = 0
        logger.info("attached as %s at %s, attachment %s", self._name, self._address, welcome.attachment_id)
        self._on_attached()
