"""Many calls in rounds, from one seed: play, judge, shrink what fails, and look after the server in between."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.calls import Call, Episode, episodes
from tests.fuzz.player import Outcome, Player, Problem, describe, judge
from tests.fuzz.sweep import sweep
from tests.fuzz.targets import Target
from tests.fuzz.world import footprint

_EPISODES_PER_ROUND = 300
_UNASKED = (
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
)
# A defect of the server that no status shows.
_LOG_ALARM = re.compile(
    r"Traceback|never retrieved|never awaited|Exception in callback|Task was destroyed|\bERROR\b|\bCRITICAL\b"
)
# What gRPC's core says, in no code of ours, of a caller that left while it was answered.
_CALLER_LEFT = re.compile(r"ERROR grpc\._cython\.cygrpc: ExecuteBatchError raised in core by servicer method")
_LOG_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d |[A-Z]+ )", re.MULTILINE)
_SETTLE_SECONDS = 10.0
_IN_FLIGHT_SECONDS = 20.0


class Found(AssertionError):
    """A problem; hypothesis shrinks the episode that raises it."""


@dataclass
class Report:
    """What a campaign has seen.

    Attributes:
        calls: how many were drawn and made.
        swept: how many were made before, one for each odd value of each field.
        codes: calls by method, status and reason.
        problems: by signature, the shortest case of each.
        rss: MiB of memory of the target's processes together, after each round.
    """

    target: str
    calls: int = 0
    swept: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: dict[str, Problem] = field(default_factory=dict)
    repeats: Counter[str] = field(default_factory=Counter)
    rss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def note(self, outcome: Outcome) -> None:
        """Counts a call."""
        self.calls += 1
        code = outcome.code.name if outcome.code else "not sent" if outcome.not_sent else "left"
        code = f"{code} {outcome.reason}".rstrip()
        self.codes[outcome.call.method.path, code] += 1
        self.slowest = sorted([*self.slowest, (outcome.seconds, describe(outcome))], key=lambda each: -each[0])[:5]

    def lines(self, *, by_method: bool = False) -> list[str]:
        """For people. `by_method`: how the calls of each method ended, and the slowest calls."""
        ends = Counter[str]()
        for (_, code), count in self.codes.items():
            ends[code.split(" ")[0]] += count
        lines = [f"{self.target}: {self.swept} + {self.calls} calls in {self.seconds:.0f} s"]
        if self.rss:
            first, most, last = self.rss[0], max(self.rss), self.rss[-1]
            lines.append(f"  memory {first:.0f} MiB after the first round, {most:.0f} at most, {last:.0f} at last")
        lines.append("  " + ", ".join(f"{code} {count}" for code, count in ends.most_common()))
        if by_method:
            for path in sorted({path for path, _ in self.codes}):
                mine = Counter({code: count for (each, code), count in self.codes.items() if each == path})
                lines.append(f"  {path[:80]}: " + ", ".join(f"{code} {count}" for code, count in mine.most_common()))
            lines += [f"  slow: {text}" for _, text in self.slowest]
        for signature, problem in self.problems.items():
            lines.append(f"PROBLEM ({self.repeats[signature] + 1} times) {problem.text}")
        return lines


class Campaign:
    """Plays against one target.

    Args:
        huge_percent: chance that a request is about as large as the limits are.
        say: told about each problem and each round.
    """

    def __init__(self, target: Target, *, huge_percent: int = 1, say: Callable[[str], None] = print) -> None:
        self.target = target
        self.report = Report(target.name)
        self._huge_percent = huge_percent
        self._say = say
        self._loop = asyncio.new_event_loop()
        self._player: Player | None = None
        self._log_position = 0
        self._processes: list[psutil.Process] = []
        self._expected: Any = None

    # Whole

    def run(self, calls: int, first_seed: int, *, swept: bool = False) -> Report:
        """Starts the target, makes that many calls, and stops it. `swept`: before, each field with each odd value."""
        run = self._loop.run_until_complete
        try:
            run(self._begin())
            began = time.monotonic()
            if swept:
                self._sweep()
            number = 0
            while self.report.calls < calls and self._alive():
                self._round(first_seed * 1_000_003 + number, calls)
                run(self._between())
                number += 1
                self._say(
                    f"  {self.target.name}: round {number}, {self.report.calls} calls, {time.monotonic() - began:.0f} s"
                )
            self.report.seconds = time.monotonic() - began
            run(self._end())
        finally:
            if self._player is not None:
                run(self._player.close())
            run(self.target.stop())
            self._loop.close()
        return self.report

    async def _begin(self) -> None:
        await self.target.start()
        self._expected = await self.target.use()
        await self.target.refresh()
        self._player = Player(self.target.address, self.target.world)
        self._processes = self.target.processes()

    async def _end(self) -> None:
        """The target must still serve a friendly client as before."""
        if not self._alive():
            return
        await self._in_flight()
        answer = await self.target.use()
        if answer != self._expected:
            self._add(Problem("changed answers", f"before: {self._expected}\nafter: {answer}"))
        self._check_log()

    def _sweep(self) -> None:
        run = self._loop.run_until_complete
        for number, call in enumerate(sweep(self.target.methods), 1):
            for problem in run(self._play(Episode((call,)))):
                self._add(problem)
            if number % 1000 == 0:
                run(self._between())
                self._say(f"  {self.target.name}: {number} calls of the sweep")
        run(self._between())
        self.report.swept, self.report.calls = self.report.calls, 0

    # Rounds

    def _round(self, number: int, calls: int) -> None:
        focus: str | None = None
        strategy = episodes(self.target.methods, order=number, huge_percent=self._huge_percent)

        @seed(number)
        @settings(
            max_examples=_EPISODES_PER_ROUND,
            database=None,
            deadline=None,
            suppress_health_check=_UNASKED,
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(strategy)
        def attempt(episode: Episode) -> None:
            nonlocal focus, smallest
            if focus is None and self.report.calls >= calls:
                return
            for problem in self._loop.run_until_complete(self._play(episode)):
                if problem.signature in self.report.problems:
                    self.report.repeats[problem.signature] += 1
                elif focus in (None, problem.signature):
                    focus, smallest = problem.signature, problem
                    raise Found(problem.text)

        smallest: Problem | None = None
        try:
            attempt()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or smallest is None:
                raise
            self._add(smallest)

    def _add(self, problem: Problem) -> None:
        if problem.signature in self.report.problems:
            self.report.repeats[problem.signature] += 1
            return
        self.report.problems[problem.signature] = problem
        self._say(f"PROBLEM {problem.text}")

    async def _play(self, episode: Episode) -> list[Problem]:
        """The problems of an episode."""
        if not self._alive():
            return []
        if not all(self.target.world.pools[pool] for pool in self.target.needed):
            await self.target.refresh()
        before = footprint(self.target.watched)
        outcomes = await self._calls(episode)
        problems = [problem for outcome in outcomes for problem in judge(outcome)]
        for process in self._processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                told = "\n".join(describe(outcome) for outcome in outcomes)
                problems.append(Problem(f"ended {process.pid}", f"a process of the target ended:\n{told}"))
        if not problems and len(outcomes) == len(episode.calls) and all(each.refused for each in outcomes):
            problems += await self._side_effects(episode, outcomes, before)
        return problems

    async def _calls(self, episode: Episode) -> list[Outcome]:
        if episode.at_once:
            ended = await asyncio.gather(*(self._call(call) for call in episode.calls))
        else:
            ended = [await self._call(call) for call in episode.calls]
        return [outcome for outcome in ended if outcome is not None]

    async def _call(self, call: Call) -> Outcome | None:
        assert self._player is not None
        outcome = await self._player.play(call)
        if outcome is not None:
            self._noted(outcome)
        return outcome

    def _noted(self, outcome: Outcome) -> None:
        self.report.note(outcome)
        world = self.target.world
        if outcome.code is not None and outcome.code.value[0] == 0:
            world.learn(outcome.call, outcome.requests, outcome.responses)
        elif not outcome.refused or outcome.reason.startswith("SEQUENCE"):
            world.unsure(outcome.call, outcome.requests)

    async def _side_effects(
        self, episode: Episode, outcomes: list[Outcome], before: dict[str, tuple[int, int]]
    ) -> list[Problem]:
        """Files that calls changed although all of them were refused. What ran before may still write: then the calls
        are made again, alone.
        """
        for _ in range(3):
            changed = _changes(before, footprint(self.target.watched))
            if not changed:
                return []
            settled = await self._settled()
            if settled is None:
                return []
            before = settled
            outcomes = await self._calls(episode)
            if len(outcomes) < len(episode.calls) or not all(each.refused for each in outcomes):
                return []
        told = "\n".join(describe(outcome) for outcome in outcomes)
        paths = outcomes[0].call.method.path
        return [Problem(f"{paths} side effect", f"refused, and yet {sorted(changed)[:5]} changed:\n{told}")]

    async def _settled(self) -> dict[str, tuple[int, int]] | None:
        """The files, once nothing has changed for a moment; None: something goes on."""
        await self.target.quiet()
        last = footprint(self.target.watched)
        end = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < end:
            await asyncio.sleep(0.2)
            now = footprint(self.target.watched)
            if now == last:
                return now
            last = now
        return None

    # Between rounds

    async def _between(self) -> None:
        assert self._player is not None
        for outcome in await self._player.settle():
            self._noted(outcome)
            for problem in judge(outcome):
                self._add(problem)
        self._check_log()
        if self._alive():
            await self.target.quiet()
            await self.target.refresh()
            self.report.rss.append(sum(each.memory_info().rss for each in self._processes) / 2**20)

    async def _in_flight(self) -> None:
        """Calls whose clients have gone must have ended in the server too."""
        end = time.monotonic() + _IN_FLIGHT_SECONDS
        while (count := await self.target.calls_in_flight()) > 0:
            if time.monotonic() > end:
                self._add(Problem("calls in flight", f"{count} calls go on in the server though no client makes any"))
                return
            await asyncio.sleep(0.2)

    def _check_log(self) -> None:
        with self.target.log.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._log_position)
            text = log.read()
            self._log_position = log.tell()
        for entry in _LOG_ENTRY.split(text):
            if _LOG_ALARM.search(entry) and not _CALLER_LEFT.search(entry.partition("\n")[0]):
                self._add(Problem(f"log {_defect(entry)}", f"in the log:\n{entry.strip()[:4000]}"))

    def _alive(self) -> bool:
        return all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in self._processes)


def _changes(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def _defect(entry: str) -> str:
    """What two log entries of one defect have in common: the last line of ours, and the kind of the exception."""
    frames = re.findall(r'File "[^"]*crucible[^"]*", line \d+, in \w+', entry)
    lines = entry.strip().splitlines()
    return f"{frames[-1] if frames else lines[0][24:120]} {lines[-1].partition(':')[0]}"
