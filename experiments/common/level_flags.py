"""The flag --levels: levels on a pre-trained model, in a short form or from JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from nl_jax import InputError
from nl_jax.pretrained.stacked_level import StackedLevel

KEYS = {"rate": "learning_rate"}  # short names
NUMBERS = {"period": int, "learning_rate": float, "retention": float, "ridge": float, "rank": int}
FIELDS = tuple(field.name for field in dataclasses.fields(StackedLevel))
EXPECTED = "expected NAME:key=value,... with levels separated by ';', such as 'fast:blocks=-4..-1;slow:period=8'"


def define_levels_flag(values: flags.FlagValues) -> None:
    """Adds --levels."""
    text = (
        "Levels, separated by ';', each as NAME:key=value,... with the keys period, rate, blocks (-4..-1 or 3+7), "
        "matrices (gate+up+down), units (0..0.5), rule, rank, ridge, retention, protects (true or false); or PATH.json "
        "with a list of objects. "
        "By default one level on the last blocks."
    )
    flags.DEFINE_string("levels", "", text, flag_values=values)


def levels_of(text: str) -> list[StackedLevel] | None:
    """The levels that the flag gives; None for no text.

    Raises:
        InputError: for another form, an unknown key or a bad value; the message names the level and the key.
    """
    if not text:
        return None
    try:
        given = _from_json(text) if text.endswith(".json") else [_from_text(part) for part in text.split(";")]
        return [_level(fields) for fields in given]
    except InputError as error:
        raise InputError(f"--levels={text}: {error}") from error


def fields_of(levels: Sequence[StackedLevel] | None) -> list[dict[str, Any]] | None:
    """Levels as they are written to config.json; runs of earlier versions know nothing of protection."""
    if levels is None:
        return None
    return [
        {name: value for name, value in dataclasses.asdict(level).items() if name != "protects" or value}
        for level in levels
    ]


def _from_json(path: str) -> list[Any]:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error}); expected a JSON list of levels") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError("expected a JSON list of objects, one for each level")
    return content


def _from_text(part: str) -> dict[str, Any]:
    name, _, options = part.strip().partition(":")
    if not name or "=" in name:
        raise InputError(f"level {part.strip()!r} has no name; {EXPECTED}")
    fields: dict[str, Any] = {"name": name}
    for option in filter(None, options.split(",")):
        key, equals, value = (word.strip() for word in option.partition("="))
        if not equals:
            raise InputError(f"level {name!r}: {option!r}; {EXPECTED}")
        fields[KEYS.get(key, key)] = value
    return fields


def _level(given: Mapping[str, Any]) -> StackedLevel:
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise InputError("a level has no name; expected one for each")
    fields: dict[str, Any] = {}
    for key, value in given.items():
        if key not in FIELDS:
            raise InputError(f"level {name!r}: unknown key {key!r}; expected {', '.join(FIELDS)}")
        try:
            fields[key] = _value(key, value)
        except (TypeError, ValueError, KeyError):
            raise InputError(f"level {name!r}: {key}={value!r}; expected {_form(key)}") from None
    return StackedLevel(**fields)


def _value(key: str, value: Any) -> Any:
    """The value of a field, from text or from JSON."""
    if key in NUMBERS:
        if value is None and key == "rank":
            return None
        if isinstance(value, bool) or (NUMBERS[key] is int and isinstance(value, float)):
            raise ValueError
        if key == "period" and int(value) < 1:
            raise ValueError
        return NUMBERS[key](value)
    if key == "protects":
        return {"true": True, "false": False}[str(value).lower()]
    if key == "blocks":
        return _integers(value) if isinstance(value, str) else tuple(map(int, value))
    if key == "matrices":
        return tuple(value.split("+")) if isinstance(value, str) else tuple(map(str, value))
    if key == "units":
        low, high = value.split("..") if isinstance(value, str) else value
        return float(low), float(high)
    return str(value)


def _integers(text: str) -> tuple[int, ...]:
    """Numbers and ranges, as in ``0..3+7``; both ends of a range belong to it."""
    found: list[int] = []
    for part in text.split("+"):
        low, dots, high = part.partition("..")
        found += range(int(low), int(high) + 1) if dots else [int(low)]
    return tuple(found)


def _form(key: str) -> str:
    forms = {
        "blocks": "block numbers, such as -4..-1 or 3+7",
        "units": "two fractions, such as 0..0.5",
        "protects": "true or false",
    }
    number = "a whole number of at least 1" if NUMBERS.get(key) is int else "a number"
    return forms.get(key, number if key in NUMBERS else "names joined by '+'")
