"""How values are written by something of the user's own, such as encryption, and read back.

A value that went through a codec is JSON all the same, so that whatever keeps or shows JSON takes
it: `{"codec": "fernet", "data": "gAAA..."}`, the data in base64. The spaces in it matter: what
asyncflow writes without a codec has none there, so a value of the user's that looks the same is
not taken for one that a codec wrote.
"""

from __future__ import annotations

from typing import Protocol

import orjson

from asyncflow.exceptions import CodecError

__all__ = ["Codec", "seal", "sealed_by", "unseal"]

_MARK = '{"codec": "'


class Codec(Protocol):
    """Writes the values of a runtime, and reads them back: encryption, for example.

    It is called in the store's writing thread (`encode`) and in worker threads (`decode`), never
    on an event loop. What it raises is a `CodecError` that names it. `encode` must not fail for
    one value and work for others: the store tries again until it works, and what was put after
    that value waits.
    """

    @property
    def name(self) -> str:
        """Stands beside every value it wrote, and tells whoever cannot read it what is missing."""
        ...

    def encode(self, data: bytes) -> bytes:
        """What is kept in place of `data`."""
        ...

    def decode(self, data: bytes) -> bytes:
        """What `encode` was given; raises anything when that cannot be had."""
        ...


def seal(text: str, codec: Codec, where: str) -> str:
    """`text`, the JSON of a value, as `codec` writes it; raises `CodecError` when it cannot."""
    from binascii import b2a_base64

    try:
        data = codec.encode(text.encode("utf-8", "backslashreplace"))
        encoded = b2a_base64(data, newline=False).decode()
    except Exception as error:
        raise CodecError("writing a result", where, f"the codec {codec.name!r} raised {error!r}") from error
    return f'{_MARK}{orjson.dumps(codec.name).decode()[1:]}, "data": "{encoded}"}}'


def sealed_by(text: str) -> str | None:
    """The name of the codec that wrote `text`; None when none did."""
    if not text.startswith(_MARK):
        return None
    try:
        name: object = orjson.loads(text)["codec"]
    except (ValueError, KeyError):
        return None
    return str(name)


def unseal(text: str, codec: Codec | None, where: str) -> str:
    """The JSON that was given to `seal`; what no codec wrote comes back as it is.

    Raises `CodecError` when another codec wrote it, or when `codec` cannot read it.
    """
    name = sealed_by(text)
    if name is None:
        return text
    if codec is None or codec.name != name:
        found = "it has none" if codec is None else f"it has {codec.name!r}"
        raise CodecError(
            "reading a result",
            where,
            f"the codec {name!r} wrote it: open the runtime with it, Runtime(codec=...); {found}",
        )
    from binascii import a2b_base64

    try:
        return codec.decode(a2b_base64(orjson.loads(text)["data"])).decode()
    except Exception as error:
        raise CodecError(
            "reading a result",
            where,
            f"the codec {name!r} could not read it ({error!r}): another key, or a changed file",
        ) from error
