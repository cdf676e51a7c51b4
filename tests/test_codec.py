"""Values that a codec writes: nothing of them anywhere in the clear, and one clear error without the codec."""

from __future__ import annotations

import base64
import importlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._backend.inline import InlineHost, drive
from asyncflow._rows import FLOW, CachedRow, RunRow
from asyncflow.clock import SystemClock
from asyncflow.codecs import Codec, seal, sealed_by, unseal
from asyncflow.exceptions import StoreError
from asyncflow.ids import new_id
from asyncflow.results import DictStorage, FileResults
from asyncflow.serializers import encode
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import LiveRun, Waiter, read_result, run_row

SECRET = "correct horse battery staple"  # what must not be found


class XOR:
    """As little of a cipher as shows what goes through it, and where."""

    def __init__(self, key: int = 0x5A, name: str = "xor") -> None:
        self.name = name
        self.key = key
        self.threads: set[str] = set()

    def encode(self, data: bytes) -> bytes:
        self.threads.add(threading.current_thread().name)
        return bytes([self.key]) + bytes(byte ^ self.key for byte in data)

    def decode(self, data: bytes) -> bytes:
        if data[0] != self.key:
            raise ValueError("another key")
        return bytes(byte ^ self.key for byte in data[1:])


class FernetCodec:
    """The example in docs/storage.md."""

    name = "fernet"

    def __init__(self, key: bytes) -> None:
        self._fernet: Any = importlib.import_module("cryptography.fernet").Fernet(key)

    def encode(self, data: bytes) -> bytes:
        return bytes(self._fernet.encrypt(data))

    def decode(self, data: bytes) -> bytes:
        return bytes(self._fernet.decrypt(data))


def fernet() -> FernetCodec:
    pytest.importorskip("cryptography.fernet")
    return FernetCodec(base64.urlsafe_b64encode(bytes(range(32))))


def xor() -> XOR:
    return XOR()


MAKERS: list[Callable[[], Codec]] = [xor, fernet]


@pytest.fixture
def store(home: Path) -> Iterator[Callable[[FileResults], SQLiteStore]]:
    opened: list[SQLiteStore] = []

    def open_store(results: FileResults) -> SQLiteStore:
        opened.append(SQLiteStore(home, Settings(home=home), results))
        return opened[-1]

    yield open_store
    for each in opened:
        each.close()


def record(store: SQLiteStore, root: RunRow, *below: RunRow) -> None:
    waiter = Waiter()
    for row in (root, *below):
        store.put(LiveRun(row._replace(owner=store.owner), root_id=root.id))
    store.confirm(waiter.ticket())
    (ticket,) = waiter.wait()
    assert ticket.error is None


# --- the whole way ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_no_value_is_anywhere_in_the_clear(
    home: Path, store: Callable[[FileResults], SQLiteStore], make: Callable[[], Codec]
) -> None:
    codec = make()
    results = FileResults(home, codec=codec)
    opened = store(results)
    small, big = encode({"password": SECRET}), encode([SECRET] * 5_000)
    root = run_row(kind=FLOW, result=small)
    below = [run_row(parent_id=root.id, result=small), run_row(parent_id=root.id, result=big)]
    other = run_row(result=big)
    record(opened, root, *below)
    record(opened, other)
    opened.write_cached(CachedRow("key", "shop.fetch", root.id, 1, None, small, None))
    opened.close()  # everything is in files
    written = [path for path in home.rglob("*") if path.is_file()]
    assert {"asyncflow.db", "tasks.jsonl", "result.json"} <= {path.name for path in written}
    for path in written:
        data = path.read_bytes()
        assert SECRET.encode() not in data, path
        assert base64.b64encode(SECRET.encode())[4:-4] not in data, path

    again = store(FileResults(home, codec=codec))
    expected = {root.id: small, below[0].id: small, below[1].id: big, other.id: big}
    for run_id, text in expected.items():
        row = again.read_run(run_id)
        assert row is not None
        assert read_result(FileResults(home, codec=codec), row) == text
    cached = again.read_cached("key")
    assert cached is not None
    assert drive(results.read(cached, InlineHost(SystemClock()))) == small


def test_every_recorded_form_is_json_that_names_the_codec(home: Path) -> None:
    home.mkdir()
    results = FileResults(home, codec=XOR())
    root, below, big = run_row(result='"a"'), run_row(result='"b"'), run_row(result=json.dumps("c" * 70_000))
    rows = results.write([(root.id, each) for each in (root, below, big)])
    results.publish([(root.id, row) for row in rows])
    (folder,) = (home / "results").iterdir()
    lines = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
    sealed = [
        json.loads(rows[0].result or ""),
        json.loads((folder / "result.json").read_text()),
        lines[0]["result"],
        json.loads((home / lines[1]["result_file"]["path"]).read_text()),
    ]
    for each in sealed:
        assert each.keys() == {"codec", "data"}
        assert each["codec"] == "xor"
    assert sealed[0] == sealed[1]
    assert XOR().decode(base64.b64decode(sealed[2]["data"])) == b'"b"'


def test_values_are_encoded_in_the_writers_thread(home: Path, store: Callable[[FileResults], SQLiteStore]) -> None:
    codec = XOR()
    record(store(FileResults(home, codec=codec)), run_row(result="1"))
    assert codec.threads == {"asyncflow-writer"}


async def test_values_are_decoded_where_it_blocks_no_loop(home: Path) -> None:
    codec = XOR()
    home.mkdir()
    results = FileResults(home, codec=codec)
    row = run_row(result="1")
    (stored,) = results.write([(row.id, row)])
    calls: list[Callable[[], Any]] = []

    class Reader(InlineHost):
        async def run_blocking(self, fn: Callable[[], Any]) -> Any:
            calls.append(fn)
            return fn()

    assert await results.read(stored, Reader(SystemClock())) == "1"
    assert len(calls) == 1


def test_a_codec_and_a_storage_go_together(home: Path) -> None:
    storage = DictStorage()
    results = FileResults(home, codec=XOR(), storage=storage)
    row = run_row(result=encode([SECRET] * 5_000))
    (stored,) = results.write([(row.id, row)])
    (data,) = storage.data.values()
    assert SECRET.encode() not in data
    assert read_result(results, stored) == row.result


# --- without it ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize(
    ("other", "found"), [(None, "it has none"), (XOR(name="rot13"), "it has 'rot13'"), (XOR(key=1), "another key")]
)
def test_reading_without_the_right_codec_is_one_error_that_names_it(
    home: Path, size: int, other: Codec | None, found: str
) -> None:
    home.mkdir()
    row = run_row(result=json.dumps("x" * size))
    (stored,) = FileResults(home, codec=XOR()).write([(row.id, row)])
    with pytest.raises(StoreError, match=f"the codec 'xor' .*{found}"):
        read_result(FileResults(home, codec=other), stored)


def test_what_was_written_before_there_was_a_codec_is_read(home: Path) -> None:
    home.mkdir()
    row = run_row(result='{"a":1}')
    assert FileResults(home).write([(row.id, row)]) == [row]
    assert read_result(FileResults(home, codec=XOR()), row) == '{"a":1}'


@pytest.mark.parametrize("value", [{"codec": "xor", "data": "aGk="}, {"codec": "xor"}, '{"codec": "xor"}'])
def test_a_value_that_looks_like_a_codecs_is_a_value(home: Path, value: object) -> None:
    home.mkdir()
    row = run_row(result=encode(value))
    for codec in (None, XOR()):
        results = FileResults(home, codec=codec)
        (stored,) = results.write([(row.id, row)])
        assert read_result(results, stored) == row.result


def test_a_codec_that_fails_keeps_the_value_from_being_written(home: Path) -> None:
    class Broken(XOR):
        def encode(self, data: bytes) -> bytes:
            raise ConnectionError("the key service is away")

    home.mkdir()
    results = FileResults(home, codec=Broken())
    row = run_row(result='"x"')
    with pytest.raises(StoreError, match=r"the codec 'xor' raised ConnectionError.*key service"):
        results.write([(row.id, row)])
    with pytest.raises(StoreError, match="the codec 'xor' raised"):
        results.write_cached(CachedRow("key", "t", row.id, 1, None, '"x"', None))
    assert list(home.rglob("*.json")) == []


# --- the parts -------------------------------------------------------------------------------


@given(st.text(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 255))
def test_what_is_sealed_is_unsealed(text: str, name: str, key: int) -> None:
    codec = XOR(key, name)
    sealed = seal(text, codec, "here")
    assert sealed_by(sealed) == name
    assert json.loads(sealed).keys() == {"codec", "data"}
    assert unseal(sealed, codec, "here") == text.encode("utf-8", "backslashreplace").decode()


@given(st.text())
def test_any_text_at_all_is_unsealed_or_refused(text: str) -> None:
    for sealed in (text, '{"codec": "' + text, '{"codec": "xor", "data": ' + json.dumps(text) + "}"):
        try:
            unseal(sealed, XOR(), "here")
        except StoreError as error:
            assert "the codec" in str(error)  # noqa: PT017  # not every text is refused


def test_ids_of_runs_are_in_the_error(home: Path) -> None:
    row = CachedRow("the key", "t", new_id(), 1, None, seal("1", XOR(), ""), None)
    with pytest.raises(StoreError, match="cache key 'the key'"):
        drive(FileResults(home).read(row, InlineHost(SystemClock())))
