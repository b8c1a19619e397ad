"""AdapterGatewayService: adapters that dial out come in here."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from crucible.adapter.v1 import gateway_pb2, gateway_pb2_grpc
from crucible_kit.errors import KitchenError, NotFoundError, UnavailableError
from crucible_kit.outcomes import hidden, task_is_cancelled
from crucible_kit.settings import unknown_key
from crucible_kit.tunnel_mux import frame_invalid
from crucible_kitchen.api.access import (
    ATTACH,
    Role,
    Tokens,
    bearer_token,
    check_role,
    draining_error,
    token_invalid,
    token_missing,
)
from crucible_kitchen.ports.attachments import Attachment, Attachments, Tenant

logger = logging.getLogger(__name__)

_HELLO_SECONDS = 10.0
_MISSED_HEARTBEATS = 3


class AdapterGatewayService(gateway_pb2_grpc.AdapterGatewayServiceServicer):
    """See gateway.proto.

    Args:
        attachments: who may attach and who has.
        tokens: of the server; None: it asks for none.
        heartbeat_seconds: between two Pings; an adapter that is silent for three is detached.
        sleep: waits between them.
    """

    def __init__(
        self,
        attachments: Attachments,
        *,
        tokens: Tokens | None,
        heartbeat_seconds: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._attachments = attachments
        self._tokens = tokens
        self._heartbeat_seconds = heartbeat_seconds
        self._sleep = sleep

    async def Attach(
        self, request_iterator: AsyncIterator[gateway_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[gateway_pb2.AttachResponse]:
        hello = await _hello(request_iterator)
        attachment = self._authorised(hello.name, context)
        if self._attachments.draining is not None:
            raise self._attachments.draining
        tenant = attachment.admit(hello)
        tenant.welcome(self._heartbeat_seconds)
        logger.info(
            "attach:%s: %s, instance %s, attachment %s",
            *(attachment.name, tenant.info.name, tenant.info.instance_id, tenant.attachment_id),
        )
        tasks = [
            asyncio.create_task(_read(tenant, request_iterator)),
            asyncio.create_task(self._beat(tenant)),
        ]
        try:
            async for frame in tenant.tunnel.outgoing():
                yield frame
        finally:
            attachment.release(tenant)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            logger.info("attach:%s: attachment %s has ended", attachment.name, tenant.attachment_id)
        if tenant.error is not None:
            raise tenant.error

    async def _beat(self, tenant: Tenant) -> None:
        """Looks after the adapter's signs of life."""
        while tenant.tunnel.silence < _MISSED_HEARTBEATS:
            tenant.tunnel.ping()
            await self._sleep(self._heartbeat_seconds)
        problem = f"the adapter has sent nothing for {_MISSED_HEARTBEATS * self._heartbeat_seconds:g} s"
        tenant.end(problem, UnavailableError(f"{problem}: attach again", reason="HEARTBEAT_MISSED"))

    def _authorised(self, name: str, context: Any) -> Attachment:
        """The attachment, once the caller has shown that it may have it: with the token of the mapping when there is
        one, else with an admin token where the server has tokens.
        """
        attachment = self._attachments.find(name)
        metadata = dict(context.invocation_metadata() or ())
        if attachment is not None and attachment.token:
            if not metadata.get("authorization"):
                raise token_missing()
            if not hmac.compare_digest(bearer_token(metadata).encode(), attachment.token.encode()):
                raise token_invalid(f"the token of attach:{name} in the manifest")
        elif self._tokens is not None:
            check_role(self._tokens, metadata, ATTACH, Role.ADMIN)
        if attachment is None:
            raise NotFoundError(
                f"hello.name: no port is mapped to attach:{name[:64]}: {unknown_key(name, self._attachments.names)}",
                reason="ATTACHMENT_NOT_MAPPED",
                metadata={"attachment": name},
            )
        return attachment

    def drain(self) -> None:
        """Sends all adapters away, to come back to the next server."""
        self._attachments.drain(draining_error())


async def _hello(requests: AsyncIterator[gateway_pb2.AttachRequest]) -> gateway_pb2.Hello:
    try:
        async with asyncio.timeout(_HELLO_SECONDS):
            first = await anext(requests, None)
    except TimeoutError as error:
        if isinstance(error, KitchenError):
            raise
        raise UnavailableError(
            f"no Hello has come for {_HELLO_SECONDS:g} s: send it first", reason="HELLO_MISSING"
        ) from error
    if first is None or not first.HasField("hello"):
        raise frame_invalid("the first frame is not a Hello")
    return first.hello


async def _read(tenant: Tenant, requests: AsyncIterator[gateway_pb2.AttachRequest]) -> None:
    """Takes the adapter's frames until it ends the stream, or breaks its rules."""
    problem, error = "the adapter has ended its stream", None
    try:
        async for frame in requests:
            tenant.tunnel.dispatch(frame)
    except KitchenError as refused:
        problem, error = f"its adapter has sent what it must not ({refused})", refused
    except asyncio.CancelledError:
        if task_is_cancelled():
            raise
        problem = "the connection to the adapter is lost"
    except Exception as defect:
        error = hidden(ATTACH, defect)
        problem = error.message
    tenant.end(problem, error)
