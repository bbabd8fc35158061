"""What is wrong with a recipe's values, in the recipe's own words and with its own paths."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tunekit.errors import Issue, did_you_mean

Keys = tuple[str | int, ...]
"""The way to a value: keys of mappings and indices of lists."""

PHASE = ""
"""Tag of a plan's item without the field `build`: a phase."""


def build_of(item: Any) -> str:
    """Returns the builder that an item of the plan, plain or not, is; or the tag of a phase."""
    if isinstance(item, dict):
        return str(item["build"]) if "build" in item else PHASE
    return getattr(item, "build", PHASE)


def dotted(keys: Keys) -> str:
    """Returns the path as it is written: ``plan[0].learning_rate``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def plain(value: Any, issues: list[Issue], keys: Keys = ()) -> Any:
    """Returns `value` as JSON has it; what JSON has no word for joins `issues` and is `None`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if callable(tolist := getattr(value, "tolist", None)):  # a NumPy array or scalar
        value = tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item, issues, (*keys, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, issues, (*keys, i)) for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        issues.append(Issue(dotted(keys), f"expected a finite number, got {value}."))
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    message = f"expected a plain value, as YAML has them, got a {type(value).__name__}."
    issues.append(Issue(dotted(keys), message))
    return None


def translate(
    errors: Sequence[Mapping[str, Any]], tree: Any, schema: Mapping[str, Any]
) -> list[tuple[Keys, str]]:
    """Returns pydantic's `errors` as one (place, message) per mistaken value.

    Args:
        errors: `ValidationError.errors()`.
        tree: the plain values that were validated.
        schema: the JSON schema of the recipe, for the names of fields.
    """
    placed = [(*_place(error, tree), error) for error in errors]
    found, within = [], _Within(schema, tree)
    for base, group in groupby(placed, key=lambda item: item[1]):
        members = list(group)
        # Of the alternatives of a union, the one that got further is the one that was meant.
        deeper = [member for member in members if len(member[0]) > len(base)]
        for keys, same in groupby(deeper or members, key=lambda item: item[0]):
            found.append((keys, _message([item[2] for item in same], keys, within)))
    # pydantic counts only the right items of a list: with a mistaken one it is too short besides.
    return [
        (keys, message)
        for keys, message in found
        if not any(other[: len(keys)] == keys and other != keys for other, _ in found)
    ]


def _place(error: Mapping[str, Any], tree: Any) -> tuple[Keys, Keys]:
    """Returns where the mistake is, and where the union that it is an alternative of begins."""
    keys: Keys = ()
    union: Keys | None = None
    location = error["loc"]
    for depth, part in enumerate(location):
        named = isinstance(tree, dict) and part in tree
        last = depth == len(location) - 1
        if isinstance(part, int) and isinstance(tree, list):
            if part >= len(tree):  # an item that is missing is the list's mistake
                break
            keys, tree = (*keys, part), tree[part]
        elif named or (last and error["type"] == "missing"):
            keys, tree = (*keys, part), tree.get(part)
        elif not (keys[:1] == ("plan",) and part == build_of(tree)):
            # pydantic's name for an alternative of a union, of which no field said which it is.
            union = keys if union is None else union
    if error["type"] == "union_tag_invalid":
        keys = (*keys, "build")
    return keys, keys if union is None else union


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dataclass_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "dataclass_exact_type": "a mapping of fields",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_too_short": "text that is not empty",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "missing": "a longer list",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
}


def _message(errors: Sequence[Mapping[str, Any]], keys: Keys, within: _Within) -> str:
    first = errors[0]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown(keys, within)
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        about = within.at(keys).get("description", "")
        return f"is required. {about}".rstrip()
    expected = dict.fromkeys(
        _EXPECTED[error["type"]].format(**error.get("ctx", {}))
        if error["type"] in _EXPECTED
        else error["msg"]
        for error in errors
    )
    value = first["input"]
    if first["type"] == "union_tag_invalid":
        value, expected = value["build"], dict.fromkeys(x.replace("'', ", "") for x in expected)
    literals = re.findall("'([^']*)'", " ".join(expected))
    return (
        f"expected {', or '.join(expected)}; got {json.dumps(value, ensure_ascii=False)}."
        f"{_hint(value, expected)}{did_you_mean(value, literals) if isinstance(value, str) else ''}"
    )


def _hint(value: Any, expected: Mapping[str, None]) -> str:
    if not isinstance(value, str):
        return " Quote it." if "text" in expected and not isinstance(value, (dict, list)) else ""
    if "true or false" in expected and value.lower() in ("yes", "no", "on", "off"):
        return f" Write {'true' if value.lower() in ('yes', 'on') else 'false'}."
    numeric = re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value)
    return " Leave the quotes out." if numeric and "number" in " ".join(expected) else ""


def _unknown(keys: Keys, within: _Within) -> str:
    name, parent = str(keys[-1]), keys[:-1]
    options = list(within.at(parent).get("properties", {}))
    holder = dotted(parent) or "a recipe"
    if hint := did_you_mean(name, options):
        return f"{holder} has no such field.{hint}"
    if keys[:1] == ("plan",) and len(keys) == 3:
        return _unknown_in_item(name, holder, options, within)
    homes = [home for home in within.all_fields() if home.rpartition(".")[2] == name]
    if homes:
        return f"{holder} has no such field; it belongs in {' or '.join(homes)}."
    return f"{holder} has no such field; it has {', '.join(options)}."


def _unknown_in_item(name: str, holder: str, options: list[str], within: _Within) -> str:
    """What to do with a field of a phase in a builder, and of a builder in a phase."""
    has = f"{holder} has no such field; it has {', '.join(options)}."
    if "build" in options:
        return f"{has} `tunekit plan-preview` writes its phases out, which have all fields."
    builders = [build for build, fields in within.builders() if name in fields]
    return f"{holder} has no such field; build: {' or '.join(builders)} has." if builders else has


@dataclass(frozen=True)
class _Within:
    """The JSON schema of recipes, beside the plain values that it is to describe."""

    schema: Mapping[str, Any]
    tree: Any

    def at(self, keys: Keys) -> Mapping[str, Any]:
        """Returns the part of the schema that describes the value at `keys`."""
        here: Mapping[str, Any] = self.schema
        value = self.tree
        for key in keys:
            here = self._resolved(here, value)
            if isinstance(value, list) and isinstance(key, int):
                value = value[key]
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
            here = (
                here["items"] if isinstance(key, int) else here.get("properties", {}).get(key, {})
            )
        return self._resolved(here, value)

    def all_fields(self) -> Iterator[str]:
        """Yields the place of every field of every section; in the plan, of a phase."""
        for section, part in self.schema["properties"].items():
            within = self._resolved(part, None)
            if "items" in part:
                section, within = f"{section}[0]", self._resolved(part["items"], None)
            yield from (f"{section}.{field}" for field in within.get("properties", {}))

    def builders(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yields the name and the fields of every builder of plans."""
        for part in self.schema["$defs"].values():
            if build := part["properties"].get("build"):
                yield build["const"], part["properties"]

    def _resolved(self, part: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
        """Returns `part` with its reference, or the alternative that is `value`'s, looked up."""
        wider = part.get("anyOf", ())
        nested = (option for each in wider for option in each.get("oneOf", ()))
        choices = [*part.get("oneOf", ()), *nested]
        for option in (part, *wider, *choices):
            if "$ref" not in option:
                continue
            found = self.schema["$defs"][option["$ref"].rpartition("/")[2]]
            if option not in choices or _is_of(found["properties"], value):
                return found
        return part


def _is_of(properties: Mapping[str, Any], value: Any) -> bool:
    """Whether `value` is of the alternative with these fields: by its builder, or its name."""
    named = properties.get("name", {})
    names = named.get("enum") or [named.get("const")]
    if names != [None]:
        return isinstance(value, Mapping) and value.get("name") in names
    return properties.get("build", {}).get("const", PHASE) == build_of(value)
