"""Policies add up, read like what was written, and make keys of nothing but facts."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from asyncflow import task
from asyncflow._options import Kind, Options
from asyncflow._specs import Spec, make_spec
from asyncflow.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CachePolicy,
    KeyFacts,
    NoKey,
)
from asyncflow.exceptions import OptionError

ALL = {"INPUTS": INPUTS, "TASK_SOURCE": TASK_SOURCE, "FLOW_PARAMETERS": FLOW_PARAMETERS, "RUN_ID": RUN_ID}
FACTS = KeyFacts("module.load", inputs=b"i", source=b"s", flow_parameters=b"f", run_id=b"r")


def spec_of(fn: Any, **options: Any) -> Spec:
    return make_spec(Kind.TASK, fn, Options().changed(Kind.TASK, options))


def load(page: int, session: object = None) -> int:
    return page


# --- the algebra ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (INPUTS, "INPUTS"),
        (NO_CACHE, "NO_CACHE"),
        (DEFAULT, "INPUTS + TASK_SOURCE + RUN_ID"),
        (RUN_ID + INPUTS, "INPUTS + RUN_ID"),
        (INPUTS - "b" - "a" + RUN_ID, "INPUTS - 'a' - 'b' + RUN_ID"),
        (DEFAULT - "session", "INPUTS - 'session' + TASK_SOURCE + RUN_ID"),
    ],
)
def test_a_policy_reads_like_the_expression(policy: CachePolicy, text: str) -> None:
    assert repr(policy) == text
    assert eval(text, {**ALL, "NO_CACHE": NO_CACHE}) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_policies_add_up() -> None:
    for size in range(5):
        for some in itertools.permutations(ALL.values(), size):
            total = NO_CACHE
            for each in some:
                total = total + each
            assert total == sum(sorted(some, key=repr), NO_CACHE)
    assert INPUTS + INPUTS == INPUTS
    assert NO_CACHE + DEFAULT == DEFAULT + NO_CACHE == DEFAULT
    assert (INPUTS - "a") + (INPUTS - "b") == INPUTS - "a" - "b"
    assert not NO_CACHE
    assert INPUTS


def test_a_policy_never_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        INPUTS.parts = frozenset()  # type: ignore[misc]


def test_only_arguments_are_taken_out_and_by_name() -> None:
    with pytest.raises(OptionError, match="INPUTS is a part"):
        RUN_ID - "session"
    with pytest.raises(OptionError, match="the name of one argument"):
        INPUTS - INPUTS
    with pytest.raises(TypeError):
        INPUTS + "session"


# --- keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [c for size in range(1, 5) for c in itertools.combinations(ALL, size)])
def test_a_key_depends_on_what_counts_and_on_nothing_else(names: tuple[str, ...]) -> None:
    policy = sum((ALL[name] for name in names), NO_CACHE)
    fields = {"INPUTS": "inputs", "TASK_SOURCE": "source", "FLOW_PARAMETERS": "flow_parameters", "RUN_ID": "run_id"}
    key = policy.key(FACTS)
    assert key is not None
    assert key.startswith("module.load:")
    for name, field in fields.items():
        other: dict[str, Any] = {field: b"another"}
        missing: dict[str, Any] = {field: None}
        assert (policy.key(replace(FACTS, **other)) != key) == (name in names)
        assert (policy.key(replace(FACTS, **missing)) is None) == (name in names)
    assert policy.key(replace(FACTS, task_key="module.other")) != key


def test_no_two_policies_share_a_key() -> None:
    facts = KeyFacts("t", inputs=b"x", source=b"x", flow_parameters=b"x", run_id=b"x")
    combined = [sum(c, NO_CACHE) for size in range(1, 5) for c in itertools.combinations(ALL.values(), size)]
    assert len({policy.key(facts) for policy in combined}) == len(combined)


def test_no_policy_no_key() -> None:
    assert NO_CACHE.key(FACTS) is None


def test_a_key_stays_the_same() -> None:
    # Written down: a change of it would make every value that is cached on anybody's disk useless.
    assert INPUTS.key(FACTS) == "module.load:9a16c7d8012670153f21539d3a92e92c"


# --- options -------------------------------------------------------------------------------


def test_options_are_checked() -> None:
    for name, bad in [
        ("cache_policy", "INPUTS"),
        ("cache_key_fn", "key"),
        ("cache_expiration", -1),
        ("refresh_cache", "yes"),
        ("reuse_on_flow_retry", None),
        ("on_commit", load),
        ("on_rollback", ["hook"]),
    ]:
        with pytest.raises(OptionError, match=name):
            spec_of(load, **{name: bad})
    with pytest.raises(OptionError, match="resume"):
        Options().changed(Kind.FLOW, {"resume": "always"})
    with pytest.raises(TypeError, match="resume"):
        spec_of(load, resume="auto")


def test_an_async_key_function_is_refused() -> None:
    async def key(context: Any, arguments: dict[str, Any]) -> str:
        return "k"

    with pytest.raises(OptionError, match="plain function"):
        spec_of(load, cache_key_fn=key)


def test_a_policy_and_a_key_function_exclude_each_other() -> None:
    def key(context: Any, arguments: dict[str, Any]) -> str:
        return "k"

    with pytest.raises(OptionError, match="not both"):
        spec_of(load, cache_policy=INPUTS, cache_key_fn=key)
    options = Options().changed(Kind.TASK, {"cache_policy": INPUTS})
    with_key = options.changed(Kind.TASK, {"cache_key_fn": key})
    assert (with_key.cache_policy, with_key.cache_key_fn) == (None, key)
    assert with_key.changed(Kind.TASK, {"cache_policy": RUN_ID}).cache_key_fn is None


def test_a_value_that_is_not_kept_cannot_be_cached() -> None:
    with pytest.raises(OptionError, match="persist_result=False"):
        spec_of(load, cache_policy=INPUTS, persist_result=False)
    assert not spec_of(load, cache_policy=NO_CACHE, persist_result=False).options.is_cached


def test_what_is_cached_is_looked_at_before_and_after_its_body() -> None:
    for options in ({"cache_policy": INPUTS}, {"cache_key_fn": lambda context, arguments: "k"}):
        spec = spec_of(load, **options)
        assert spec.is_prepared
        assert spec.has_aftermath
    assert not spec_of(load, cache_policy=NO_CACHE).is_prepared
    assert not spec_of(load).is_prepared


# --- what is not in the key ----------------------------------------------------------------


def test_an_argument_that_is_taken_out_must_be_one() -> None:
    assert spec_of(load, cache_policy=INPUTS - "session").not_in_key == {"session"}
    with pytest.raises(OptionError, match=r"'page', 'session'.* not 'sesion'"):
        spec_of(load, cache_policy=INPUTS - "sesion")


class Client:
    def __init__(self, base: int = 0) -> None:
        self.base = base

    def fetch(self, page: int) -> int:
        return page

    def fetch_anyhow(self: NoKey[Client], page: int) -> int:
        return page

    @classmethod
    def make(cls, page: int) -> int:
        return page


def hinted(
    a: NoKey[Client],
    b: NoKey[Client] | None,
    c: NoKey[DefinedNowhere],  # type: ignore[name-defined]  # noqa: F821
    d: int,
    *args: NoKey[int],
    **kwargs: NoKey[int],
) -> None:
    """Its hints are text, as those of this whole module, and one of them cannot be resolved."""


def test_hints_say_what_is_not_in_the_key() -> None:
    assert spec_of(hinted).not_in_key == {"a", "b", "c", "args", "kwargs"}
    assert spec_of(load).not_in_key == set()
    arguments = {"a": 1, "b": 2, "c": 3, "d": 4, "args": (), "kwargs": {}}
    assert spec_of(hinted).keyed(arguments) == {"d": 4}


def test_what_a_callable_holds_identifies_a_call() -> None:
    from functools import partial

    client = Client()
    method = replace(make_spec(Kind.TASK, Client.fetch, Options(), skip_first=True), fn=client.fetch, is_bound=True)
    assert method.keyed({"page": 1}) == {"self": client, "page": 1}
    free = replace(make_spec(Kind.TASK, Client.fetch_anyhow, Options(), skip_first=True), fn=client.fetch_anyhow)
    assert free.keyed({"page": 1}) == {"page": 1}
    of_class = replace(
        make_spec(Kind.TASK, Client.__dict__["make"].__func__, Options(), skip_first=True), fn=Client.make
    )
    assert of_class.keyed({"page": 1}) == {"cls": f"{__name__}.Client", "page": 1}
    one, two = (spec_of(partial(load, number)) for number in (1, 2))
    assert one.keyed({}) != two.keyed({})
    arguments: dict[str, Any] = {"page": 1, "session": None}
    assert spec_of(load).keyed(arguments) is arguments


# --- what comes back -----------------------------------------------------------------------


def generates() -> Iterator[int]:  # type: ignore[name-defined]  # noqa: F821
    raise NotImplementedError


def test_the_type_of_what_comes_back() -> None:
    from collections.abc import AsyncIterator, Iterable

    async def agen() -> AsyncIterator[int]:
        yield 1

    def some() -> Iterable[str]:
        return []

    def bare():  # type: ignore[no-untyped-def]
        return 1

    def model() -> Client | None: ...

    assert spec_of(load).return_hint is int
    assert make_spec(Kind.TASK, some, Options(), namespace={"Iterable": Iterable}).return_hint == list[str]
    assert make_spec(Kind.TASK, agen, Options(), namespace={"AsyncIterator": AsyncIterator}).return_hint == list[int]
    assert spec_of(bare).return_hint is Any
    assert spec_of(generates).return_hint is Any
    assert spec_of(model).return_hint == Client | None
    assert spec_of(len).return_hint is Any


def test_a_task_keeps_no_more_of_its_neighbourhood_than_its_hints_name() -> None:
    import weakref

    class Neighbour:
        pass

    def declare() -> tuple[Any, Any, Any]:
        class Named:
            pass

        neighbour = Neighbour()

        @task
        def load() -> Named:
            return Named()

        return load, Named, weakref.ref(neighbour)

    load, named, seen = declare()
    assert seen() is None
    assert load.spec.return_hint is named
