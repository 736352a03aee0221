"""Strict JSON: frozen dataclasses to JSON values and back, with every field named, present and of its declared type.

What the standard library's parser lets through is refused here: NaN and infinities (RFC 8259 section 6 has none), numbers
that overflow to them, and names that stand twice in an object (section 4).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class RecordError(ValueError):
    """A document that is not what it must be; the message names the file and the field."""


def encode(value: object) -> Any:
    """The value as JSON values: a dataclass or mapping as an object, a tuple as a list."""
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: object, where: str) -> T:
    """Build ``kind`` (a dataclass) from JSON values; every nested field is checked against its annotation.

    ``float`` takes integers too, as JSON has one kind of number; ``object`` takes any JSON value.

    Raises:
        RecordError: a field is missing, unknown or of another type; the message opens with ``where`` and the field.
    """
    return typing.cast(T, _decode(kind, value, where, ""))


def parse(text: str, where: str) -> Any:
    """The JSON values of a document.

    Raises:
        RecordError: the text is not JSON or holds a name twice; ``decode`` refuses NaN and infinities by their field's name.
    """

    def once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"a name stands twice among {[name for name, _ in pairs]}")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not valid JSON: {error}") from None


def canonical(value: object) -> bytes:
    """The one spelling of a JSON value that is hashed: sorted names, no spaces, ASCII.

    Raises:
        ValueError, TypeError: the value has no JSON form.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _decode(kind: Any, value: object, where: str, field: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, where, field)
    if origin in (types.UnionType, typing.Union):
        (other,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(other, value, where, field)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise _error(where, field, f"one of {', '.join(arguments)}", value)
        return value
    if origin in (tuple, Mapping):
        return _container(origin, arguments, value, where, field)
    return _any(value, where, field) if kind is object else _scalar(kind, value, where, field)


def _container(origin: Any, arguments: tuple[Any, ...], value: object, where: str, field: str) -> Any:
    if origin is tuple:
        if not isinstance(value, list):
            raise _error(where, field, "a list", value)
        return tuple(_decode(arguments[0], item, where, f"{field}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, dict):
        raise _error(where, field, "an object", value)
    return {name: _decode(arguments[1], item, where, _join(field, name)) for name, item in _named(value, where, field)}


def _dataclass(kind: type, value: object, where: str, field: str) -> Any:
    if not isinstance(value, dict):
        raise _error(where, field or "the document", "an object", value)
    hints = _hints(kind)
    names = list(hints)
    if missing := [name for name in names if name not in value]:
        raise RecordError(f"{where}: {_join(field, missing[0])}: missing")
    if unknown := sorted(str(name) for name in value if name not in names):
        raise RecordError(f"{where}: {_join(field, unknown[0])}: unknown field")
    members = {name: _decode(hints[name], value[name], where, _join(field, name)) for name in names}
    try:
        return kind(**members)
    except RecordError as error:
        raise RecordError(f"{where}: {field + ': ' if field else ''}{error}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The type of each field, in their order; looking them up takes longer than all else here."""
    found = typing.get_type_hints(kind)
    return {member.name: found[member.name] for member in dataclasses.fields(kind)}


def _scalar(kind: type, value: object, where: str, field: str) -> Any:
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _error(where, field, "a finite number", value)
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _error(where, field, {int: "an integer", str: "a string", bool: "true or false"}[kind], value)
    return value


def _any(value: object, where: str, field: str) -> Any:
    match value:
        case dict():
            return {name: _any(item, where, _join(field, name)) for name, item in _named(value, where, field)}
        case list():
            return [_any(item, where, f"{field}[{index}]") for index, item in enumerate(value)]
        case None | bool() | str() | int():
            return value
        case _:
            return _scalar(float, value, where, field)


def _named(value: dict[Any, object], where: str, field: str) -> list[tuple[str, object]]:
    for name in value:
        if not isinstance(name, str):
            raise _error(where, field, "names that are strings", name)
    return list(value.items())


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _error(where: str, field: str, expected: str, found: object) -> RecordError:
    return RecordError(f"{where}: {field}: expected {expected}, found {type(found).__name__} {str(found)[:60]!r}")
