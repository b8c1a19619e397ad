"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much a server has to bear.

    Attributes:
        events: in the log of the run before it trains.
        queued: runs that wait behind it.
        clients: of which `watchers` watch, one of these without reading.
        length: tokens of a row: steps short enough that their events come often.
        windows: turns with the clients, and as many without.
        seconds: of a window.
        settle: seconds at a window's begin whose steps don't count.
        replays: watchers that read the whole log at once.
    """

    events: int = 100_000
    queued: int = 1000
    clients: int = 200
    watchers: int = 64
    length: int = 64
    windows: int = 4
    seconds: int = 10
    settle: float = 2.0
    replays: int = 16


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How often, and how large.

    Attributes:
        rounds: turns that each system gets.
        threads: torch's, in every system.
        batch, length, vocab, hidden, layers: shape of a training step and of its model.
        lora_rank: rank of the adapters.
        warmup: steps of a turn that don't count.
        steps: steps of a turn that count.
        session_counts: how many LoRA sessions share a base.
        session_steps: steps of a turn, of all sessions together, at least one each.
        calls: unary calls of a turn.
        stream_mib: length of a stream of bytes.
        events, watchers: length of the log that is watched, and by how many.
        starts, restarts: processes started.
        prompts, prompt_tokens, new_tokens: what is sampled.
        load: what the server has to bear.
    """

    rounds: int = 5
    threads: int = 2
    batch: int = 8
    length: int = 256
    vocab: int = 4096
    hidden: int = 256
    layers: int = 4
    lora_rank: int = 16
    warmup: int = 2
    steps: int = 6
    session_counts: tuple[int, ...] = (1, 2, 4, 8, 64)
    session_rounds: int = 3
    session_steps: int = 8
    calls: int = 400
    stream_mib: int = 64
    events: int = 4000
    watchers: int = 16
    starts: int = 5
    restarts: int = 4
    prompts: int = 16
    prompt_tokens: int = 32
    new_tokens: int = 64
    load: Load = field(default_factory=Load)


FULL = Scale()
QUICK = Scale(
    rounds=2,
    batch=2,
    length=32,
    steps=3,
    session_counts=(1, 3),
    session_rounds=1,
    session_steps=2,
    calls=32,
    stream_mib=2,
    events=200,
    watchers=4,
    starts=2,
    restarts=1,
    prompts=2,
    new_tokens=8,
    load=Load(events=2000, queued=20, clients=12, watchers=6, length=32, windows=2, seconds=4, settle=1.0, replays=3),
)
