"""The pure core of a tunnel: two ends that hand each other frames as tuples, in every order that may happen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_kit.errors import KitchenError
from crucible_kit.tunnel_mux import (
    MAX_MESSAGE_BYTES,
    MAX_PIECE_BYTES,
    PIECE_COST,
    Call,
    FrameError,
    Multiplexer,
    Part,
    Receiver,
    Sender,
)

# A frame of the tests: what it is, the call's number, and the part or the bytes of credit.
Frame = tuple[str, int, Any]
KIB = 1024


def form(call: Call[Frame], part: Part) -> Frame:
    return ("part", call.call_id, part)


class End:
    """One end; `send_window` is what the other has told it. One that `serves` takes in calls that it does not know."""

    def __init__(self, *, serves: bool, send_window: int, receive_window: int) -> None:
        self.serves = serves
        self.windows = {"send_window": send_window, "receive_window": receive_window}
        self.mux: Multiplexer[Frame] = Multiplexer(lambda call_id, amount: ("credit", call_id, amount), lambda: None)
        self.calls: dict[int, Call[Frame]] = {}

    def begin(self) -> Call[Frame]:
        call: Call[Frame] = Call(form, **self.windows)
        self.mux.begin(call)
        return call

    def dispatch(self, frame: Frame) -> None:
        kind, call_id, content = frame
        if kind == "credit":
            self.mux.add_credit(call_id, content)
            return
        call = self.calls.get(call_id) if self.serves else self.mux.find(call_id)
        if call is None:
            call = Call(form, call_id=call_id, **self.windows)
            self.mux.accept_call(call)
            self.calls[call_id] = call
            if content == Part(None):
                return
        self.mux.accept(call, content)


def pair(*, up: int, down: int) -> tuple[End, End]:
    """A caller, and the end that serves; the windows of the calls' inputs and of their answers."""
    return (
        End(serves=False, send_window=up, receive_window=down),
        End(serves=True, send_window=down, receive_window=up),
    )


def carry(source: End, target: End) -> list[Frame]:
    """Carries everything that may leave."""
    carried = []
    while (frame := source.mux.next_frame()) is not None:
        carried.append(frame)
        target.dispatch(frame)
    return carried


def message(call: int, index: int, size: int) -> bytes:
    return (bytes([call, index % 256]) * (size // 2 + 1))[:size]


LARGEST = 3 * MAX_PIECE_BYTES
SIZES = st.one_of(
    st.integers(0, 3),
    st.sampled_from([MAX_PIECE_BYTES - 1, MAX_PIECE_BYTES, MAX_PIECE_BYTES + 1, 2 * MAX_PIECE_BYTES]),
    st.integers(0, LARGEST),
)


@settings(deadline=None, max_examples=60)
@given(
    calls=st.lists(st.lists(SIZES, max_size=5), min_size=1, max_size=4),
    window=st.sampled_from([1, 100, 64 * KIB, 1024 * KIB]),
    data=st.data(),
)
def test_whatever_the_order_messages_arrive_whole_once_and_in_order(
    calls: list[list[int]], window: int, data: st.DataObject
) -> None:
    caller, server = pair(up=window, down=window)
    begun = [caller.begin() for _ in calls]
    waiting = [[message(number, index, size) for index, size in enumerate(sizes)] for number, sizes in enumerate(calls)]
    sent, finished = [list(each) for each in waiting], [False] * len(calls)
    received: list[list[bytes]] = [[] for _ in calls]

    def push(number: int) -> None:
        if waiting[number]:
            caller.mux.push(begun[number], waiting[number].pop(0))
        elif not finished[number]:
            finished[number] = True
            caller.mux.finish(begun[number])

    def take(number: int) -> None:
        call = server.calls.get(begun[number].call_id)
        if call is not None and (found := server.mux.take(call)) is not None:
            received[number].append(found)

    def there(_: int) -> None:
        if (frame := caller.mux.next_frame()) is not None:
            server.dispatch(frame)

    def back(_: int) -> None:
        if (frame := server.mux.next_frame()) is not None:
            caller.dispatch(frame)

    numbers = st.integers(0, len(calls) - 1)
    for step, number in data.draw(
        st.lists(st.tuples(st.sampled_from([push, take, there, back]), numbers), max_size=60)
    ):
        step(number)
        # What was sent and is not read: a window, a piece that has gone past it, and one message that is not complete.
        for call in server.calls.values():
            held = sum(size for _, size in call.receiver._messages) + call.receiver._held
            assert held <= window + MAX_PIECE_BYTES + PIECE_COST
    for number in range(len(calls)):
        while waiting[number] or not finished[number]:
            push(number)
    moved = True
    while moved:
        moved = bool(carry(caller, server))
        for number in range(len(calls)):
            before = len(received[number])
            take(number)
            moved |= len(received[number]) > before
        moved |= bool(carry(server, caller))
    assert received == sent
    assert all(call.receiver.ended for call in server.calls.values())
    assert [call.call_id for call in begun] == list(range(1, len(calls) + 1))


PAYLOADS = st.one_of(st.none(), st.binary(max_size=3), *(st.just(bytes(MAX_PIECE_BYTES + extra)) for extra in (0, 1)))


@settings(deadline=None, max_examples=200)
@given(
    parts=st.lists(
        st.builds(
            Part,
            st.one_of(
                st.none(), st.binary(max_size=3), st.just(bytes(MAX_PIECE_BYTES)), st.just(bytes(MAX_PIECE_BYTES + 1))
            ),
            st.booleans(),
            st.booleans(),
        ),
        max_size=12,
    ),
    reads=st.integers(0, 4),
    window=st.sampled_from([1, 300 * KIB]),
)
def test_parts_of_a_bad_end_are_refused_and_nothing_else_happens(parts: list[Part], reads: int, window: int) -> None:
    receiver = Receiver(window)
    for index, part in enumerate(parts):
        try:
            receiver.accept(part)
        except FrameError as error:
            assert error.reason == "FRAME_INVALID"
            return
        # What is accepted keeps to the rules, whoever has sent it.
        assert part.payload is not None or part.last
        assert len(part.payload or b"") <= MAX_PIECE_BYTES
        if index < reads:
            receiver.take()
            receiver.credit()


def test_a_unary_call_is_two_frames_and_needs_no_credit() -> None:
    caller, server = pair(up=KIB, down=KIB)
    call = caller.begin()
    caller.mux.push(call, b"request")
    caller.mux.finish(call)
    assert carry(caller, server) == [("part", 1, Part(b"request", last=True))]
    served = server.calls[1]
    assert server.mux.take(served) == b"request"
    server.mux.push(served, b"answer")
    server.mux.finish(served)
    assert carry(server, caller) == [("part", 1, Part(b"answer", last=True))]
    assert caller.mux.take(call) == b"answer"
    assert call.receiver.ended
    assert carry(caller, server) == []


def test_a_large_message_goes_in_pieces_and_lets_others_in_between() -> None:
    caller, server = pair(up=1024 * KIB, down=1024 * KIB)
    large, small = caller.begin(), caller.begin()
    caller.mux.push(large, bytes(3 * MAX_PIECE_BYTES))
    caller.mux.push(small, b"hi")
    caller.mux.finish(small)
    parts = [(call_id, len(part.payload), part.more, part.last) for _, call_id, part in carry(caller, server)]
    piece = MAX_PIECE_BYTES
    assert parts == [(1, piece, True, False), (2, 2, False, True), (1, piece, True, False), (1, piece, False, False)]


def test_what_steers_goes_before_messages() -> None:
    caller, _ = pair(up=KIB, down=KIB)
    caller.mux.push(caller.begin(), b"message")
    caller.mux.steer(("ping", 0, None))
    assert [caller.mux.next_frame() for _ in range(2)] == [("ping", 0, None), ("part", 1, Part(b"message"))]


def test_messages_that_nobody_reads_stop_at_the_window() -> None:
    caller, server = pair(up=10 * KIB, down=KIB)
    call = caller.begin()
    for _ in range(50):
        caller.mux.push(call, bytes(KIB))
    assert len(carry(caller, server)) == 10  # each takes a little more than a KiB
    served = server.calls[1]
    taken = 0
    while server.mux.take(served) is not None:
        taken += 1
        carry(server, caller)
        carry(caller, server)
    assert taken == 50


def test_empty_messages_take_room_too() -> None:
    sender = Sender(10 * PIECE_COST, announced=True)
    for _ in range(50):
        sender.push(b"")
    sent = 0
    while sender.ready:
        sender.next_part()
        sent += 1
    assert sent == 10


def test_a_message_past_the_window_is_let_in_only_when_none_waits_before_it() -> None:
    receiver = Receiver(2 * MAX_PIECE_BYTES)
    receiver.accept(Part(b"first"))
    receiver.accept(Part(bytes(MAX_PIECE_BYTES), more=True))
    assert receiver.credit() == 0
    assert receiver.take() == b"first"
    assert receiver.credit() == len(b"first") + MAX_PIECE_BYTES + 2 * PIECE_COST
    receiver.accept(Part(bytes(MAX_PIECE_BYTES), more=True))
    assert receiver.credit() == MAX_PIECE_BYTES + PIECE_COST


def test_the_largest_message_passes_and_a_byte_more_fails_its_call_alone() -> None:
    for size, fits in ((MAX_MESSAGE_BYTES, True), (MAX_MESSAGE_BYTES + 1, False)):
        caller, server = pair(up=1024 * KIB, down=KIB)
        call = caller.begin()
        caller.mux.push(call, bytes(size))

        def carry_all(caller: End = caller, server: End = server) -> None:
            while carry(caller, server) or carry(server, caller):
                pass

        if fits:
            carry_all()
            assert len(server.mux.take(server.calls[1]) or b"") == size
        else:
            with pytest.raises(KitchenError) as caught:
                carry_all()
            assert caught.value.reason == "MESSAGE_TOO_LARGE"
            assert not isinstance(caught.value, FrameError)


def test_an_end_of_its_own_comes_after_the_messages_before_it() -> None:
    _, server = pair(up=KIB, down=KIB)
    call: Call[Frame] = Call(form, call_id=7, **server.windows)
    server.mux.accept_call(call)
    server.mux.push(call, bytes(2 * KIB))
    server.mux.push(call, b"blocked")
    server.mux.finish(call, ("failed", 7, None))
    assert server.mux.next_frame() == ("part", 7, Part(bytes(2 * KIB)))
    assert server.mux.next_frame() is None
    server.mux.add_credit(7, 4 * KIB)
    assert [server.mux.next_frame() for _ in range(3)] == [("part", 7, Part(b"blocked")), ("failed", 7, None), None]


def test_a_call_that_is_forgotten_sends_nothing_and_what_comes_for_it_is_ignored() -> None:
    caller, _ = pair(up=KIB, down=KIB)
    before, gone = caller.begin(), caller.begin()
    caller.mux.push(gone, b"never")
    caller.mux.forget(gone)
    caller.mux.push(gone, b"neither")
    caller.mux.finish(gone)
    later = caller.begin()
    assert [caller.mux.next_frame() for _ in range(3)] == [("part", 1, Part(None)), ("part", 2, Part(None)), None]
    assert (before.call_id, gone.call_id, later.call_id) == (1, 0, 2)
    caller.mux.forget(before)
    assert caller.mux.find(1) is None
    caller.mux.add_credit(1, 5)
    assert caller.mux.next_frame() is None
    assert caller.mux.calls == [later]


@pytest.mark.parametrize("call_id", [0, 3, 2**63])
def test_frames_of_calls_that_never_were(call_id: int) -> None:
    caller, _ = pair(up=KIB, down=KIB)
    caller.begin()
    caller.mux.next_frame()
    with pytest.raises(FrameError, match="there is no call"):
        caller.mux.find(call_id)


def test_numbers_of_calls_only_rise() -> None:
    _, server = pair(up=KIB, down=KIB)
    server.dispatch(("part", 5, Part(b"", last=True)))
    server.calls.clear()
    for call_id in (5, 4, 0):
        with pytest.raises(FrameError, match="begins after call 5"):
            server.dispatch(("part", call_id, Part(b"")))
