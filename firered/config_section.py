"""One object of a JSON configuration file, read value by value.

Each getter names the file, the dotted key, what was expected and what was found when a value cannot be used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from firered.errors import CheckpointError


def read_json_object(path: Path) -> Section:
    """The top object of a JSON file; CheckpointError when it cannot be read or is something else."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}", expected="a JSON file") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested without end
        raise CheckpointError(path, f"is not JSON: {error}", expected="a JSON object") from error
    if not isinstance(values, dict):
        raise CheckpointError(path, "is not a JSON object", expected="a JSON object", found=type(values).__name__)
    return Section(path, "", values)


class Section:
    """An object of the file under a dotted name; the top object has the name ""."""

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self._path = path
        self._name = name
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fail(self, key: str, problem: str, *, expected: str, found: str = "") -> NoReturn:
        """Raise the error about `key` of this section."""
        raise CheckpointError(self._path, problem, key=self._dotted(key), expected=expected, found=found)

    def section(self, key: str) -> Section:
        """The object under `key`; an empty one (all defaults) when the file has none."""
        values = self._values.get(key, {})
        if not isinstance(values, dict):
            self.fail(key, "is not an object", expected="a JSON object", found=_shown(values))
        return Section(self._path, self._dotted(key), values)

    def first_section(self, *keys: str) -> Section:
        """The object under the first of `keys` that the file has; there must be one."""
        present = [key for key in keys if key in self._values]
        if not present:
            found = ", ".join(sorted(self._values)) or "an empty object"
            self.fail(keys[0], "is missing", expected=" or ".join(f'"{key}"' for key in keys), found=found)
        return self.section(present[0])

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1; `default` None: the file must have it."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(key, "is out of range", expected="a whole number of at least 1", found=_shown(value))
        return value

    def number(self, key: str, default: float, *, minimum: float, inclusive: bool = False) -> float:
        """A finite number above `minimum` (or equal to it where `inclusive`)."""
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < minimum or (value == minimum and not inclusive):
            bound = "of at least" if inclusive else "above"
            self.fail(key, "is out of range", expected=f"a number {bound} {minimum:g}", found=_shown(value))
        return float(value)

    def string(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.fail(key, "is not a string", expected="a string", found=_shown(value))
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.fail(key, "is not a truth value", expected="true or false", found=_shown(value))
        return value

    def require_divides(self, divisor_key: str, divisor: int, key: str, value: int) -> None:
        """Fail about `divisor_key` unless `divisor` divides `value`, the value of `key`."""
        if value % divisor:
            self.fail(divisor_key, f"does not divide {key}", expected=f"a divisor of {value}", found=str(divisor))

    def require_equal(self, key: str, value: int, other_key: str, other: int) -> None:
        """Fail about `key` unless its value is that of `other_key` (dotted, of any section)."""
        if value != other:
            self.fail(key, f"does not fit {other_key}", expected=str(other), found=str(value))

    def _value(self, key: str, default: Any) -> Any:
        if key in self._values:
            return self._values[key]
        if default is None:
            found = ", ".join(sorted(self._values)) or "an empty object"
            self.fail(key, "is missing", expected="a value (it has no default)", found=found)
        return default

    def _dotted(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
