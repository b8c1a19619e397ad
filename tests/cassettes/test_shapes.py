"""What was recorded, by a channel or by a proxy, comes out of the replayer as it was: every shape of call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crucible_kit.cassettes.format import Cassette
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError
from tests.cassettes.conftest import Studio, all_of, sent
from tests.cassettes.scratch import Note, Talk


@pytest.fixture(params=["channel", "proxy"])
def how(request: pytest.FixtureRequest) -> str:
    return request.param


async def talk(stub: Any) -> list[Any]:
    """One call of each shape, and one of each that fails; everything that came back."""
    said: list[Any] = [
        await stub.Ask(Note(text="hello", ratio=0.1)),
        *await all_of(stub.Listen(Note(number=3))),
        await stub.Tell(sent(Note(text="a"), Note(text="b" * 400))),
        await stub.Tell(sent()),
        *await all_of(stub.Chat(sent(Note(text="x"), Note(text="y")))),
        *await all_of(stub.Chat(sent())),
    ]

    async def fails(call: Any) -> None:
        with pytest.raises(KitchenError) as caught:
            said.append(await call)
        said.append((type(caught.value), caught.value.message, caught.value.reason, caught.value.metadata))

    await fails(stub.Ask(Note(text="missing", session_id="nobody")))
    await fails(all_of(stub.Listen(Note(number=2, text="missing"))))
    await fails(all_of(stub.Chat(sent(Note(text="x"), Note(text="bad")))))
    return said


async def test_every_shape(studio: Studio, how: str) -> None:
    stub, _, finish = await studio.recording(Talk(), how)
    said = await talk(stub)
    cassette = await finish()
    assert cassette.complete
    assert [call.method.name for call in cassette.calls] == [
        *("Ask", "Listen", "Tell", "Tell", "Chat", "Chat", "Ask", "Listen", "Chat")
    ]
    replayed, replayer = await studio.replay(cassette)
    assert await talk(replayed) == said
    assert replayer.playback.tracks[0].played
    assert replayer.playback.mismatches == []


async def test_a_failure_of_a_stream_comes_after_what_it_sent(studio: Studio, how: str) -> None:
    stub, _, finish = await studio.recording(Talk(), how)

    async def listen(stub: Any) -> list[Any]:
        got = []
        with pytest.raises(NotFoundError):
            async for each in stub.Listen(Note(number=2, text="missing")):
                got.append(each)  # noqa: PERF401  # what came before the failure counts
        return got

    first = await listen(stub)
    replayed, _ = await studio.replay(await finish())
    assert len(first) == 2
    assert await listen(replayed) == first


async def test_an_early_end_of_a_stream_of_requests(studio: Studio) -> None:
    """Whoever records gets the adapter's own status, also while its client still writes."""
    stub, _, finish = await studio.recording(Talk())
    requests = [Note(text="bad"), *(Note(text="more", data=b"x" * 100_000) for _ in range(20))]
    with pytest.raises(KitchenError):
        await stub.Tell(sent(*requests))
    (call,) = (await finish()).calls
    assert (call.steps[-1].kind, call.steps[-1].reason) == ("status", "FIELD_INVALID")


async def test_chat_goes_back_and_forth(studio: Studio, how: str) -> None:
    """An answer comes before the next request is sent, in the replay too."""

    async def chat(stub: Any) -> list[str]:
        turn: asyncio.Queue[Any] = asyncio.Queue()

        async def requests() -> Any:
            while (note := await turn.get()) is not None:
                yield note

        got = []
        turn.put_nowait(Note(text="one"))
        async for answer in stub.Chat(requests()):
            got.append(answer.text)
            if len(got) < 3:
                turn.put_nowait(Note(text=f"after {answer.text}"))
            elif len(got) == 3:
                turn.put_nowait(None)
        return got

    stub, _, finish = await studio.recording(Talk(), how)
    said = await chat(stub)
    assert said == ["one?", "after one??", "after after one???", "bye"]
    cassette = await finish()
    kinds = [step.kind for step in cassette.calls[0].steps]
    assert kinds == [*("request", "response") * 3, "half_close", "response", "status"]
    replayed, _ = await studio.replay(cassette)
    assert await chat(replayed) == said


async def test_interleaved_calls(studio: Studio, how: str) -> None:
    stub, _, finish = await studio.recording(Talk(), how)

    async def together(stub: Any) -> list[Any]:
        return await asyncio.gather(
            *(stub.Ask(Note(text=f"t{index}")) for index in range(8)),
            *(stub.Tell(sent(*(Note(text=f"{index}.{part}") for part in range(5)))) for index in range(4)),
            *(all_of(stub.Listen(Note(number=index))) for index in range(1, 5)),
        )

    said = await together(stub)
    cassette = await finish()
    assert len(cassette.calls) == 16
    # Some had ended before others began: those wait for them, as they all come at once.
    replayed, _ = await studio.replay(cassette, hold_seconds=60.0)
    assert await together(replayed) == said


async def hang_up(stub: Any, service: Talk | None) -> None:
    """Begins a call that hangs, and leaves it."""
    stream = stub.Listen(Note(number=2, text="hang"))
    assert [(await anext(stream)).number, (await anext(stream)).number] == [0, 1]
    if service is not None:
        await service.hung.wait()
    await stream.aclose()


async def test_a_caller_that_hangs_up(studio: Studio, how: str) -> None:
    service = Talk()
    stub, _, finish = await studio.recording(service, how)
    await hang_up(stub, service)
    cassette: Cassette = await finish()
    assert [step.kind for step in cassette.calls[0].steps] == ["request", "response", "response", "cancel"]
    replayed, replayer = await studio.replay(cassette)
    await hang_up(replayed, None)
    assert replayer.playback.mismatches == []


async def test_a_caller_that_goes_while_it_writes(studio: Studio) -> None:
    """The adapter must not take what came for all that there was."""

    class Reading(Talk):
        def __init__(self) -> None:
            super().__init__()
            self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def Tell(self, notes: Any, context: Any) -> Any:
            try:
                async for _ in notes:
                    self.hung.set()
                # grpc.aio ends the stream for both; only one that was given up is cancelled too.
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.outcome.set_result("cancelled")
                raise
            return Note()

    service = Reading()
    stub, _, finish = await studio.recording(service)

    async def endless() -> Any:
        yield Note(text="a")
        await asyncio.Event().wait()

    telling = asyncio.ensure_future(stub.Tell(endless()))
    await service.hung.wait()
    telling.cancel()
    assert await service.outcome == "cancelled"
    (call,) = (await finish()).calls
    assert [step.kind for step in call.steps] == ["request", "cancel"]


async def test_metadata_and_deadlines_are_kept_where_they_count(studio: Studio, how: str) -> None:
    stub, _, finish = await studio.recording(Talk(), how)
    metadata = (("crucible-instance", "second"), ("x-trace", "7"))
    await stub.Ask(Note(text="hello"), timeout=5.0, metadata=metadata)
    cassette = await finish()
    assert cassette.calls[0].metadata == {"crucible-instance": "second"}
    assert cassette.calls[0].deadline_s == pytest.approx(5.0, abs=0.2)
    replayed, _ = await studio.replay(cassette)
    with pytest.raises(KitchenError, match=r"metadata\.crucible-instance: the recording has 'second', got ''"):
        await replayed.Ask(Note(text="hello"))
    assert (await replayed.Ask(Note(text="hello"), metadata=metadata)).text == "hello!"


async def test_an_error_of_the_callers_own_stream_is_its_own(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(), "channel")

    async def broken() -> Any:
        yield Note(text="a")
        raise InvalidArgumentError("mine", reason="MINE")

    with pytest.raises(InvalidArgumentError, match="mine"):
        await stub.Tell(broken())
    (call,) = (await finish()).calls
    assert call.steps[-1].kind in ("cancel", "status")
