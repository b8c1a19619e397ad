"""The Python bridge: what the manifests name, called in a process of each session's own."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

from google.protobuf.duration_pb2 import Duration

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible.port.python_bridge.v1 import python_bridge_pb2_grpc
from crucible_adapters.python_bridge.manifest import Function, Library, bind, load_manifests
from crucible_adapters.python_bridge.options import MIN_MEMORY_BYTES, WorkersOptions
from crucible_adapters.python_bridge.processes import Template
from crucible_adapters.python_bridge.running import Call, Runner
from crucible_adapters.python_bridge.sessions import Session, Sessions
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import FailedPreconditionError, KitchenError, NotFoundError, field_error

_LONGEST_SWEEP_SECONDS = 30.0


class PythonWorkers(python_bridge_pb2_grpc.PythonBridgeServiceServicer):
    """Calls functions of libraries in worker processes with limits of time, processor and memory. The libraries are
    loaded once, in the process that the workers are forked from; the server itself loads none of them.

    Args:
        now: seconds by a clock that only goes forward, for the sessions' leases.
    """

    description = AdapterDescription(
        name="python-workers",
        port="python_bridge",
        capabilities=("python_bridge.stream",),
        options=WorkersOptions,
    )

    def __init__(
        self, options: WorkersOptions, context: AdapterContext, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises MANIFEST_INVALID, PACKAGE_MISSING."""
        self._options = options
        self._libraries = load_manifests(options.libraries, options.manifests)
        self._versions = {name: each.installed_version() for name, each in self._libraries.items()}
        self._template = Template(
            list(self._libraries.values()),
            options.python_path,
            options.max_result_bytes,
            start_seconds=options.start_seconds,
        )
        self._sessions = Sessions(
            lease_seconds=options.lease_seconds,
            max_sessions=options.max_sessions,
            max_objects=options.max_objects,
            now=now,
        )
        workers = options.workers or os.cpu_count() or 1
        classes = [(name, each) for name, library in self._libraries.items() for each in library.classes]
        self._runner = Runner(options, self._sessions, self._template, workers=workers, classes=classes)
        self._sweep: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # made outside of a server; it starts with the first session
        # Paid ahead: the first session finds the libraries loaded.
        self._loading = loop.create_task(self._template.start())
        self._loading.add_done_callback(_retrieve)

    async def close(self) -> None:
        """Ends all processes."""
        self._template.stop()
        for task in (self._sweep, self._loading):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._runner.free(self._sessions.close_all())
        await self._runner.close()
        await self._template.close()

    async def ListLibraries(self, request: pb.ListLibrariesRequest, context: Any) -> pb.ListLibrariesResponse:
        size = paging.page_size(request.page_size)
        after = paging.decode(request.page_token, "ListLibraries")
        names = [name for name in self._libraries if not after or name > after[0]]
        listed = [_describe(self._libraries[name], self._versions[name]) for name in names[:size]]
        token = paging.encode([names[size - 1]], "ListLibraries") if len(names) > size else ""
        return pb.ListLibrariesResponse(libraries=listed, next_page_token=token)

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        self._expire()
        known = self._sessions.opened_by(request)
        if known is not None:
            return self._opened(known)
        timeout, memory = self._limits(request)
        for name in request.libraries:
            self._listed(name)
        await self._template.start()
        for name in request.libraries:
            self._library(name)
        # Again: another call with this id may have come in between.
        session = self._sessions.opened_by(request) or self._sessions.open(
            request, call_timeout=timeout, memory_limit_bytes=memory
        )
        if self._sweep is None:
            self._sweep = asyncio.ensure_future(self._sweep_sessions())
        return self._opened(session)

    def _limits(self, request: pb.OpenSessionRequest) -> tuple[float, int]:
        most_seconds, most_bytes = self._options.call_timeout_seconds, self._options.memory_limit_bytes
        timeout = most_seconds
        if request.HasField("call_timeout"):
            timeout = request.call_timeout.ToNanoseconds() / 1e9
        if not 0 < timeout <= most_seconds:
            raise field_error("call_timeout", f"is {timeout:g} s; it must be above 0 and at most {most_seconds:g} s")
        memory = request.memory_limit_bytes if request.HasField("memory_limit_bytes") else most_bytes
        if memory > most_bytes:
            raise field_error("memory_limit_bytes", f"is {memory}, at most {most_bytes} are allowed")
        if memory < MIN_MEMORY_BYTES:
            raise field_error("memory_limit_bytes", f"is {memory}, a worker needs at least {MIN_MEMORY_BYTES}")
        return timeout, memory

    def _opened(self, session: Session) -> pb.OpenSessionResponse:
        return pb.OpenSessionResponse(
            session_id=session.session_id,
            lease=_duration(self._options.lease_seconds),
            call_timeout=_duration(session.call_timeout),
            memory_limit_bytes=session.memory_limit_bytes,
        )

    async def CallFunction(self, request: pb.CallFunctionRequest, context: Any) -> pb.CallFunctionResponse:
        session = self._session(request.session_id)
        entry = self._function(session, request)
        bind(entry, len(request.args), request.kwargs)
        header = {"do": "function", "library": request.library, "function": request.function}
        return pb.CallFunctionResponse(result=await self._run(session, header, request, entry))

    async def StreamFunction(
        self, request: pb.StreamFunctionRequest, context: Any
    ) -> AsyncIterator[pb.StreamFunctionResponse]:
        session = self._session(request.session_id)
        entry = self._function(session, request)
        if not entry.streams:
            raise FailedPreconditionError(
                f"function: {request.library}.{request.function} is not streamed: use CallFunction",
                reason="FUNCTION_NOT_STREAMED",
                metadata={"library": request.library, "function": request.function},
            )
        bind(entry, len(request.args), request.kwargs)
        stream = uuid.uuid4().hex
        header = {"library": request.library, "function": request.function}
        start = Call({**header, "do": "stream"}, request.SerializeToString(), stream=stream)
        start.check = self._check_of(session, request)
        await self._runner.run(session, start)
        session.streams.add(stream)
        check = partial(self._check_stream, session, stream)
        try:
            while True:
                self._session(request.session_id)  # it may have been closed in between
                following = Call({**header, "do": "next"}, stream=stream)
                following.keep = request.result_mode == pb.RESULT_MODE_REFERENCE
                following.timeout_seconds, following.max_result_bytes = entry.timeout_seconds, entry.max_result_bytes
                following.check = check
                item = await self._runner.run(session, following)
                if item is None:
                    session.streams.discard(stream)
                    return
                yield pb.StreamFunctionResponse(item=item)
        except KitchenError:
            session.streams.discard(stream)
            raise
        finally:
            if stream in session.streams:
                self._runner.spawn(self._stop(session, Call({**header, "do": "stop"}, stream=stream, frees=True)))

    async def _stop(self, session: Session, stop: Call) -> None:
        """Ends a stream that its caller has left."""
        stop.check = partial(self._check_stream, session, stop.stream)
        try:
            await self._runner.run(session, stop)
        except KitchenError:
            pass  # it has ended another way
        finally:
            session.streams.discard(stop.stream)

    async def CallMethod(self, request: pb.CallMethodRequest, context: Any) -> pb.CallMethodResponse:
        session = self._session(request.session_id)
        kinds = self._sessions.resolve(session, request.ref)
        for library, name in kinds:
            entry = self._libraries[library].classes[name].methods.get(request.method)
            if entry is not None:
                bind(entry, len(request.args), request.kwargs)
                header = {"do": "method", "library": library, "class": name, "method": request.method}
                header["ref_id"] = request.ref.ref_id
                return pb.CallMethodResponse(result=await self._run(session, header, request, entry))
        raise _not_in_manifest("method", request.method, f"{_classes(kinds)} has none of that name")

    async def GetAttribute(self, request: pb.GetAttributeRequest, context: Any) -> pb.GetAttributeResponse:
        session = self._session(request.session_id)
        kinds = self._sessions.resolve(session, request.ref)
        for library, name in kinds:
            if request.attribute in self._libraries[library].classes[name].attributes:
                header = {"do": "attribute", "library": library, "class": name, "attribute": request.attribute}
                header["ref_id"] = request.ref.ref_id
                return pb.GetAttributeResponse(value=await self._run(session, header, request, None))
        raise _not_in_manifest("attribute", request.attribute, f"{_classes(kinds)} has none of that name")

    async def ReleaseRef(self, request: pb.ReleaseRefRequest, context: Any) -> pb.ReleaseRefResponse:
        session = self._session(request.session_id)
        self._sessions.check_owner(session, request.ref)
        if self._sessions.release(session, request.ref.ref_id):
            await self._runner.run(session, Call({"do": "release", "ref_id": request.ref.ref_id}, frees=True))
        return pb.ReleaseRefResponse()

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        session = self._sessions.close(request.session_id)
        if session is not None:
            self._runner.free([session])
        return pb.CloseSessionResponse()

    async def _run(self, session: Session, header: dict[str, Any], request: Any, entry: Any) -> pb.Value | None:
        call = Call(header, request.SerializeToString(), keep=request.result_mode == pb.RESULT_MODE_REFERENCE)
        if entry is not None:
            call.timeout_seconds, call.max_result_bytes = entry.timeout_seconds, entry.max_result_bytes
        call.check = self._check_of(session, request)
        return await self._runner.run(session, call)

    def _check_of(self, session: Session, request: Any) -> Callable[[], None]:
        """Looks whether the references of a request are there."""

        def check() -> None:
            if hasattr(request, "ref"):
                self._sessions.resolve(session, request.ref)
            if hasattr(request, "args"):
                for each in [*request.args, *request.kwargs.values()]:
                    self._sessions.resolve_inside(session, each)

        return check

    def _check_stream(self, session: Session, stream: str) -> None:
        if stream not in session.streams:
            raise NotFoundError("the stream was lost with its process", reason="REF_NOT_FOUND")

    def _session(self, session_id: str) -> Session:
        self._expire()
        return self._sessions.use(session_id)

    def _expire(self) -> None:
        self._runner.free(self._sessions.expire())

    async def _sweep_sessions(self) -> None:
        """Frees the processes of sessions that nobody names any more."""
        while True:
            await asyncio.sleep(min(self._options.lease_seconds, _LONGEST_SWEEP_SECONDS))
            self._expire()

    def _function(self, session: Session, request: Any) -> Function:
        name = request.library
        if session.libraries and name not in session.libraries:
            allowed = ", ".join(sorted(session.libraries))
            raise _not_in_manifest("library", name, f"this session was opened for {allowed}")
        functions = self._library(name).functions
        if request.function not in functions:
            raise _not_in_manifest("function", request.function, f"{name} has {', '.join(functions) or 'none'}")
        return functions[request.function]

    def _listed(self, name: str) -> Library:
        if name not in self._libraries:
            raise _not_in_manifest("library", name, f"there are {', '.join(self._libraries) or 'none'}")
        return self._libraries[name]

    def _library(self, name: str) -> Library:
        library = self._listed(name)
        if name in self._template.problems:
            fix = f": {library.install}" if library.install else ""
            raise FailedPreconditionError(
                f"library: {name} can't be used: {self._template.problems[name]}{fix}",
                reason="LIBRARY_NOT_INSTALLED",
                metadata={"library": name},
            )
        return library


def _retrieve(task: asyncio.Task[None]) -> None:
    """Whoever opens the first session is told."""
    if not task.cancelled():
        task.exception()


def _classes(kinds: Iterable[tuple[str, str]]) -> str:
    return " or ".join(f"{library}.{name}" for library, name in kinds) or "a class that is not in the manifest"


def _not_in_manifest(kind: str, name: str, known: str) -> NotFoundError:
    return NotFoundError(
        f"{kind}: {name!r} is not in the manifest; {known}",
        reason=f"{kind.upper()}_NOT_IN_MANIFEST",
        metadata={"field": kind, kind: name},
    )


def _describe(library: Library, version: str) -> pb.Library:
    functions = [
        pb.Function(name=name, signature=each.signature, description=each.description, streams=each.streams)
        for name, each in sorted(library.functions.items())
    ]
    classes = [
        pb.PythonClass(name=name, methods=sorted(each.methods), attributes=sorted(each.attributes))
        for name, each in sorted(library.classes.items())
    ]
    return pb.Library(
        name=library.name,
        version=version,
        description=library.description,
        functions=functions,
        classes=classes,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
