"""The newest records of runs, kept in memory: who asks how a run stands need not wait for the database."""

from __future__ import annotations

from collections import OrderedDict

from crucible_kitchen.store.records import RunRecord

_KEPT = 1024


class NewestRecords:
    """Records as the last commit left them. For one event loop.

    A record is here only when it is known to be the newest: because it was just committed, or because nothing was
    committed while it was read.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[str, RunRecord] = OrderedDict()
        self.changes = 0
        """Counts what became different."""

    def get(self, run_id: str) -> RunRecord | None:
        """The run's record; None: it must be read."""
        record = self._records.get(run_id)
        if record is not None:
            self._records.move_to_end(run_id)
        return record

    def committed(self, record: RunRecord) -> None:
        """Takes the record that a commit has left."""
        self.changes += 1
        self._keep(record)

    def was_read(self, record: RunRecord, changes: int) -> None:
        """Takes a record that was read, if nothing is different from what `changes` was before the reading."""
        if changes == self.changes:
            self._keep(record)

    def forget(self, run_id: str) -> None:
        """Lets the next one read it: what has become of it is not known here."""
        self.changes += 1
        self._records.pop(run_id, None)

    def _keep(self, record: RunRecord) -> None:
        self._records[record.run_id] = record
        self._records.move_to_end(record.run_id)
        if len(self._records) > _KEPT:
            self._records.popitem(last=False)
