"""Two stores told the same at random about deployments agree, and hold what the port promises, after each step."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asyncflow._deployment_rows import CANCEL_NEW, ENQUEUE, NOBODY, DeploymentRow
from asyncflow._rows import FIRST_FINAL, FLOW, STAND_IN, STATE_CODES, TASK, RunRow, history_of
from asyncflow.abc import RunQuery, RunStore
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import SCHEDULED, START, deployment_row, go_on, rule_row, waiting_row

ALL = RunQuery(kinds=frozenset({FLOW, TASK, STAND_IN}), limit=1000)
_FORGET = "DELETE FROM process WHERE id <> ?"
NAMES = ("a", "b", "c")
PAUSED = STATE_CODES[StateType.PAUSED]

names = st.sampled_from(NAMES)
picks = st.integers(0, 10**6)
keys = st.none() | st.sampled_from(["daily@1", "daily@2", "k", "half \ud83d"])
nexts = st.sampled_from(
    [
        (StateType.RUNNING, None),
        (StateType.RUNNING, None),
        (StateType.COMPLETED, None),
        (StateType.SCHEDULED, "AwaitingRetry"),
        (StateType.PAUSED, None),
        (StateType.PAUSED, "Suspended"),
        (StateType.PAUSED, "Interrupted"),
        (StateType.CANCELLING, None),
    ]
)


class Deployments(RuleBasedStateMachine):
    """Each rule does one thing to both; each answer must be equal."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="deployments"))
        self.opened: list[SQLiteStore] = []
        self.sqlite = self.open_sqlite()
        self.memory = MemoryStore()
        self.ids: list[bytes] = []
        self.limits: dict[bytes, int | None] = {}
        self.begun: Counter[bytes] = Counter()
        self.now = START

    def open_sqlite(self) -> SQLiteStore:
        home = self.folder / "home"
        self.opened.append(SQLiteStore(home, Settings(synchronous="normal"), FileResults(home)))
        return self.opened[-1]

    def teardown(self) -> None:
        for store in self.opened:
            store.close()
        shutil.rmtree(self.folder)

    def both(self, act: Callable[[RunStore], Any]) -> Any:
        answer = act(self.sqlite)
        assert act(self.memory) == answer
        return answer

    def tick(self) -> int:
        self.now += 1000
        return self.now

    def deployment(self, name: str) -> DeploymentRow:
        return deployment_row(name)

    def known(self, pick: int) -> RunRow | None:
        return self.memory.read_run(self.ids[pick % len(self.ids)]) if self.ids else None

    # --- what happens -------------------------------------------------------------------------

    @rule(name=names, limit=st.none() | st.integers(0, 3), collision=st.sampled_from([ENQUEUE, ENQUEUE, CANCEL_NEW]),
          slugs=st.sets(st.sampled_from(["daily", "odd"])), data=st.sampled_from(["{}", '{"x":1}']),
          keep=st.booleans())  # fmt: skip
    def serve(self, name: str, limit: int | None, collision: str, slugs: set[str], data: str, keep: bool) -> None:
        now = self.tick()
        row = deployment_row(name, concurrency_limit=limit, collision=collision, created=now, updated=now)
        rules = [rule_row(row, slug, data=data, state=str(now)) for slug in sorted(slugs)]
        self.both(lambda store: store.write_deployment(row, rules, keep_paused=keep))
        self.limits[row.id] = limit

    @rule(name=names, paused=st.booleans(), states=st.booleans())
    def pause(self, name: str, paused: bool, states: bool) -> None:
        row, now = self.deployment(name), self.tick()
        new = {rule_row(row).id: str(now)} if states else {}
        self.both(lambda store: store.pause_deployment(row.id, paused, new))

    @rule(name=names, is_meant=st.integers(0, 4))
    def delete(self, name: str, is_meant: int) -> None:
        now = self.tick()
        if not is_meant:
            self.both(lambda store: store.delete_deployment(self.deployment(name).id, now))

    @rule(asked=st.lists(st.tuples(names, keys, st.integers(-5, 5)), max_size=4))
    def enqueue(self, asked: list[tuple[str, str | None, int]]) -> None:
        now = self.tick()
        rows = [waiting_row(self.deployment(name), now + 1000 * late, key) for name, key, late in asked]
        given = self.both(lambda store: store.enqueue(rows))
        assert [row.deployment_id for row in given] == [row.deployment_id for row in rows]
        self.ids += [row.id for row in rows if self.memory.read_run(row.id) is not None]

    @rule(name=names, slug=st.sampled_from(["daily", "odd"]), is_behind=st.integers(0, 3), alone=st.booleans(),
          key=keys)  # fmt: skip
    def fire(self, name: str, slug: str, is_behind: int, alone: bool, key: str | None) -> None:
        row, now = self.deployment(name), self.tick()
        wanted = rule_row(row, slug)
        state = next((each.state for each in self.memory.read_rules([row.id]) if each.id == wanted.id), "0")
        before = state if is_behind else "another"
        run = waiting_row(row, now, key or f"{slug}@{now}")
        fired = self.both(lambda store: store.fire(wanted.id, before, str(now), [run], unless_running=alone))
        self.ids += [each.id for each in fired.runs if each.id == run.id]

    @rule(served=st.lists(names, max_size=4), limit=st.integers(0, 4))
    def claim(self, served: list[str], limit: int) -> None:
        ids, now = [self.deployment(name).id for name in served], self.tick()
        before = {row.id: row for row in self.memory.read_runs(ALL)}
        taken: list[RunRow] = self.both(lambda store: store.claim_due(ids, now, limit))
        order = [(before[row.id].scheduled, row.id) for row in taken]
        assert order == sorted(order)
        assert len(taken) <= limit
        for row in taken:
            assert before[row.id].owner == NOBODY
            assert row.owner == self.memory.owner
            waiting = [
                each.id
                for each in before.values()
                if each.deployment_id == row.deployment_id and each.owner == NOBODY and each.state == SCHEDULED
                and (each.scheduled, each.id) < (row.scheduled, row.id)
            ]  # fmt: skip
            assert set(waiting) <= {each.id for each in taken}  # none of its deployment is passed over
            if self.limits[row.deployment_id or b""] is not None:
                assert self.places(row.deployment_id) <= (self.limits[row.deployment_id or b""] or 0)

    @rule(served=st.lists(names, max_size=4), limit=st.integers(0, 4), back=st.integers(1, 9))
    def claim_by_a_clock_set_back(self, served: list[str], limit: int, back: int) -> None:
        ids, now = [self.deployment(name).id for name in served], self.tick() - 1000 * back
        before = {row.id: row for row in self.memory.read_runs(ALL)}
        for taken in self.both(lambda store: store.claim_due(ids, now, limit)):
            row = before[taken.id]
            assert (row.scheduled or 0) <= now or row.seq > 1 or (row.scheduled or 0) <= row.created

    def places(self, deployment_id: bytes | None) -> int:
        return sum(
            row.state < FIRST_FINAL
            and row.owner != NOBODY
            and not (row.state == PAUSED and row.state_name in ("Suspended", "Interrupted"))
            for row in self.memory.read_runs(ALL)
            if row.deployment_id == deployment_id
        )

    @rule(pick=picks, state=nexts)
    def go_on(self, pick: int, state: tuple[StateType, str | None]) -> None:
        row, now = self.known(pick), self.tick()
        if row is not None and row.owner == self.memory.owner and row.state < FIRST_FINAL:
            self.both(lambda store: go_on(store, row.id, state[0], now, state[1]))

    @rule(pick=picks, wrong=st.sampled_from([0, 0, 0, -1]))
    def requeue(self, pick: int, wrong: int) -> None:
        row, now = self.known(pick), self.tick()
        if row is not None:
            self.both(lambda store: store.requeue(row.id, row.seq + wrong, now))

    @rule(pick=picks, wrong=st.sampled_from([0, 0, 0, 1]))
    def cancel(self, pick: int, wrong: int) -> None:
        row, now = self.known(pick), self.tick()
        if row is not None:
            self.both(lambda store: store.cancel_waiting(row.id, row.seq + wrong, now, "by hand"))

    @rule(pick=picks)
    def take_over(self, pick: int) -> None:
        row, now = self.known(pick), self.tick()
        if row is not None:
            taken = self.both(lambda store: store.claim(row.id, row.seq, now))
            assert taken is None or row.owner != NOBODY

    @rule(back=st.integers(0, 5000))
    def name_late(self, back: int) -> None:
        now = self.tick()
        self.both(lambda store: store.mark_late(now - back, now))

    @rule(pick=picks)
    def forget_run(self, pick: int) -> None:
        row = self.known(pick)
        if row is not None:
            deleted = self.both(lambda store: store.delete_runs([row.id]))
            assert not deleted or row.owner != NOBODY

    @rule()
    def die(self) -> None:
        """Whoever has claimed dies, and the next one looks."""
        self.sqlite._ownership.release(remove=False)
        self.sqlite = self.open_sqlite()
        # Of one without a row nothing can be told, as of every one in memory.
        self.sqlite._call("forgetting", lambda connection: connection.execute(_FORGET, [self.sqlite.owner]))
        self.memory.owner += 1
        now = self.tick()
        self.both(lambda store: store.reap(now))
        assert not [row for row in self.memory.read_runs(ALL) if row.owner not in (NOBODY, self.memory.owner)
                    and row.state < FIRST_FINAL and row.state != PAUSED]  # fmt: skip

    # --- what is read -------------------------------------------------------------------------

    @invariant()
    def all_is_equal(self) -> None:
        self.both(lambda store: store.read_runs(ALL))
        self.both(lambda store: store.read_journal(None, 10_000))
        self.both(lambda store: store.read_deployments())
        ids = [self.deployment(name).id for name in NAMES]
        self.both(lambda store: store.read_rules(ids))
        self.both(lambda store: store.count_outermost())
        self.both(lambda store: store.next_due(ids))
        self.both(lambda store: store.next_due(ids[:2], self.now))
        self.both(lambda store: store.next_due(ids, now=self.now - 3000))
        self.both(lambda store: store.read_oldest(9, before=self.now + 1))
        self.both(lambda store: store.read_runs(RunQuery(kinds=frozenset({FLOW}), deployment_id=ids[0])))

    @invariant()
    def each_key_is_one_runs(self) -> None:
        used = Counter(
            (row.deployment_id, row.idempotency_key) for row in self.memory.read_runs(ALL) if row.idempotency_key
        )
        assert set(used.values()) <= {1}

    @invariant()
    def every_history_is_whole_and_does_not_go_back(self) -> None:
        for row in self.memory.read_runs(ALL):
            history = history_of(row)
            assert len(history) == row.seq
            assert [entry[3] for entry in history] == sorted(entry[3] for entry in history)


TestDeployments = Deployments.TestCase
TestDeployments.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDeployments.pytestmark = [pytest.mark.timeout(300)]  # type: ignore[attr-defined]
