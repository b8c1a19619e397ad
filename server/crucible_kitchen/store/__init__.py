"""The run store: runs, their logs and checkpoints in one SQLite file."""

from crucible_kitchen.store.records import CheckpointRecord, RequestKey, RunRecord
from crucible_kitchen.store.store import EventPage, Store

__all__ = ["CheckpointRecord", "EventPage", "RequestKey", "RunRecord", "Store"]
