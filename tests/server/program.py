"""A program for exec: mappings, and the same adapter for servers of a test's own: blobs and metrics in a folder.

python tests/server/program.py FOLDER [WORD ...]; the words, and files of these names in FOLDER, change what it does:

    dies        complains and ends with status 3 before it listens
    babbles     announces nothing
    elsewhere   listens on another address than it is told
    beyond      announces an address of another machine
    settled     takes no settings
    strict      has a config_schema: root, a text, and size, an integer from 1
    slow        answers STARTING to its first two probes
    sick        answers DEGRADED to probes
    ancient     speaks contract version 7 only, and does not look at the host's
    older       was built with another contract of its ports
    leaks       puts the secret it was given into errors, stderr and probes

It appends its process id to FOLDER/pids and each Configure to FOLDER/configured.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_kit.adapter import AdapterContext, AdapterInfoService, to_struct
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.errors import FailedPreconditionError, UnavailableError
from crucible_kit.ports import PORTS
from crucible_kit.serving import bind, new_server

READY, STARTING = adapter_pb2.ProbeResponse.STATE_READY, adapter_pb2.ProbeResponse.STATE_STARTING
DEGRADED = adapter_pb2.ProbeResponse.STATE_DEGRADED
OTHER_CONTRACT = "0" * 64
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"root": {"type": "string", "writeOnly": True}, "size": {"type": "integer", "minimum": 1}},
}


class Behaviour:
    """What it is asked to do."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder = folder
        self._words = words
        self.secret = ""
        self.hanging = asyncio.Event()

    def __contains__(self, word: str) -> bool:
        return word in self._words or (self.folder / word).exists()

    def note(self, name: str, line: str) -> None:
        """Appends a line to a file of the folder."""
        with (self.folder / name).open("a") as file:
            file.write(f"{line}\n")


class Info(AdapterInfoService):
    """Takes settings, unless it is not to."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(name="program", capabilities={"blob": (), "metrics": ()})
        self.behaviour = behaviour
        self.probes = 0
        self.metadata: list[dict[str, Any]] = []

    async def GetAdapterInfo(self, request: Any, context: Any) -> adapter_pb2.GetAdapterInfoResponse:
        self.metadata.append(dict(context.invocation_metadata()))
        info = await super().GetAdapterInfo(request, context)
        if "ancient" in self.behaviour:
            info.contract_versions[:] = [7]
        if "older" in self.behaviour:
            for port in info.ports:
                port.descriptor_sha256 = OTHER_CONTRACT
        if "strict" in self.behaviour:
            for port in info.ports:
                port.config_schema.CopyFrom(to_struct(SCHEMA))
        return info

    async def Configure(self, request: Any, context: Any) -> adapter_pb2.ConfigureResponse:
        if "settled" in self.behaviour:
            return await super().Configure(request, context)
        settings = MessageToDict(request.settings)
        self.behaviour.secret = request.secrets.get("api_key", "")
        told = {"service": request.service.rpartition(".")[2], "generation": request.generation}
        self.behaviour.note(
            "configured", json.dumps({**told, "settings": settings, "secrets": sorted(request.secrets)})
        )
        return adapter_pb2.ConfigureResponse(warnings=[f"api_key {self.behaviour.secret} is unusual"])

    async def Probe(self, request: Any, context: Any) -> adapter_pb2.ProbeResponse:
        self.probes += 1
        if "sick" in self.behaviour:
            return adapter_pb2.ProbeResponse(state=DEGRADED, detail=f"refused {self.behaviour.secret}")
        if "slow" in self.behaviour and self.probes < 3:
            return adapter_pb2.ProbeResponse(state=STARTING, detail="loading")
        detail = f"logged in with {self.behaviour.secret}" if "leaks" in self.behaviour else ""
        return adapter_pb2.ProbeResponse(state=READY, detail=detail)


class Blobs(LocalBlobStore):
    """Blobs that leak when they are to, and die, hang, forget or fail when a blob's key says so."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(LocalBlobOptions(), AdapterContext(data_dir=behaviour.folder))
        self.behaviour = behaviour

    def _leak(self) -> None:
        if "leaks" not in self.behaviour:
            return
        secret = self.behaviour.secret
        print(f"asking with key {secret}", file=sys.stderr, flush=True)
        raise FailedPreconditionError(
            f"the service refused the key {secret}", reason="KEY_REFUSED", metadata={"key": secret, secret: "key"}
        )

    async def StatBlob(self, request: Any, context: Any) -> Any:
        if request.key == "die":
            os._exit(9)
        if request.key == "hang":
            self.behaviour.hanging.set()
            await asyncio.Event().wait()
        if request.key == "forget":
            raise FailedPreconditionError("configure first", reason="NOT_CONFIGURED")
        if request.key == "away":
            raise UnavailableError("its disk is away", reason="DISK_AWAY")
        self._leak()
        return await super().StatBlob(request, context)

    async def WriteBlob(self, request_iterator: Any, context: Any) -> Any:
        self._leak()
        return await super().WriteBlob(request_iterator, context)

    async def ListBlobs(self, request: Any, context: Any) -> Any:
        self._leak()
        return await super().ListBlobs(request, context)


async def serve(behaviour: Behaviour, address: str, credentials: Any = None) -> tuple[Any, str, Info]:
    """Serves on an address; the server, the address it has, and its AdapterService."""
    server, info = new_server([BoundaryInterceptor()]), Info(behaviour)
    metrics = SqliteMetricsStore(SqliteMetricsStore.description.options(), AdapterContext(data_dir=behaviour.folder))
    PORTS["blob"].register(Blobs(behaviour), server)
    PORTS["metrics"].register(metrics, server)
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(info, server)
    bound = bind(server, address, credentials)
    await server.start()
    return server, bound, info


async def main() -> None:
    """Serves until stdin ends or SIGTERM comes."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    behaviour = Behaviour(folder, sys.argv[2:])
    behaviour.note("pids", str(os.getpid()))
    if "dies" in behaviour:
        print(f"no licence found, {os.environ.get('PROGRAM_KEY', 'no key')}", file=sys.stderr, flush=True)
        sys.exit(3)
    if "babbles" in behaviour:
        print("hello", flush=True)
        sys.stdin.read()
    listen = "127.0.0.1:0" if "elsewhere" in behaviour else os.environ["CRUCIBLE_ADAPTER_LISTEN"]
    server, address, _ = await serve(behaviour, listen)
    announced = "10.0.0.1:5" if "beyond" in behaviour else address
    print(json.dumps({"crucible": 1, "address": announced}), flush=True)
    print("serving blobs", flush=True)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
    await server.stop(0.2)
    behaviour.note("ended", str(os.getpid()))


if __name__ == "__main__":
    asyncio.run(main())
