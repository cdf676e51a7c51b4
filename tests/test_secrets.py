"""A secret is in no record: not in the home, not in what is logged or printed, not in what the commands show.

Each flow below is given a canary in every way that a secret comes into a run, and then the whole
home, standard output, standard error and the log records are searched for it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import anyio
import pytest
from pydantic import AfterValidator, BaseModel, Field, Secret, SecretBytes, SecretStr, model_validator

from asyncflow import (
    EventFilter,
    emit_event,
    flow,
    get_client,
    get_run_logger,
    resume_flow_run,
    task,
    transaction,
)
from asyncflow.cache_policies import INPUTS
from asyncflow.cli.app import run_command
from asyncflow.exceptions import (
    CannotResumeError,
    EventPayloadError,
    NotJSONError,
    ParameterValidationError,
    RunCancelledError,
)
from asyncflow.runtime import HOME

CANARY = "".join(["canary-", "4f1a9c77", "e0d2"])
"""Put together, so that a line of this file, which a traceback shows, does not hold it."""


BARE: Any = CANARY
"""Where a type checker would not let a text pass."""
STANDARD = SecretStr(CANARY)
NOTHING = SecretStr("")


class Login(BaseModel):
    user: str
    token: SecretStr
    port: int = 1


class Opaque:
    """An object that tells everything to whoever asks for its text."""

    def __init__(self) -> None:
        self.token = CANARY

    def __repr__(self) -> str:
        return self.token


def found_in(text: str) -> bool:
    return CANARY in text


def is_in(data: bytes) -> bool:
    """Whether the canary is in `data`, as it is or in a usual disguise."""
    plain = CANARY.encode()
    return any(form in data for form in (plain, base64.b64encode(plain)[:-4], plain.hex().encode(), plain[::-1]))


@pytest.fixture(autouse=True)
def no_leak(
    home: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """After each test: nothing that it left behind holds the canary."""
    caplog.set_level(0)
    monkeypatch.setenv("SERVICE_TOKEN", CANARY)
    yield
    live = [path for path in home.rglob("*") if path.is_file() and is_in(path.read_bytes())]
    HOME.close_default()
    left = [path for path in home.rglob("*") if path.is_file() and is_in(path.read_bytes())]
    assert [*live, *left] == []
    out, err = capfd.readouterr()
    assert not is_in(out.encode())
    assert not is_in(err.encode())
    for record in caplog.records:
        shown = caplog.handler.format(record)
        assert not found_in(f"{shown} {record.getMessage()} {record.exc_text}")


async def recorded() -> dict[str, Any]:
    """The parameters of the newest flow run, which is in the home as it should be."""
    (run,) = await get_client().read_flow_runs(limit=1)
    return run.parameters


# --- flows that complete ---------------------------------------------------------------------------


@task(log_prints=True)
async def use(token: SecretStr, login: Login) -> int:
    print(token, [login], {"token": token})
    return len(token.get_secret_value() + os.environ["SERVICE_TOKEN"])


@task(cache_policy=INPUTS)
async def cached_by_inputs(token: SecretStr) -> int:
    return len(token.get_secret_value())


@task(cache_key_fn=lambda context, arguments: f"for {arguments['token']}")
async def cached_by_text(token: SecretStr) -> int:
    return len(token.get_secret_value())


@task
async def give(login: Login) -> Login:
    return login


@flow(flow_run_name="with {token} for {login}", log_prints=True)
async def careful(
    token: SecretStr,
    login: Login,
    several: list[SecretStr],
    by_name: dict[str, Login],
    raw: SecretBytes,
    number: Secret[int] | None = None,
    standard: SecretStr = STANDARD,
) -> Login:
    logger = get_run_logger()
    logger.info("%s %r %s", token, login, several)
    logger.warning(f"with {login}", extra={"token": token, "login": login, "deep": {"all": [several, Opaque()]}})
    logger.info("an object", extra={"object": Opaque(), "pairs": [(1, token)], "raw": raw})
    print(token, login, several, by_name, raw, standard)
    await use(token, login)
    await cached_by_inputs(token)
    await cached_by_text(token)
    async with transaction(key="login") as unit:
        with pytest.raises(NotJSONError, match=r"login\.token is not JSON: a SecretStr is never written out"):
            unit.set("login", login)
    return await give(login)


SECRETS: dict[str, Any] = {
    "token": SecretStr(CANARY),
    "login": Login(user="u", token=SecretStr(CANARY)),
    "several": [SecretStr(CANARY)],
    "by_name": {"a": Login(user="u", token=SecretStr(CANARY))},
    "raw": SecretBytes(CANARY.encode()),
}
PLAIN: dict[str, Any] = {
    "token": CANARY,
    "login": {"user": "u", "token": CANARY},
    "several": [CANARY],
    "by_name": {"a": {"user": "u", "token": CANARY}},
    "raw": CANARY.encode(),
}


@pytest.mark.parametrize("given", [SECRETS, PLAIN], ids=["as secrets", "as text"])
async def test_a_flow_that_completes(given: dict[str, Any]) -> None:
    login: Login = await careful(**given)
    assert login.token.get_secret_value() == CANARY
    parameters = await recorded()
    assert parameters["token"] == {"__preview__": "SecretStr('**********')"}
    assert "**********" in str(parameters["login"])
    (run,) = await get_client().read_flow_runs(limit=1)
    assert run.state.is_completed()
    lines = await get_client().read_logs(run.id)
    assert lines[1].extra["token"] == "SecretStr('**********')"
    assert len(lines) == 5


async def test_a_result_that_must_be_kept() -> None:
    @flow(persist_result=True)
    async def keeps(token: SecretStr) -> Any:
        return {"login": Login(user="u", token=token)}

    with pytest.raises(NotJSONError, match=r"login\.token"):
        await keeps(SecretStr(CANARY))


async def test_a_default_that_only_the_hint_says_to_be_secret() -> None:
    class Settings(BaseModel):
        token: SecretStr = BARE  # pydantic does not look at it
        several: list[SecretStr] = Field(default=[BARE])

    settings = Settings()

    @flow
    async def main(
        token: SecretStr = BARE,
        tokens: list[SecretStr] = [BARE],  # noqa: B006
        settings: Settings = settings,
        none: SecretStr | None = None,
        plain: str = "shown",
    ) -> None: ...

    await main()
    parameters = await recorded()
    assert parameters["none"] is None
    assert parameters["plain"] == "shown"
    assert [list(parameters[name]) for name in ("token", "tokens", "settings")] == [["__preview__"]] * 3
    schema = main.parameters.model_dump()
    assert not found_in(str(schema))
    assert schema["properties"]["plain"]["default"] == "shown"


async def test_a_flow_that_does_not_check_its_parameters() -> None:
    @flow(validate_parameters=False)
    async def main(token: SecretStr, login: Login, plain: str) -> None: ...

    await main(BARE, cast("Any", {"token": CANARY}), "shown")
    assert await recorded() == {
        "token": {"__preview__": "'**********'"},
        "login": {"__preview__": "'**********'"},
        "plain": "shown",
    }


async def test_nested_flows_and_submitted_ones() -> None:
    @flow
    async def inner(login: Login) -> str:
        return login.user

    @flow
    async def main(login: Login) -> list[str]:
        future = inner.submit(login)
        return [await inner(login), await future, await inner(cast("Any", {"user": "v", "token": CANARY}))]

    assert await main(Login(user="u", token=SecretStr(CANARY))) == ["u", "u", "v"]


# --- flows that are refused -------------------------------------------------------------------------


def quoting(value: Any) -> Any:
    raise ValueError(f"this is not good: {value.get_secret_value()!r}")


class Quoting(BaseModel):
    token: SecretStr

    @model_validator(mode="after")
    def check(self) -> Quoting:
        raise ValueError(f"not good: {self.token.get_secret_value()}")


class Cat(BaseModel):
    kind: Annotated[str, Field(pattern="cat")]
    token: SecretStr


@pytest.mark.parametrize(
    "given",
    [
        {"token": [CANARY]},
        {"login": {"user": 1, "token": CANARY, "port": CANARY}},
        {"login": CANARY},
        {"several": [CANARY, 5, [CANARY]]},
        {"several": {"a": CANARY}},
        {"number": CANARY},
        {"count": "not a number"},
        {"quoted": CANARY},
        {"model": {"token": CANARY}},
        {"cat": {"kind": CANARY, "token": CANARY}},
        {"rest": [CANARY]},
    ],
    ids=lambda given: next(iter(given)),
)
async def test_bad_parameters(given: dict[str, Any]) -> None:
    @flow
    async def main(
        token: SecretStr = NOTHING,
        login: Login | None = None,
        several: list[SecretStr] = [],  # noqa: B006
        number: Secret[int] | None = None,
        count: int = 0,
        quoted: Annotated[SecretStr, AfterValidator(quoting)] | None = None,
        model: Quoting | None = None,
        cat: Cat | None = None,
        *,
        also: SecretStr = NOTHING,
        **rest: SecretStr,
    ) -> None: ...

    with pytest.raises(ParameterValidationError) as caught:
        await main(**{"also": CANARY, **given})
    assert not found_in(str(caught.value) + repr(caught.value) + repr(caught.value.__dict__))
    assert caught.value.__context__ is None
    (run,) = await get_client().read_flow_runs(limit=1)
    assert run.state.is_failed()
    assert not found_in(repr(run))


def test_a_misspelled_name() -> None:
    @flow
    def main(token: SecretStr) -> None: ...

    with pytest.raises(ParameterValidationError, match=r"tokn: No such parameter \(there are: token\), got '\*+'"):
        main.validate_parameters({"tokn": CANARY, "token": "x"})


# --- flows that fail, are cancelled, are resumed ------------------------------------------------------


@task(retries=1)
async def fail(login: Login, fail_with: str) -> None:
    token = login.token.get_secret_value()
    everything = {"token": token, "environment": dict(os.environ), "login": login}
    try:
        raise KeyError(len(everything))
    except KeyError as error:
        get_run_logger().exception("it failed with %s", login, extra={"login": login})
        problem = ValueError(f"{fail_with} {login!r} and {login}")
        problem.add_note(f"while {login.token} was used")
        raise problem from error


async def test_a_flow_that_fails() -> None:
    @flow
    async def main(login: Login, token: SecretStr) -> None:
        with pytest.raises(ValueError, match="cannot use"):
            await fail(login, "cannot use")
        futures = [fail.submit(login, "each") for _ in range(2)]
        errors: list[Exception] = []
        for future in futures:
            try:
                await future
            except ValueError as error:
                errors.append(error)
        raise ExceptionGroup(f"several with {token}", errors)

    with pytest.raises(ExceptionGroup):
        await main(Login(user="u", token=SecretStr(CANARY)), BARE)


async def test_a_flow_that_is_cancelled() -> None:
    @flow
    async def waits(login: Login) -> None:
        get_run_logger().info("%s", login)
        began.set()
        await anyio.sleep_forever()

    @flow
    async def main(login: Login) -> None:
        future = waits.submit(login)
        await began.wait()
        tree = await get_client().await_tree()
        assert "waits" in str(tree)
        assert not found_in(f"{tree} {tree!r}")
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        early = waits.submit(cast("Any", {"user": "u", "token": CANARY}))
        early.cancel()
        with pytest.raises(RunCancelledError):
            await early

    began = anyio.Event()
    await main(Login(user="u", token=SecretStr(CANARY)))
    runs = await get_client().read_flow_runs(flow_name="waits")
    assert len(runs) == 2
    assert list(runs[1].parameters["login"]) == ["__preview__"]
    assert list(runs[0].parameters.get("login", {"__preview__": ""})) == ["__preview__"]


async def test_a_flow_that_is_resumed_asks_for_its_secrets() -> None:
    good = False

    @flow
    async def main(day: str, token: SecretStr, login: Login, number: Secret[int] | None = None) -> int:
        if not good:
            raise ValueError(f"no {login}")
        return len(token.get_secret_value())

    with pytest.raises(ValueError, match="no user='u'"):
        await main("monday", SecretStr(CANARY), Login(user="u", token=SecretStr(CANARY)))
    (run,) = await get_client().read_flow_runs(limit=1)
    good = True
    with pytest.raises(CannotResumeError, match="does not hold the value of 'token', 'login'") as caught:
        await resume_flow_run(run.id, flow=main)
    assert 'parameters={"token": ..., "login": ...}' in str(caught.value)
    with pytest.raises(ParameterValidationError) as refused:
        await resume_flow_run(run.id, flow=main, parameters={"token": [CANARY], "login": {"token": CANARY}})
    assert not found_in(str(refused.value))
    given = {"token": CANARY, "login": {"user": "u", "token": CANARY}}
    assert await resume_flow_run(run.id, flow=main, parameters=given) == len(CANARY)


# --- what else is recorded and shown -------------------------------------------------------------------


async def test_events_and_recorded_items() -> None:
    @flow(persist_result=True)
    async def items(token: SecretStr) -> AsyncIterator[Any]:
        emit_event("logged.in", payload={"token": token, "several": [token]})
        with pytest.raises(EventPayloadError, match=r"payload\.token is not JSON"):
            emit_event("logged.in", payload=Login(user="u", token=token))
        yield {"user": "u"}
        yield {"token": token}

    with pytest.raises(NotJSONError):
        async for _ in items(SecretStr(CANARY)):
            pass
    (event,) = await get_client().read_events(EventFilter(names="logged.in"))
    assert event.payload == {"token": "**********", "several": ["**********"]}


JOBS = """
from pydantic import BaseModel, SecretStr

from asyncflow import flow, get_run_logger


class Login(BaseModel):
    user: str
    token: SecretStr


@flow(log_prints=True)
def main(token: SecretStr, login: Login, fail: bool = False) -> Login:
    print(token, login)
    get_run_logger().warning("with %s", login, extra={"login": login})
    if fail:
        raise ValueError(f"{token} {login!r}")
    return login
"""


def test_the_command_line(tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    shown: list[str] = []

    def command(*words: str) -> str:
        status = run_command(words)
        out, err = capfd.readouterr()
        shown.append(f"{status} {out} {err}")
        return out

    run = ("run", f"{tmp_path}/jobs.py:main", "--plain", "-p")
    login = f'login={{"user": "u", "token": "{CANARY}"}}'
    command(*run, f"token={CANARY}", "-p", login)
    command(*run, f"token={CANARY}", "-p", login, "-p", "fail=true", "--traceback")
    command(*run, f"tokn={CANARY}", "-p", login)
    command(*run, f'token=["{CANARY}"]', "-p", f'login="{CANARY}"')
    command(*run, f"token={CANARY}", "-p", login, "-p", "fail=perhaps")
    command("schema", f"{tmp_path}/jobs.py:main")
    runs = [each["id"] for each in json.loads(command("runs", "ls", "--json"))]
    assert len(runs) == 2
    for run_id in runs:
        for words in (("show",), ("show", "--json"), ("logs",), ("logs", "--json", "--traceback"), ("result",)):
            command("runs", words[0], run_id, *words[1:])
    command("runs", "resume", runs[0], "--code", f"{tmp_path}/jobs.py:main")
    command(
        "runs", "resume", runs[0], "--code", f"{tmp_path}/jobs.py:main", "--parameters", f'{{"token": ["{CANARY}"]}}'
    )
    command("doctor")
    assert [text for text in shown if found_in(text)] == []
    assert sum("**********" in text for text in shown) >= 10
