"""Names for flow runs that people can say and remember, derived from the run's id."""

from __future__ import annotations

__all__ = ["slug"]

_FIRST = (
    "able amber azure bold brave bright brisk calm candid clever cosy crisp dapper daring deft eager "
    "early easy exact fair fancy fleet fond frank fresh gentle glad golden grand green handy happy "
    "hardy honest humble jolly keen kind lively loyal lucid lucky mellow merry mild neat nimble noble "
    "patient plucky polite prime proud quick quiet rapid ready rosy royal sharp shiny silent silver smart"
).split()
_SECOND = (
    "ant badger bat bear beaver bee bison bobcat camel cat cheetah cobra condor crab crane crow deer "
    "dingo dove duck eagle egret elk falcon ferret finch fox gecko gnu goat goose gull hare hawk heron "
    "ibex ibis jay kite koala lark lemur llama lynx marmot marten mole moose moth newt otter owl panda "
    "perch puffin quail raven robin seal shrew stork swan tapir wren"
).split()


def slug(run_id: bytes) -> str:
    """Two words for an id: 4,096 pairs, so they help the eye and do not identify.

    Multiplying spreads the counter in the id over both lists: neighbours get unlike names.
    """
    number = int.from_bytes(run_id[4:12], "big") * 0x9E3779B97F4A7C15 >> 32
    return f"{_FIRST[number % len(_FIRST)]}-{_SECOND[number // len(_FIRST) % len(_SECOND)]}"
