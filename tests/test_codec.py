"""The codec: what is sealed reads back as it was sealed, and what cannot be is refused by its place."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruv_swarm_store import InvalidValue, codec

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(JSON)
def test_sealing_keeps_json_as_it_is(value: Any) -> None:
    copy, text = codec.seal(value, "it")
    assert repr(copy) == repr(value)
    assert repr(codec.decode(text)) == repr(value)
    assert repr(json.loads(text)) == repr(value)
    if isinstance(value, (list, dict)):
        assert copy is not value


@given(st.lists(JSON, max_size=8))
def test_sealing_many_is_sealing_each(values: list[Any]) -> None:
    copies, texts = codec.seal_many(values, "it")
    each = [codec.seal(value, "it") for value in values]
    assert repr(copies) == repr([copy for copy, _ in each])
    assert texts == [text for _, text in each]


ANYTHING = st.recursive(
    JSON | st.floats() | st.text(st.characters(codec=None)) | st.binary() | st.complex_numbers() | st.dates() | st.decimals(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(TEXT | st.integers() | st.none(), inner) | st.tuples(inner, inner) | st.sets(st.integers())
    ),
    max_leaves=10,
)


def plain(value: Any) -> Any:
    """The same with lists for tuples, or `TypeError` for what JSON cannot hold."""
    match value:
        case None | bool() | int():
            return value
        case float() if value == value and abs(value) != float("inf"):  # noqa: PLR0124
            return value
        case str() if "\0" not in value:
            value.encode()
            return value
        case list() | tuple():
            return [plain(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {plain(key): plain(item) for key, item in value.items()}
    raise TypeError(value)


@given(ANYTHING)
def test_whatever_is_sealed_is_unchanged_and_the_rest_is_refused(value: Any) -> None:
    try:
        expected = plain(value)
    except (TypeError, UnicodeEncodeError):
        for seal in (lambda: codec.seal(value, "it"), lambda: codec.seal_many([1, value], "it")):
            with pytest.raises(InvalidValue, match="it"):
                seal()
    else:
        assert repr(codec.seal(value, "it")[0]) == repr(expected)
        assert repr(codec.seal_many([1, value], "it")[0]) == repr([1, expected])


def test_the_place_of_the_trouble_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"payload\['a'\]\[1\]\['b'\] is a set") as caught:
        codec.seal({"a": [0, {"b": {1}}]}, "payload")
    assert "convert" in caught.value.hint
    with pytest.raises(InvalidValue, match=r"payload 2\['x'\]"):
        codec.seal_many([1, {"x": 1}, {"x": b""}], "payload")


@pytest.mark.parametrize("deep", [100, codec.DEPTH_LIMIT - 1])
def test_deep_is_fine_up_to_the_limit(deep: int) -> None:
    value: Any = 1
    for _ in range(deep):
        value = [value]
    assert codec.seal(value, "it")[0] == value
    assert codec.seal_many([value] * 3, "it")[0] == [value] * 3
    for _ in range(2 + codec.DEPTH_LIMIT - deep):
        value = [value]
    with pytest.raises(InvalidValue, match="nested"):
        codec.seal(value, "it")
    with pytest.raises(InvalidValue, match="nested"):
        codec.seal_many([1, value, 2], "it")


def test_wide_is_not_deep() -> None:
    value = [[[]] for _ in range(5_000)]
    assert codec.seal(value, "it")[0] == value
    assert codec.seal_many([value, value], "it")[0] == [value, value]


@given(st.integers() | st.booleans() | st.none() | st.floats() | st.text(max_size=3))
def test_whole_numbers_are_told_from_the_rest(value: Any) -> None:
    if type(value) is int and 0 <= value <= 100:
        assert codec.integer(value, "priority", 0, 100) == value
    else:
        with pytest.raises(InvalidValue, match="priority"):
            codec.integer(value, "priority", 0, 100)
