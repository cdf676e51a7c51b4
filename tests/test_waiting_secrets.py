"""Secrets of runs that wait: in the row for whoever begins them, shown to nobody, and gone when they have ended."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from asyncflow import Runtime, cancel_flow_run, flow, get_client, resume_flow_run, run_deployment, suspend_flow_run
from asyncflow.exceptions import MissingParametersError
from tests.conftest import Backend
from tests.test_serve import BACKENDS, served, until

SECRET = "hunter2-hunter2"
HIDDEN = {"__preview__": "'**********'"}


class Login(BaseModel):
    user: str
    password: SecretStr


@flow
async def use(token: SecretStr, n: int = 0, login: Login | None = None) -> int:
    assert token.get_secret_value() == SECRET
    return n


@flow
async def rest(token: SecretStr) -> str:
    await suspend_flow_run()
    return token.get_secret_value()


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.param
    return backend


@pytest.fixture
async def runtime(home: Path) -> AsyncIterator[Runtime]:
    async with Runtime(home) as opened:
        yield opened


def recorded(home: Path) -> str:
    """All that the database holds of runs."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as connection:
        return repr(connection.execute("SELECT * FROM run").fetchall())


pytestmark = pytest.mark.anyio


async def test_a_waiting_run_shows_its_secrets_to_nobody(runtime: Runtime) -> None:
    login = {"user": "me", "password": SECRET}
    async with served(use.to_deployment("x")) as client:
        run = await client.create_flow_run_from_deployment(
            "use/x",
            parameters={"token": SECRET, "n": 1, "login": login},
            scheduled_time=datetime.now(UTC) + timedelta(hours=1),
        )
        assert run.parameters == {"token": HIDDEN, "n": 1, "login": HIDDEN}
        assert (await client.read_flow_run(run.id)).parameters == run.parameters
        assert SECRET in recorded(runtime.home)  # else nobody could begin it
        await cancel_flow_run(run.id)
        assert (await client.read_flow_run(run.id)).parameters == run.parameters
        assert SECRET not in recorded(runtime.home)


async def test_a_run_gets_its_secret_and_leaves_none_behind(runtime: Runtime) -> None:
    async with served(use.to_deployment("x")):
        run = await run_deployment("use/x", parameters={"token": SECRET, "n": "2"})
        assert run.state.is_completed()
        assert await get_client().read_result(run.id) == 2
        assert SECRET not in recorded(runtime.home)


async def test_one_that_does_not_fit_leaves_none_behind(runtime: Runtime) -> None:
    async with served(use.to_deployment("x")):
        run = await run_deployment("use/x", parameters={"token": SECRET, "n": "many"})
        assert [state.name for state in await get_client().read_states(run.id)] == ["Scheduled", "Pending", "Failed"]
        assert run.parameters == {"token": HIDDEN, "n": "many"}
        assert SECRET not in recorded(runtime.home)


async def test_one_whose_deployment_is_deleted_leaves_none_behind(runtime: Runtime) -> None:
    client = get_client()
    async with served(use.to_deployment("x")):
        later = datetime.now(UTC) + timedelta(hours=1)
        await client.create_flow_run_from_deployment("use/x", parameters={"token": SECRET}, scheduled_time=later)
    await client.delete_deployment("use/x")
    assert SECRET not in recorded(runtime.home)


async def test_a_suspended_run_without_its_secret_is_not_failed_by_resuming_it(runtime: Runtime) -> None:
    async with served(rest.to_deployment("x")) as client:
        run = await run_deployment("rest/x", parameters={"token": SECRET}, timeout=0)

        async def is_suspended() -> bool:
            return (await client.read_flow_run(run.id)).state.name == "Suspended"

        await until(is_suspended)
        with pytest.raises(MissingParametersError, match=r'parameters=\{"token": \.\.\.\}'):
            await resume_flow_run(run.id)
        assert await is_suspended()
        assert await resume_flow_run(run.id, flow=rest, parameters={"token": SECRET}) == SECRET
