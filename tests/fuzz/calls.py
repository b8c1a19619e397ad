"""Calls: a method, its frames, and how the client behaves meanwhile; and episodes of a few calls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from hypothesis import strategies as st

from tests.fuzz.messages import Draw, Maker, stream
from tests.fuzz.wire import Frame

# What a client may do beside sending and reading to the end.
PLAIN, CANCEL, SHORT_DEADLINE, NO_HALF_CLOSE, READ_ONE = (
    "plain",
    "cancel",
    "short deadline",
    "no half-close",
    "read one",
)


@dataclass(frozen=True)
class Method:
    """A method of a target.

    Attributes:
        path: /package.Service/Method.
        request: type of its requests; None: nobody serves the path.
        client_streaming: takes any number of requests.
        server_streaming: gives any number of responses.
        weight: how often it is called beside others.
    """

    path: str
    request: Descriptor | None
    response: Descriptor | None = None
    client_streaming: bool = False
    server_streaming: bool = False
    weight: int = 4

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def ours(self) -> bool:
        """Whether the project's rules for errors hold; health and others have rules of their own."""
        return not self.path.startswith("/grpc.")


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        behaviour: PLAIN, CANCEL, ... .
        after_ms: when a cancel or a short deadline strikes.
    """

    method: Method
    frames: tuple[Frame, ...]
    behaviour: str = PLAIN
    after_ms: int = 0
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    gzip: bool = False


@dataclass(frozen=True)
class Episode:
    """A few calls, one after the other or all at once."""

    calls: tuple[Call, ...]
    at_once: bool = False


def methods_of(services: Sequence[ServiceDescriptor], weights: dict[str, int]) -> tuple[Method, ...]:
    """The methods of services. `weights` by method name; for others 4, or 1 for those of grpc itself."""
    return tuple(_method(service, each, weights) for service in services for each in service.methods)


def _method(service: ServiceDescriptor, method: MethodDescriptor, weights: dict[str, int]) -> Method:
    return Method(
        path=f"/{service.full_name}/{method.name}",
        request=method.input_type,
        response=method.output_type,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        weight=weights.get(method.name, 1 if service.full_name.startswith("grpc.") else 4),
    )


NOBODYS = tuple(
    Method(path, None, weight=1)
    for path in (
        "/crucible.kitchen.v1.RunService/DeleteEverything",
        "/crucible.kitchen.v2.RunService/GetRun",
        "/crucible.kitchen.v1.RunService/",
        "/x",
        "/",
        "/grpc.health.v1.Health/Nope",
        "/" + "a" * 2000,
        "/crucible.kitchen.v1.RunService/GetRun/GetRun",
        "/crucible.port.training.v1.TrainingService/getTrainingSession",
    )
)

_METADATA: tuple[tuple[tuple[str, str | bytes], ...], ...] = (
    (("authorization", "Bearer nobody"),),
    (("authorization", "Basic eDp5"), ("authorization", "Bearer "), ("authorization", "")),
    (("crucible-instance", "default"), ("crucible-reason", "INTERNAL_BUG")),
    (("x-big", "v" * 7000),),
    (("x-big-bin", bytes(range(256)) * 20),),
    (("grpc-status-details-bin", b"\xff\xff"), ("grpc-previous-rpc-attempts", "99999999999999999999")),
    tuple((f"x-{number}", "1") for number in range(100)),
    (("grpc-accept-encoding", "identity,nonsense"), ("te", "chunked"), ("content-type", "application/json")),
    (("x-empty", ""), ("user-agent", "\x7e" * 200)),
)


def episodes(methods: Sequence[Method], *, order: int, huge_percent: int) -> st.SearchStrategy[Episode]:
    """Episodes against a target's methods.

    Args:
        order: seed of the order in which the methods lie: some choices are more likely, and all should get their turn.
    """
    wheel = [method for method in (*methods, *NOBODYS) for _ in range(method.weight)]
    random.Random(order).shuffle(wheel)

    @st.composite
    def episode(draw: Draw) -> Episode:
        maker = Maker(draw, 0)
        count = maker.pick((1, 1, 1, 2, 3))
        calls = tuple(_call(draw, wheel, huge_percent) for _ in range(count))
        return Episode(calls, at_once=count > 1 and maker.chance(50))

    return episode()


def _call(draw: Draw, wheel: Sequence[Method], huge_percent: int) -> Call:
    maker = Maker(draw, 0)
    method = maker.pick(wheel)
    # As the contract wants it; with a field in twenty off; with a field in four off.
    mood = maker.pick((0, 0, 5, 25, 25))
    maker.odd = mood
    frames = _frames(maker, method, huge_percent)
    behaviour, after = PLAIN, 0
    if maker.chance(8):
        behaviour = maker.pick((CANCEL, SHORT_DEADLINE, NO_HALF_CLOSE, READ_ONE))
        after = maker.pick((0, 1, 5, 30))
    metadata = maker.pick(_METADATA) if maker.chance(5) else ()
    return Call(method, tuple(frames), behaviour, after, metadata, gzip=maker.chance(3))


def _frames(maker: Maker, method: Method, huge_percent: int) -> list[Frame]:
    if method.request is None:
        return [maker.garbage()]
    if maker.chance(huge_percent):
        return [maker.huge(method.request)]
    if method.client_streaming:
        return stream(maker, method.request)
    if maker.chance(4):
        return [maker.garbage()]
    if maker.chance(2):
        # The wrong number of requests for a method that takes one.
        return [maker.message(method.request) for _ in range(maker.pick((0, 2)))]
    message = maker.message(method.request)
    return [maker.damaged(message) if maker.odd and maker.chance(40) else message]
