"""The store against disks that fail, processes that die and files that others wrote."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible.kitchen.v1.event_pb2 import RUN_STATE_CREATED, RunEvent
from crucible_kit.errors import DataLossError, FailedPreconditionError, KitchenError, UnavailableError
from crucible_kitchen.store import Store
from crucible_kitchen.store.database import migrate, writer_engine
from crucible_kitchen.store.tables import metadata
from tests.server.fakes import START, Clock, checkpoint, checkpoint_event, log_event, record, state_event

CHILD = Path(__file__).with_name("store_child.py")


def test_a_killed_writer_leaves_a_consistent_log(tmp_path: Path) -> None:
    """SIGKILL in the middle of writes, three times on one file; read with sqlite3 alone."""
    path = tmp_path / "kitchen.db"
    for _ in range(3):
        child = subprocess.Popen([sys.executable, str(CHILD), str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(60)]
        child.kill()
        acknowledged += [int(line) for line in child.stdout.read().split("\n")[:-1]]
        child.wait()
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = database.execute("SELECT sequence, payload FROM events ORDER BY sequence").fetchall()
        last, newest = database.execute("SELECT last_sequence, checkpoint_sequence FROM runs").fetchone()
        stored = [sequence for (sequence,) in database.execute("SELECT sequence FROM checkpoints ORDER BY sequence")]
        database.close()
        assert [sequence for sequence, _ in rows] == list(range(1, last + 1))
        assert last >= max(acknowledged), "what was acknowledged is on disk"
        assert (last - 1) % 3 == 0, "three events of one append are there together or not at all"
        events = [RunEvent.FromString(payload) for _, payload in rows]
        saved = [each.sequence for each in events if each.WhichOneof("payload") == "checkpoint_saved"]
        assert stored == saved and newest == saved[-1]


@pytest.mark.parametrize(
    ("pragma", "cause", "words"),
    [
        ("PRAGMA max_page_count = 1", "SQLITE_FULL", "full: free space"),
        ("PRAGMA query_only = ON", "SQLITE_READONLY", "read-only"),
    ],
)
async def test_a_failing_disk_refuses_and_the_store_stays_usable(
    store: Store, pragma: str, cause: str, words: str
) -> None:
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    await store._writer.submit(lambda connection: connection.exec_driver_sql(pragma).close())
    big = log_event("x" * 100_000)
    outcomes = await asyncio.gather(
        *(store.append("run-1", [big], changes={"step": 9}) for _ in range(5)), return_exceptions=True
    )
    # Nothing that the others of the failed transaction did may count; later transactions may go well again.
    failed = [each for each in outcomes if isinstance(each, UnavailableError)]
    assert failed and all(each.reason == "STORE_WRITE_FAILED" for each in failed)
    assert failed[0].metadata["cause"].startswith(cause) and words in failed[0].message
    kept = len(outcomes) - len(failed)
    assert (await store.get_run("run-1")).last_sequence == 1 + kept
    appended = await store.append("run-1", [log_event("again")])
    assert appended.last_sequence == 2 + kept
    sequences = [each.sequence for each in await store.read_events("run-1", 0, limit=10)]
    assert sequences == list(range(1, 3 + kept))


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.db"
    await (await Store.open(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = path.read_bytes()
    with pytest.raises(FailedPreconditionError, match=r"9999.*0005") as caught:
        await Store.open(path)
    assert caught.value.reason == "SCHEMA_NEWER"
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be one " * 100, b"\0" * 8192])
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kitchen.db"
    path.write_bytes(content)
    with pytest.raises(DataLossError) as caught:
        await Store.open(path)
    assert caught.value.reason == "STORE_CORRUPT"
    assert path.read_bytes() == content


async def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be opened"):
        await Store.open(tmp_path / "missing" / "kitchen.db")


def test_the_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = writer_engine(tmp_path / "kitchen.db")
    migrate(engine)
    migrate(engine)  # a second time changes nothing
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def test_an_older_file_is_brought_up_to_date_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.db"
    store = await Store.open(path)
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    saved = checkpoint(4)
    before = await store.append("run-1", [checkpoint_event(saved)], changes={"step": 4}, checkpoint=saved)
    await store.close()
    # What later versions added, taken away again.
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE runs DROP COLUMN summary")
        database.execute("ALTER TABLE checkpoints DROP COLUMN delete_sequence")
        database.execute("ALTER TABLE checkpoints DROP COLUMN damage_sequence")
        database.execute("ALTER TABLE runs DROP COLUMN fed_sequence")
        database.execute("ALTER TABLE runs DROP COLUMN waiting_for_port")
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    database.close()
    store = await Store.open(path)
    assert await store.get_run("run-1") == before
    assert await store.checkpoints("run-1") == [before.latest_checkpoint]
    await store.close()


async def test_everything_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.db"
    store = await Store.open(path)
    await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    before = await store.append("run-1", [log_event()], changes={"step": 2})
    await store.close()
    assert os.listdir(tmp_path) == ["kitchen.db"], "no journal is left behind"
    with pytest.raises(KitchenError) as caught:
        await store.append("run-1", [log_event()])
    assert caught.value.reason == "STORE_CLOSED"
    store = await Store.open(path)
    assert await store.get_run("run-1") == before
    assert (await store.append("run-1", [log_event()])).last_sequence == 3
    await store.close()


# One append: the clock's jump in seconds, the step to change to (None: none), and how many events.
APPENDS = st.lists(st.tuples(st.integers(-50, 50), st.none() | st.integers(0, 9), st.integers(0, 4)), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(appends=APPENDS, page=st.integers(1, 7))
def test_the_log_is_the_list_of_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, appends: list[tuple[int, int | None, int]], page: int
) -> None:
    """Against a plain list as the model."""

    async def check() -> None:
        clock = Clock()
        store = await Store.open(tmp_path_factory.mktemp("store") / "kitchen.db", clock=clock)
        await store.create_run(record(), [])
        expected: list[tuple[int, str, int, float]] = []
        step, time = 0, START.timestamp()
        for index, (jump, changed, count) in enumerate(appends):
            clock.advance(jump)
            step = step if changed is None else changed
            changes = {} if changed is None else {"step": changed}
            await store.append("run-1", [log_event(f"{index}.{n}") for n in range(count)], changes=changes)
            time = max(time, clock.now.timestamp()) if count else time
            expected += [(len(expected) + n + 1, f"{index}.{n}", step, time) for n in range(count)]
        found, after = [], 0
        while events := await store.read_events("run-1", after, limit=page):
            found += [
                (each.sequence, each.log_recorded.message, each.step, each.time.ToNanoseconds() / 1e9)
                for each in events
            ]
            after = events[-1].sequence
        await store.close()
        assert found == expected

    asyncio.run(check())
