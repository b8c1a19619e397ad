"""Recorded stubs: exchanges with an adapter in readable files, which replay as an adapter or check another one.

Record with `RecordingChannel` or `RecordingProxy` into a `CassetteWriter`; serve with `Replayer`; hold against a real
adapter with `check_cassette`; look over with `verify_cassette`.
"""

from __future__ import annotations

from crucible_kit.cassettes.format import Call, Cassette, Header, Step, read_cassette, write_cassette
from crucible_kit.cassettes.matching import Approximate, Difference, Rules
from crucible_kit.cassettes.playback import Playback
from crucible_kit.cassettes.recorder import RecordingChannel
from crucible_kit.cassettes.redaction import Redactor
from crucible_kit.cassettes.verify import Verdict, verify_cassette
from crucible_kit.cassettes.writer import CallWriter, CassetteWriter

# Not here: check, proxy and replayer, which bring gRPC's servers and threads along.
__all__ = [
    "Approximate",
    "Call",
    "CallWriter",
    "Cassette",
    "CassetteWriter",
    "Difference",
    "Header",
    "Playback",
    "RecordingChannel",
    "Redactor",
    "Rules",
    "Step",
    "Verdict",
    "read_cassette",
    "verify_cassette",
    "write_cassette",
]
