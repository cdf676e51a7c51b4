"""What `to_deployment` and `run_deployment` say to options that cannot be used."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from asyncflow import Runtime, flow, pause_flow_run, resume_flow_run, run_deployment, send_input
from asyncflow.deployments import Deployment
from asyncflow.exceptions import NotJSONError, OptionError
from asyncflow.schedules import Cron, Interval
from asyncflow.triggers import EventTrigger


@flow
async def alone() -> None: ...


class Login(BaseModel):
    password: SecretStr


def test_one_schedule_or_trigger_needs_no_list() -> None:
    nightly, paid = Cron("0 3 * * *"), EventTrigger("order.paid")
    one = alone.to_deployment("own", schedules=nightly, triggers=paid)
    assert one == alone.to_deployment("own", schedules=[nightly], triggers=(each for each in [paid]))
    assert [type(each) for each in (*one.schedules, *one.triggers)] == [Cron, EventTrigger]
    both = alone.to_deployment("own", interval=60, schedules=nightly)
    assert [type(each) for each in both.schedules] == [Interval, Cron]
    single: Any = nightly
    assert Deployment(flow=alone, name="own", schedules=single).schedules == one.schedules


@pytest.mark.parametrize("wrong", ["0 3 * * *", 5, None, [Cron("0 3 * * *"), "x"], EventTrigger("order.paid")])
def test_what_is_no_schedule_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"schedules=.*expected a schedule or several, such as \[Cron\("):
        alone.to_deployment("own", schedules=wrong)


@pytest.mark.parametrize("wrong", ["order.paid", 5, [Cron("0 3 * * *")], Cron("0 3 * * *")])
def test_what_is_no_trigger_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"triggers=.*expected a trigger or several, such as \[EventTrigger\("):
        alone.to_deployment("own", triggers=wrong)


async def test_an_unknown_option_names_the_function_and_what_it_takes() -> None:
    wrong: Any = {"nme": 1}
    with pytest.raises(TypeError, match=r"^to_deployment\(\) .*'nme'.*; it takes collision, .*triggers, version$"):
        alone.to_deployment("own", **wrong)
    with pytest.raises(TypeError, match=r"^to_deployment\(\) .*'nme'"):
        await alone.serve("own", **wrong)


@pytest.mark.parametrize("wrong", ["no", 1, None])
def test_paused_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"paused=.*True or False"):
        alone.to_deployment("own", paused=wrong)


@pytest.mark.parametrize("wrong", [-1, -0.5, timedelta(seconds=-1), float("nan"), "5"])
def test_a_timeout_is_no_less_than_nothing(wrong: Any) -> None:
    with pytest.raises(OptionError, match="timeout="):
        run_deployment("alone/own", timeout=wrong)


async def test_an_input_with_a_secret_says_what_to_send() -> None:
    @flow
    async def asks() -> None:
        await pause_flow_run(wait_for_input=Login)

    secret = Login(password=SecretStr("abc"))
    async with Runtime():
        run = asks.submit()
        with pytest.raises(NotJSONError, match=r"^input\.password is not JSON: .*Send plain data") as raised:
            await send_input(secret, run.flow_run_id)
        assert "Return" not in str(raised.value)
        with pytest.raises(NotJSONError, match=r"^input\.password .*Send plain data"):
            await resume_flow_run(run.flow_run_id, run_input=secret)
        run.cancel()
