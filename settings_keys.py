"""The settings tree seen as dotted keys: which exist, what each takes and shows, which is nearest to a wrong one."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any, Final, cast, get_args

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from settings import Section, Settings

REDACTED: Final = "[redacted]"
_COMPARED_CHARS: Final = 80  # difflib is quadratic, and what comes in may be any length


@cache
def all_keys() -> tuple[str, ...]:
    """Every `section.key`, and `logging`, in the order of the tree."""
    keys: list[str] = []
    for name, field in Settings.model_fields.items():
        section = section_type(field)
        keys += [name] if section is None else [f"{name}.{key}" for key in section.model_fields]
    return tuple(keys)


def section_type(field: FieldInfo) -> type[Section] | None:
    """The model of a section; None for `logging`, which is set as a whole."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


@cache
def field_of(key: str) -> FieldInfo:
    """The field behind a key of `all_keys()`."""
    section_name, _, name = key.partition(".")
    section = section_type(Settings.model_fields[section_name])
    return Settings.model_fields[section_name] if section is None else section.model_fields[name]


def is_secret(key: str) -> bool:
    """Whether a key of `all_keys()` holds a secret: environment only, never shown."""
    annotation = field_of(key).annotation
    return SecretStr in (annotation, *get_args(annotation))


def shown(settings: Settings, key: str) -> str:
    """A key's value as JSON on one line, or `[redacted]`."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    if is_secret(key):
        return "null" if value is None else REDACTED
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True)
    return json.dumps(str(value) if isinstance(value, Path) else value)


@cache
def accepted(key: str) -> str:
    """What a key of `all_keys()` takes, in words."""
    if is_secret(key):
        return "a secret, from the environment only"
    section_name, _, name = key.partition(".")
    section = section_type(Settings.model_fields[section_name])
    if section is None:
        return "an object as in the admin guide's logging block, or null"
    return in_words(section.model_json_schema()["properties"][name])


def in_words(schema: dict[str, Any]) -> str:
    """What a JSON schema of one value allows."""
    if "anyOf" in schema:
        parts = [in_words(part | {"takes": schema.get("takes")}) for part in schema["anyOf"]]
        return " or ".join(parts)
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type", "object")  # a nested model is a reference
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range_in_words(schema)
    if kind == "string":
        return "a path" if schema.get("format") == "path" else schema.get("takes") or "text"
    return {"boolean": "true or false", "array": "a list of texts", "object": "an object", "null": "null"}[kind]


def _range_in_words(schema: dict[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
    figures = {bound: schema[bound] for bound in words if bound in schema}
    return "".join(f" {words[b]} {int(n) if n == int(n) else n}" for b, n in figures.items())


def nearest_key(key: str) -> str:
    """The key that was most likely meant; a section when only a section was written."""
    key = key[:_COMPARED_CHARS]
    section, _, name = key.partition(".")
    same_section = [known for known in all_keys() if name and known.startswith(f"{section}.")]
    close = difflib.get_close_matches(key, same_section, 1, 0.75)
    wanted = name or section
    by_name = difflib.get_close_matches(wanted, [known.rpartition(".")[2] for known in all_keys()], 1, 0.8)
    if not close and by_name:
        close = [known for known in all_keys() if known.rpartition(".")[2] == by_name[0]]
    candidates = all_keys() if name or key in Settings.model_fields else tuple(Settings.model_fields)
    return (close or difflib.get_close_matches(key, candidates, 1, 0.0))[0]


def nearest_inside(location: tuple[str | int, ...]) -> str:
    """The nearest key beside a wrong one deep in the logging block."""
    kind: Any = Settings
    for part in location[:-1]:
        is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
        by_alias = {field.alias or name: field for name, field in (kind.model_fields if is_model else {}).items()}
        if part in by_alias:
            kind = by_alias[str(part)].annotation
            # Through `X | None` and `dict[str, X]` to the X whose keys are meant.
            kind = next((arg for arg in get_args(kind) if arg is not type(None) and arg is not str), kind)
    names = [field.alias or name for name, field in cast(type[BaseModel], kind).model_fields.items()]
    best = difflib.get_close_matches(str(location[-1])[:_COMPARED_CHARS], names, 1, 0.0)[0]
    return ".".join([one_line(part) for part in location[:-1]] + [best])


def one_line(value: object) -> str:
    """A value for a message: one line, at most 80 characters, nothing that moves a cursor."""
    text = value if isinstance(value, str) else repr(value)
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    return plain if len(plain) <= 80 else plain[:77] + "..."
