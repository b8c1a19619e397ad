"""The adapters that installed packages bring: entry points named PORT.ADAPTER. Finding one imports nothing of it."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

ENTRY_POINTS = "crucible_kitchen.adapters"


def find_adapter(port: str, name: str) -> EntryPoint | None:
    """The entry point of a port's adapter; None when no installed package has it."""
    return next(iter(entry_points(group=ENTRY_POINTS, name=f"{port}.{name}")), None)


def adapter_names(port: str) -> list[str]:
    """Names of the port's installed adapters, sorted; without the fakes, which only tests may name."""
    found = (each.name.partition(".") for each in entry_points(group=ENTRY_POINTS))
    return sorted({name for of_port, _, name in found if of_port == port and not name.startswith("fake_")})
