"""What may be stored: JSON values that come back exactly as they went in, and text every engine can hold."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from ruv_swarm_store.errors import InvalidValue

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

DEPTH_LIMIT = 500
"""Deepest nesting of lists and dicts accepted; well inside what every engine's JSON parser takes."""

_STACK_IS_THE_PAGE_S = sys.platform == "emscripten"
"""Where recursion in C that goes too deep ends the whole program instead of raising RecursionError."""

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_decode_lines = msgspec.json.Decoder().decode_lines
decode = msgspec.json.Decoder().decode
"""The value of JSON text. Raises `msgspec.DecodeError` for text that is not JSON."""


def encode(value: Any) -> str:
    """JSON text of a value that `seal` has accepted."""
    text = _encode(value)
    return (_encode(_spelled_out(value)) if _has_exponent(text) else text).decode()


_canonical = msgspec.json.Encoder(order="deterministic").encode


def canonical(values: Sequence[Any]) -> bytes:
    """JSON text of values from `decode_canonical`, text, whole numbers and None: the same whichever engine they were read from."""
    return _canonical(values)


def decode_canonical(text: str) -> Any:
    """`decode`, without what not every engine keeps: the sign of a zero. The order of keys is for `canonical` to settle."""
    value = decode(text)
    return _unsigned(value) if "-0" in text else value


def _unsigned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unsigned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unsigned(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


_e_and_digit = re.compile(rb"e[0-9]").search  # it begins with a letter, which is found at a third of the cost
_digit_e_and_digit = re.compile(rb"[0-9]e[0-9]").search


def _has_exponent(text: bytes) -> bool:
    """Whether there is a number such as 1e16, or text that looks like one."""
    return _e_and_digit(text) is not None and _digit_e_and_digit(text) is not None


def _has_nul(text: bytes) -> bool:
    """Whether there may be a NUL character in JSON text."""
    return b"\\" in text and b"\\u0000" in text


def _spelled_out(value: Any) -> Any:
    """`value` with its largest floats as 10000000000000000.0: a database that reads 1e16 may write a whole number, an integer here."""
    if isinstance(value, float) and abs(value) >= 1e15:
        return msgspec.Raw(f"{value:.1f}".encode())
    if isinstance(value, dict):
        return {key: _spelled_out(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled_out(item) for item in value]
    return value


def seal(value: Any, what: str) -> tuple[Any, str]:
    """An own copy of `value`, as reading it back will give it, and its JSON text; tuples become lists, and subclasses what they hold.

    Raises `InvalidValue` naming the place for whatever JSON cannot hold: NaN and infinities, keys that are not
    strings, bytes, sets, dates, other objects, NUL characters, unpaired surrogates, nesting beyond `DEPTH_LIMIT`.
    """
    if _STACK_IS_THE_PAGE_S and _is_deep(value, DEPTH_LIMIT):
        _check(value, what, 0)
    try:
        text = _encode(value)
        # One decode and one comparison, both in C, catch every silent change; only after one is the value walked. What most values
        # pass stands here rather than in functions: to call one takes longer than to look.
        if _e_and_digit(text) is not None and _has_exponent(text):
            text = _encode(_spelled_out(value))
        copy = decode(text)
        if (
            copy == value
            and (b"\\" not in text or not _has_nul(text))
            and (len(text) < 2 * DEPTH_LIMIT or text.count(b"[") + text.count(b"{") < DEPTH_LIMIT)
        ):
            return copy, text.decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass
    _check(value, what, 0)
    text = _encode(_spelled_out(_plain(value)))
    return decode(text), text.decode()


def _plain(value: Any) -> Any:
    """What `_check` has accepted, without the subclasses of text and numbers that the encoder does not take: numpy.float64 is one."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return {str.__str__(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]


def _is_deep(value: Any, limit: int) -> bool:
    """Whether a value is nested more than `limit` deep."""
    level = [value]
    for _ in range(limit + 2):
        level = [
            item for held in level if isinstance(held, (list, tuple, dict)) for item in (held.values() if isinstance(held, dict) else held)
        ]
        if not level:
            return False
    return True


def seal_many(values: Sequence[Any], what: str) -> tuple[list[Any], list[str]]:
    """`seal` for many values at once: the copies, and the texts."""
    try:
        if _STACK_IS_THE_PAGE_S and _is_deep(values, DEPTH_LIMIT):
            raise RecursionError
        lines = _encode_lines(values)
        copies = _decode_lines(lines)
        if (
            copies == values
            and not _has_exponent(lines)
            and not _has_nul(lines)
            and lines.count(b"[") + lines.count(b"{") < DEPTH_LIMIT * len(values)
        ):
            texts = lines.decode().split("\n")[:-1]  # compact JSON holds no newline
            if max(map(len, texts), default=0) < 2 * DEPTH_LIMIT:
                return copies, texts
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass
    sealed = [seal(value, f"{what} {index}") for index, value in enumerate(values)]
    return [copy for copy, _ in sealed], [text for _, text in sealed]


def text(value: str, what: str) -> str:
    """`value`, if it is text that every engine can hold; `InvalidValue` otherwise."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    if not isinstance(value, str):
        raise InvalidValue(f"{what} is a {type(value).__name__}", hint="Give a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidValue(f"{what} has an unpaired surrogate at {error.start}", hint="Give text that UTF-8 can hold") from error
    if "\0" in value:
        raise InvalidValue(f"{what} contains a NUL character", hint="Remove it: not every engine can store it in text")
    return value if type(value) is str else str.__str__(value)


def texts(values: Sequence[str], what: str) -> Sequence[str]:
    """`text` for many values at once."""
    if {*map(type, values)} == {str}:
        whole = "".join(values)
        if whole.isascii() and "\0" not in whole:
            return values
    return [text(value, what) for value in values]


def name(value: str, what: str) -> str:
    """`text`, if it is not empty."""
    if not (value := text(value, what)):
        raise InvalidValue(f"{what} is empty", hint="Give it a name")
    return value


def pairs(items: Iterable[tuple[A, B]], what: str) -> list[tuple[A, B]]:
    """Pairs to go through; `InvalidValue` for anything else."""
    given = list(listed(items, what))
    for item in given:
        if not isinstance(item, tuple) or len(item) != 2:
            raise InvalidValue(f"{what} has {item!r} in it", hint="Give pairs")
    return given


def reason(error: str | BaseException) -> str:
    """An error's text; an exception's is made storable whatever it holds or raises, for failing must not fail."""
    if not isinstance(error, BaseException):
        return text(error, "error")
    said = type(error).__name__
    with suppress(Exception):
        said = f"{said}: {error}"
    return said.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def listed(items: Iterable[T], what: str) -> Iterable[T]:
    """`items`, unless they are one text, each of whose characters would be taken for an item, or nothing to go through at all."""
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise InvalidValue(f"{what} is {items!r}", hint="Give a list")
    return items


def integer(value: int, what: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """`value`, if it is a whole number from `low` to `high`; `InvalidValue` otherwise."""
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValue(f"{what} is {value!r}", hint=f"Give a whole number from {low} to {high}")
    return int.__int__(value)


def real(value: float, what: str) -> float:
    """`value` as a finite float; `InvalidValue` for NaN, infinities and what is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(f"{what} is {value!r}", hint="Give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidValue(f"{what} is {value!r}", hint="Give a finite number: NaN and infinities poison every aggregate")
    return number + 0.0  # not every engine keeps the sign of zero


def _check(value: Any, where: str, depth: int) -> None:
    if depth > DEPTH_LIMIT:
        raise InvalidValue(f"{where[:80]}… is nested more than {DEPTH_LIMIT} deep", hint="Flatten the value")
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValue(f"{where} is {value}", hint="JSON has no NaN or infinity: use None or a string")
    elif isinstance(value, str):
        text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidValue(f"{where} has the key {key!r}", hint="JSON keys are strings")
            text(key, f"a key of {where}")
            _check(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]", depth + 1)
    else:
        raise InvalidValue(
            f"{where} is a {type(value).__name__}", hint="JSON holds None, bool, int, float, str, list and dict: convert it first"
        )
