"""Adapters that dial out: who holds which name of the manifest, and calls that wait for one that is away."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from crucible.adapter.v1 import adapter_pb2, gateway_pb2
from crucible_kit.adapter import CONTRACT_VERSIONS
from crucible_kit.channel import TunnelChannel
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, KitchenError, field_error
from crucible_kit.ports import PORTS
from crucible_kit.tunnel_caller import CallerTunnel, adapter_detached
from crucible_kit.tunnel_mux import WINDOW_BYTES

logger = logging.getLogger(__name__)

_MAX_LEASE = 2**63 - 1


class Tenant:
    """An adapter that has attached.

    Attributes:
        tunnel: the way to it.
        info: its handshake.
        lease: orders the adapters of a name: the highest holds it.
        error: what its stream is to end with; None: with OK.
    """

    def __init__(self, name: str, hello: gateway_pb2.Hello, lease: int) -> None:
        self.name = name
        self.attachment_id = uuid.uuid4().hex[:12]
        self.tunnel = CallerTunnel(name, hello)
        self.info = hello.info
        # One that names no instance must not pass for the one before it.
        self.info.instance_id = hello.info.instance_id or self.attachment_id
        self.lease = lease
        self.error: KitchenError | None = None

    def welcome(self, heartbeat_seconds: float) -> None:
        """Accepts it."""
        heartbeat = Duration()
        heartbeat.FromNanoseconds(int(heartbeat_seconds * 1e9))
        welcome = gateway_pb2.Welcome(
            attachment_id=self.attachment_id,
            heartbeat=heartbeat,
            lease_token=str(self.lease),
            contract_version=max(set(self.info.contract_versions) & set(CONTRACT_VERSIONS)),
            window_bytes=WINDOW_BYTES,
        )
        self.tunnel.multiplexer.steer(gateway_pb2.AttachResponse(welcome=welcome))

    def end(self, problem: str, error: KitchenError | None = None) -> None:
        """Ends its calls with ADAPTER_DETACHED, and its stream with `error`."""
        self.error = self.error or error
        self.tunnel.detach(problem)


class Attachment:
    """A name that the manifest maps ports to.

    Attributes:
        name: as in `attach:NAME`.
        token: what the adapter must present; empty: none of its own.
        ports: what an adapter must serve to have the name.
    """

    def __init__(self, name: str, token: str) -> None:
        self.name = name
        self.token = token
        self.ports: set[str] = set()
        self._tenant: Tenant | None = None
        self._newest_lease = 0
        self._arrived = asyncio.Event()

    @property
    def tenant(self) -> Tenant | None:
        """The adapter that takes calls; None: there is none."""
        return self._tenant if self._tenant is not None and self._tenant.tunnel.open else None

    async def wait(self, seconds: float) -> Tenant:
        """The adapter, which is waited for. Raises UNAVAILABLE ADAPTER_DETACHED."""
        try:
            async with asyncio.timeout(seconds):
                while (tenant := self.tenant) is None:
                    self._arrived.clear()
                    await self._arrived.wait()
                return tenant
        except TimeoutError:
            raise adapter_detached(
                self.name, f"no adapter has attached under this name for {seconds:g} s: start it, or look at its log"
            ) from None

    def admit(self, hello: gateway_pb2.Hello) -> Tenant:
        """Takes an adapter in, in the place of the one before it.

        Raises:
            FailedPreconditionError: CONTRACT_VERSION_UNSUPPORTED, PORT_NOT_SERVED, ATTACHMENT_SUPERSEDED.
            InvalidArgumentError: FIELD_INVALID, the lease token is not one that was given out.
        """
        _check_versions(self.name, hello.info)
        self._check_ports(hello.info)
        lease = self._lease(hello.lease_token)
        before, self._newest_lease = self._tenant, lease
        self._tenant = Tenant(self.name, hello, lease)
        if before is not None:
            superseded = before.lease < lease
            before.tunnel.drain("ATTACHMENT_SUPERSEDED" if superseded else "DRAINING")
            before.end("another adapter has attached under this name", _superseded(self.name) if superseded else None)
        self._arrived.set()
        return self._tenant

    def _check_ports(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        served = {each.service for each in info.ports}
        missing = sorted(port for port in self.ports if PORTS[port].service.full_name not in served)
        if missing:
            raise FailedPreconditionError(
                f"the adapter {info.name} does not serve {', '.join(missing)}, which the manifest maps to "
                f"attach:{self.name}: serve it too, or change the manifest",
                reason="PORT_NOT_SERVED",
                metadata={"ports": ", ".join(missing), "attachment": self.name, "adapter": info.name},
            )

    def _lease(self, token: str) -> int:
        if not token:
            # After all that were given out, by this server or one before it.
            return max(self._newest_lease + 1, time.time_ns())
        if not (token.isascii() and token.isdigit() and 0 < int(token) <= _MAX_LEASE):
            raise field_error("hello.lease_token", "is none that a server has given out: leave it empty")
        lease = int(token)
        if lease < self._newest_lease:
            raise _superseded(self.name)
        return lease

    def release(self, tenant: Tenant) -> None:
        """The adapter has gone."""
        tenant.end("the adapter has gone away: the same call may succeed when it is back")
        if self._tenant is tenant:
            self._tenant = None

    def drain(self, error: KitchenError) -> None:
        """Begins no more calls, and ends the adapter's stream with `error` when those in flight are done."""
        if self._tenant is not None:
            self._tenant.error = self._tenant.error or error
            self._tenant.tunnel.drain("DRAINING")


class Attachments:
    """The names of a manifest that adapters attach under, and who has them."""

    def __init__(self) -> None:
        self._by_name: dict[str, Attachment] = {}
        self._draining: KitchenError | None = None

    def add(
        self, port: str, name: str, *, token: str = "", wait_seconds: float = 30.0, where: str = "manifest"
    ) -> AttachedPort:
        """Maps a port to a name; more than one port may have it.

        Args:
            token: what the adapter must present; empty: none of its own.
            wait_seconds: how long a call waits for an adapter that is away.
            where: path of the mapping, for messages.

        Raises:
            InvalidArgumentError: MANIFEST_INVALID, two ports expect different tokens under one name.
        """
        attachment = self._by_name.setdefault(name, Attachment(name, token))
        if attachment.token != token:
            raise InvalidArgumentError(
                f"{where}: token_env: attach:{name} is mapped to other ports with another token: "
                "give all of them the same",
                reason="MANIFEST_INVALID",
                metadata={"port": port, "attachment": name},
            )
        attachment.ports.add(port)
        return AttachedPort(self, attachment, port, wait_seconds=wait_seconds)

    def remove(self, port: str, attachment: Attachment) -> None:
        """The port is no longer mapped to the name, which adapters lose with its last port."""
        attachment.ports.discard(port)
        if not attachment.ports and self._by_name.get(attachment.name) is attachment:
            del self._by_name[attachment.name]
            if attachment.tenant is not None:
                attachment.release(attachment.tenant)

    def find(self, name: str) -> Attachment | None:
        """The attachment of a name; None: no port is mapped to it."""
        return self._by_name.get(name)

    @property
    def names(self) -> Iterable[str]:
        """The names, sorted."""
        return sorted(self._by_name)

    @property
    def draining(self) -> KitchenError | None:
        """Why no adapter is taken in any more; None: they are."""
        return self._draining

    def drain(self, error: KitchenError) -> None:
        """Sends all adapters away with `error`, and takes in no others."""
        self._draining = error
        for attachment in self._by_name.values():
            attachment.drain(error)


class AttachedPort:
    """The adapter of a port, whichever it is at the moment.

    Attributes:
        channel: to it; calls wait for one that is away.
    """

    def __init__(self, attachments: Attachments, attachment: Attachment, port: str, *, wait_seconds: float) -> None:
        self._attachments = attachments
        self._attachment = attachment
        self._port = port
        self._wait_seconds = wait_seconds
        self.channel = TunnelChannel(self)

    @property
    def info(self) -> adapter_pb2.GetAdapterInfoResponse | None:
        """The handshake of the adapter that is attached; None: there is none."""
        tenant = self._attachment.tenant
        return None if tenant is None else tenant.info

    async def tunnel(self, seconds: float | None) -> CallerTunnel:
        """For the channel: a tunnel to the adapter, which is waited for. Raises UNAVAILABLE ADAPTER_DETACHED."""
        limit = self._wait_seconds if seconds is None else min(seconds, self._wait_seconds)
        return (await self._attachment.wait(limit)).tunnel

    async def close(self) -> None:
        """The port is mapped to something else."""
        self._attachments.remove(self._port, self._attachment)


def _check_versions(name: str, info: adapter_pb2.GetAdapterInfoResponse) -> None:
    if not set(info.contract_versions) & set(CONTRACT_VERSIONS):
        raise FailedPreconditionError(
            f"no common contract version: the server speaks {list(CONTRACT_VERSIONS)}, {info.name}, which attaches as "
            f"{name}, speaks {sorted(info.contract_versions)}: update the older side",
            reason="CONTRACT_VERSION_UNSUPPORTED",
        )


def _superseded(name: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"another adapter has attached as {name} since: end this one, or give it another name",
        reason="ATTACHMENT_SUPERSEDED",
        metadata={"attachment": name},
    )
