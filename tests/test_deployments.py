"""Deployments as values, as they are stored, and as a client finds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from asyncflow import Deployment, Runtime, flow, get_client, task
from asyncflow.exceptions import (
    DeploymentError,
    DeploymentNotFoundError,
    DeploymentParametersError,
    OptionError,
    ParameterValidationError,
    ScheduleError,
)
from asyncflow.schedules import Cron, Interval, RRule
from asyncflow.serving import Server
from asyncflow.stores.memory import MemoryStore
from asyncflow.triggers import EventTrigger
from tests.conftest import Backend
from tests.test_serve import BACKENDS, LONG


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.param
    return backend


@pytest.fixture(params=["memory", "sqlite"])
async def runtime(request: pytest.FixtureRequest, home: Path) -> AsyncIterator[Runtime]:
    async with Runtime(home, store=MemoryStore() if request.param == "memory" else None) as runtime:
        yield runtime


class Place(BaseModel):
    city: str
    height: float = 0


@flow
async def report(day: date, place: Place, count: int = 1, *more: int) -> None:
    """Writes the report of a day."""


@flow
async def anything(n: int = 1, **others: Any) -> None: ...


@flow
async def secret(token: SecretStr, n: int = 0) -> None: ...


AT_NINE = Cron("0 9 * * *", timezone="Europe/Berlin", parameters={"count": "5"})  # here: a time zone is a file


async def register(runtime: Runtime, *deployments: Deployment) -> None:
    """As a server does when it begins."""
    assert runtime.services is not None
    server = Server(runtime.services, deployments)
    await runtime.services.ask(server._host, server.register)


# --- as values -----------------------------------------------------------------------------


def test_parameters_are_coerced_and_kept_as_plain_data() -> None:
    given = {"day": "2027-03-01", "place": {"city": "Ulm", "height": "478"}, "more": [1, "2"]}
    deployment = report.to_deployment("daily", parameters=given)
    assert deployment.parameters == {
        "day": "2027-03-01",
        "place": {"city": "Ulm", "height": 478.0},
        "more": [1, 2],
    }
    same = report.to_deployment("daily", parameters={"day": date(2027, 3, 1), "place": Place(city="Ulm")})
    assert same.parameters["place"] == {"city": "Ulm", "height": 0.0}
    assert anything.to_deployment("x", parameters={"n": "3", "color": "red"}).parameters == {
        "n": 3,
        "others": {"color": "red"},
    }


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"dya": 1}, "dya: No such parameter .there are: day, place, count, more., got 1"),
        ({"count": "many"}, "count: Input should be a valid integer.*got 'many'"),
        ({"place": {"height": 1}}, "place.city: Field required"),
    ],
)
def test_bad_parameters_name_deployment_parameter_and_value(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(DeploymentParametersError, match=f"(?s)deployment 'report/daily'.*{told}") as caught:
        report.to_deployment("daily", parameters=parameters)
    assert isinstance(caught.value, ParameterValidationError)
    assert (caught.value.deployment, caught.value.flow) == ("report/daily", "report")
    with pytest.raises(DeploymentParametersError, match=told):
        report.to_deployment("daily", schedules=[Interval(60, parameters=parameters)])


def test_secrets_are_not_stored() -> None:
    with pytest.raises(DeploymentParametersError, match="token: Not JSON") as caught:
        secret.to_deployment("x", parameters={"token": "hunter2"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DeploymentParametersError) as caught:
        secret.to_deployment("x", parameters={"tokne": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_template_of_a_trigger_is_no_value_yet() -> None:
    trigger = EventTrigger("sold", parameters={"count": "{{ event.payload.count }}"})
    assert report.to_deployment("x", triggers=[trigger]).triggers[0].parameters == trigger.parameters
    with pytest.raises(DeploymentParametersError, match="cuont: No such parameter"):
        report.to_deployment("x", triggers=[EventTrigger("sold", parameters={"cuont": "{{ event.id }}"})])


def test_one_word_is_one_schedule() -> None:
    deployment = report.to_deployment("x", cron="0 9 * * *", interval=timedelta(minutes=5), rrule="FREQ=DAILY")
    kinds = [type(each) for each in deployment.schedules]
    assert kinds == [Cron, Interval, RRule]
    # What it is called by is made of what it says: another order, or a parameter in another place, changes no slug.
    again = report.to_deployment("x", schedules=[Interval(300), Cron("0 9 * * *")])
    slugs = {type(each): each.slug for each in deployment.schedules}
    assert {type(each): each.slug for each in again.schedules} == {Interval: slugs[Interval], Cron: slugs[Cron]}
    with pytest.raises(ScheduleError, match="expression='60'"):
        report.to_deployment("x", cron="60")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": ""}, "name=''"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"concurrency_limit": 0}, "concurrency_limit=0"),
        ({"concurrency_limit": True}, "concurrency_limit=True"),
        ({"collision": "wait"}, "collision='wait'"),
        ({"tags": "one"}, "tags='one'"),
        ({"tags": [""]}, r"tags=\('',\)|tags=\[''\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        report.to_deployment(**{"name": "x", **options})


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(DeploymentError, match=r"report/x.*called 'a'"):
        report.to_deployment("x", schedules=[Interval(60, slug="a")], triggers=[EventTrigger("b", slug="a")])
    with pytest.raises(DeploymentError, match="interval-"):
        report.to_deployment("x", interval=60, schedules=[Interval(60)])


def test_only_flows_are_deployed() -> None:
    @task
    async def step() -> None: ...

    for given in (step, report.fn, None):
        with pytest.raises(OptionError, match="flow="):
            Deployment(flow=given, name="x")  # type: ignore[arg-type]


def test_its_id_is_its_names() -> None:
    assert report.to_deployment("x").id == report.to_deployment("x", interval=5).id
    assert report.to_deployment("x").id != report.to_deployment("y").id != anything.to_deployment("y").id
    assert report.to_deployment("x").full_name == "report/x"
    assert (report.to_deployment("x").entrypoint or "").endswith("test_deployments.py:report")


# --- as they are stored --------------------------------------------------------------------


async def test_a_client_reads_what_was_served(runtime: Runtime) -> None:
    schedules = [AT_NINE, Interval(60, active=False)]
    trigger = EventTrigger("sold", within=60, threshold=3)
    deployment = report.to_deployment(
        "daily",
        parameters={"count": 2},
        schedules=schedules,
        triggers=[trigger],
        tags=["b", "a", "b"],
        concurrency_limit=3,
        collision="cancel_new",
        version="7",
    )
    await register(runtime, deployment, anything.to_deployment("x"))
    client = get_client()
    record = await client.read_deployment("report/daily")
    assert record == await client.read_deployment(record.id) == await client.read_deployment(str(record.id))
    assert (record.id, record.full_name, record.entrypoint) == (deployment.id, "report/daily", deployment.entrypoint)
    assert record.parameters == {"count": 2}
    assert record.parameter_schema["required"] == ["day", "place"]
    assert set(record.schedules) == set(deployment.schedules)
    assert {each.parameters["count"] for each in record.schedules if each.parameters} == {5}
    assert record.triggers == deployment.triggers
    assert (record.tags, record.version, record.description) == (("b", "a"), "7", "Writes the report of a day.")
    assert (record.concurrency_limit, record.collision, record.paused) == (3, "cancel_new", False)
    assert record.created == record.updated <= datetime.now(UTC)
    assert [each.full_name for each in await client.read_deployments()] == ["anything/x", "report/daily"]
    assert [each.full_name for each in await client.read_deployments(flow_name="report")] == ["report/daily"]


async def test_served_again_it_is_brought_up_to_date(runtime: Runtime) -> None:
    client = get_client()
    await register(runtime, report.to_deployment("x", interval=60, tags=["old"]))
    before = await client.read_deployment("report/x")
    await client.pause_deployment("report/x")
    await register(runtime, report.to_deployment("x", interval=90, tags=["new"]))
    after = await client.read_deployment("report/x")
    assert (after.id, after.created, after.tags) == (before.id, before.created, ("new",))
    assert [each.to_data()["every"] for each in after.schedules] == [90]
    assert after.paused  # by somebody, who is not to be overruled by a restart
    await client.resume_deployment(after.id)
    assert not (await client.read_deployment(after.id)).paused
    await register(runtime, report.to_deployment("x", paused=True))
    assert (await client.read_deployment(after.id)).paused


async def test_a_deployment_that_is_deleted_is_gone_with_what_waits(runtime: Runtime) -> None:
    client = get_client()
    await register(runtime, anything.to_deployment("x", interval=60))
    waiting = await client.create_flow_run_from_deployment("anything/x")
    assert await client.read_flow_runs(deployment="anything/x") == [waiting]
    await client.delete_deployment("anything/x")
    await anything.acall()
    (of_it,) = await client.read_flow_runs(deployment=waiting.deployment_id)
    assert of_it.id == waiting.id
    assert (await client.wait_for_flow_run(waiting.id, LONG)).state.is_cancelled()
    assert await client.read_deployments() == []
    for ask in (client.read_deployment, client.pause_deployment, client.resume_deployment, client.delete_deployment):
        with pytest.raises(DeploymentNotFoundError, match="'anything/x'"):
            await ask("anything/x")


async def test_any_name_may_be_given_where_the_flow_takes_any(runtime: Runtime) -> None:
    client = get_client()
    await register(runtime, anything.to_deployment("x", parameters={"color": "red"}), secret.to_deployment("x"))
    run = await client.create_flow_run_from_deployment("anything/x", parameters={"size": 3})
    assert run.parameters == {"others": {"color": "red"}, "size": 3}
    with pytest.raises(DeploymentParametersError, match="tokne") as caught:
        await client.create_flow_run_from_deployment("secret/x", parameters={"tokne": "hunter2"})
    assert "hunter2" not in str(caught.value)


async def test_a_wait_for_a_run_ends_with_its_time(runtime: Runtime) -> None:
    client = get_client()
    await register(runtime, anything.to_deployment("x"))
    waiting = await client.create_flow_run_from_deployment("anything/x")
    assert (await client.wait_for_flow_run(waiting.id, 0)).state.is_scheduled()
    assert (await client.wait_for_flow_run(str(waiting.id), timedelta(seconds=0.05))).state.is_scheduled()
    await anything.acall()
    ended = (await client.read_flow_runs(flow_name="anything", state="completed"))[0]
    assert await client.wait_for_flow_run(ended.id) == ended


@pytest.mark.parametrize(
    "option", [{"tags": "nightly"}, {"tags": [""]}, {"idempotency_key": ""}, {"idempotency_key": 3}]
)
async def test_what_a_run_is_asked_with_is_checked(runtime: Runtime, option: dict[str, Any]) -> None:
    client = get_client()
    await register(runtime, anything.to_deployment("x"))
    with pytest.raises(OptionError, match=next(iter(option))):
        await client.create_flow_run_from_deployment("anything/x", **option)
    assert not await client.read_flow_runs()
