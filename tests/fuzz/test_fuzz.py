"""A seeded campaign of 5,000 calls, the same every time; 100,000 and other seeds: `python -m tests.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.targets import AdaptersTarget, EngineTarget, ServerTarget, Target

_SEED = 20
# Growth while caches fill; what a leak of a kilobyte a call would pass on this many calls stays visible in a campaign.
_MOST_GROWTH_MIB = 512


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("target", "calls"), [(ServerTarget, 3000), (AdaptersTarget, 1000), (EngineTarget, 1000)])
def test_no_call_crashes_hangs_or_confuses_it(target: type[Target], calls: int, tmp_path: Path) -> None:
    report = Campaign(target(tmp_path / "target"), say=lambda _: None).run(calls, _SEED)
    assert not report.problems, "\n".join(report.lines(by_method=True))
    assert report.calls >= calls
    assert max(report.rss) - report.rss[0] < _MOST_GROWTH_MIB
    # Valid calls get through and invalid ones are refused: a target that refuses everything would show nothing.
    ends = {code.split(" ")[0] for _, code in report.codes}
    assert {"OK", "INVALID_ARGUMENT"} <= ends
