"""Errors: what happened, what to do, and whether trying again can help."""

import copy
import inspect
import pickle

import pytest

from ruv_swarm_store import errors
from ruv_swarm_store.errors import Conflict, InvalidTransition, InvalidValue, LeaseLost, NotFound, StoreError, Unavailable

EVERY = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, StoreError)]


def test_a_message_says_what_happened_and_what_to_do() -> None:
    error = Conflict("stream 'a' is at version 2, not 1", hint="Read on from there", expected=1, actual=2)
    assert str(error) == "stream 'a' is at version 2, not 1. Read on from there"
    assert (error.message, error.hint, error.data) == (
        "stream 'a' is at version 2, not 1",
        "Read on from there",
        {"expected": 1, "actual": 2},
    )
    assert str(StoreError("nothing to add")) == "nothing to add"


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_survives_a_trip_to_another_process(kind: type[StoreError]) -> None:
    error = kind("what", hint="do", id="x", actual=2)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (twin.message, twin.hint, twin.data, str(twin)) == (error.message, error.hint, error.data, str(error))


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    assert issubclass(InvalidValue, ValueError)
    assert issubclass(NotFound, LookupError)
    assert issubclass(LeaseLost, Conflict)
    assert issubclass(InvalidTransition, Conflict)


def test_only_what_passes_by_itself_is_retryable() -> None:
    assert [kind for kind in EVERY if kind.retryable] == [Unavailable]
