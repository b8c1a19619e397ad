"""The server: composes lock, store, adapters, run manager and services, and takes them down in the opposite order."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import grpc

from crucible_kit.adapter import AdapterContext
from crucible_kit.tls import TlsFields, server_credentials
from crucible_kitchen import catalog
from crucible_kitchen.administration import AdapterAdministration, PortUsers
from crucible_kitchen.api.access import Tokens
from crucible_kitchen.api.endpoint import Endpoint
from crucible_kitchen.lock import DataFolderLock
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports.attach_kind import attach_kind
from crucible_kitchen.ports.attachments import Attachments
from crucible_kitchen.ports.host import PortHost
from crucible_kitchen.relay.callers import load_secret
from crucible_kitchen.relay.relay import Relay
from crucible_kitchen.runs.manager import RunManager
from crucible_kitchen.store.store import Store

logger = logging.getLogger(__name__)

STORE_FILE = "kitchen.db"
SECRET_FILE = "clients.key"
# For calls that are still there when the runs have drained, such as watches whose clients don't read.
_CALL_GRACE_SECONDS = 5.0
_TLS_FIELDS = TlsFields(ca="tls_client_ca", cert="tls_cert", key="tls_key")


class KitchenServer:
    """A server on an address and a data folder. Start it once, on the event loop that it runs on.

    Example:
        server = KitchenServer(ServerOptions(listen="127.0.0.1:0", data=folder))
        await server.start()
        ...  # server.address
        await server.stop()
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._running: AsyncExitStack | None = None
        self._stopping = False
        self._stopped = asyncio.Event()
        self.address = options.listen
        """Where it listens, once it has started: with the port that port 0 became."""

    async def start(self) -> None:
        """Takes the data folder and the address, picks up the runs that are left, and serves.

        Raises:
            FailedPreconditionError: DATA_FOLDER_IN_USE, DATA_FOLDER_UNUSABLE, SCHEMA_NEWER.
            InvalidArgumentError: CONFIG_INVALID, TOKENS_INVALID or MANIFEST_INVALID.
            UnavailableError: ADDRESS_IN_USE, STORE_WRITE_FAILED.
        """
        options = self._options
        credentials = _credentials(options)
        tokens = None if options.tokens is None else Tokens.read(options.tokens)
        async with AsyncExitStack() as stack:
            lock = DataFolderLock(options.data)
            lock.acquire()
            stack.callback(lock.release)
            store = await Store.open(options.data / STORE_FILE)
            stack.push_async_callback(store.close)
            attachments = Attachments()
            context = AdapterContext(data_dir=options.data, read_roots=options.allowed_roots)
            ports = PortHost.open(options.manifest, context, kinds={"attach": attach_kind(attachments)})
            stack.push_async_callback(ports.close)
            relay = Relay(ports, options, load_secret(options.data / SECRET_FILE))
            stack.push_async_callback(relay.close)
            runs = RunManager(store, ports, options)
            administration = AdapterAdministration(
                ports, PortUsers(store, runs, relay).of, knows_callers=options.knows_callers
            )
            stack.push_async_callback(administration.close)
            endpoint = Endpoint(
                store=store,
                runs=runs,
                adapters=administration,
                catalog=catalog,
                relay=relay,
                tokens=tokens,
                max_watchers_per_run=options.max_watchers_per_run,
                attachments=attachments,
                attach_heartbeat_seconds=options.attach_heartbeat_seconds,
            )
            # Bound before the runs start: a server whose address is taken must not touch them.
            self.address = endpoint.bind(options.listen, credentials)
            lock.announce(self.address)
            stack.push_async_callback(endpoint.stop, _CALL_GRACE_SECONDS)
            stack.push_async_callback(runs.drain, options.drain_seconds)
            stack.push_async_callback(endpoint.drain)
            await runs.start(recover=options.recover)
            relay.start()
            await endpoint.start()
            self._running = stack.pop_all()
        logger.info("serving on %s, data folder %s", self.address, options.data)

    async def stop(self) -> None:
        """Drains the runs and takes everything down; a second call waits for the first. Without effect before start."""
        if self._running is None:
            if self._stopping:
                await self._stopped.wait()
            return
        stack, self._running, self._stopping = self._running, None, True
        try:
            await stack.aclose()
        finally:
            self._stopped.set()
        logger.info("stopped serving on %s", self.address)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._stopped.wait()


def _credentials(options: ServerOptions) -> grpc.ServerCredentials | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    return server_credentials(
        cert=options.tls_cert, key=options.tls_key, client_ca=options.tls_client_ca, fields=_TLS_FIELDS
    )
