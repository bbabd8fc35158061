"""The text of a recipe: YAML to plain values and back, and ``a.b.0=value`` over them.

Scalars follow YAML 1.2 and not the 1.1 of PyYAML, in which ``1e-4`` is text, ``no`` is false and
``1:30`` is ninety.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tunekit.errors import Issue

_TAG = "tag:yaml.org,2002:"
_BY_NAME = ("backbone",)
"""Sections of which an override of one word is the name, and leaves their other fields alone."""


@dataclass(frozen=True)
class _Scalar:
    """A type of YAML 1.2's core schema."""

    form: str
    """Regular expression of an unquoted value."""
    firsts: list[str]
    """What such a value can begin with; PyYAML files the empty one under the empty string."""
    read: Callable[[str], Any]


def _float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))


_SCALARS = {
    "null": _Scalar("~|null|Null|NULL|", ["~", "n", "N", ""], lambda _: None),
    "bool": _Scalar(
        "true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"
    ),
    "int": _Scalar("[-+]?[0-9]+", list("-+0123456789"), int),
    "float": _Scalar(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
        _float,
    ),
    "str": _Scalar("(?!)", [], str),
}


class _Loader(yaml.SafeLoader):
    """Knows the scalars above and no others."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML, 1.1 or 1.2, would read as something else than text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, values: Sequence[Any]) -> yaml.Node:
    nested = any(isinstance(value, (dict, list)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=not nested)


for _name, _scalar in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _form = re.compile(rf"^(?:{_scalar.form})$")
        _class.add_implicit_resolver(_TAG + _name, _form, _scalar.firsts)
_Dumper.add_representer(list, _represent_list)


def dump(tree: dict[str, Any]) -> str:
    """Returns `tree` as YAML that `parse` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse(text: str, issues: list[Issue], *, where: str) -> Any:
    """Returns the plain value that the YAML `text` says; what is wrong with it joins `issues`.

    Args:
        text: one YAML document; the empty one is `None`.
        issues: mistakes found so far.
        where: what the text is (a file's path, an override), for messages.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = "; ".join(filter(None, (error.context, error.problem)))
        issues.append(Issue("", f"{where}{line} is not YAML: {said}."))
        return None
    except yaml.reader.ReaderError as error:
        issues.append(Issue("", f"{where} is not YAML: {error.reason}, at {error.position}."))
        return None
    return None if node is None else _Reading(loader, issues).plain(node, "", ())


class _Reading:
    """One pass over the nodes of a document."""

    def __init__(self, loader: _Loader, issues: list[Issue]) -> None:
        self.loader = loader
        self.issues = issues

    def plain(self, node: yaml.Node, path: str, above: tuple[int, ...]) -> Any:
        if id(node) in above:
            self._complain(node, path, "an alias of what it stands in.")
            return None
        above = (*above, id(node))
        quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
        implied = self.loader.resolve(type(node), node.value, (not quoted, quoted))
        if node.tag not in (_TAG + "str", implied):
            self._complain(node, path, f"a recipe has no tags, got {node.tag!r}.")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, f"{path}[{i}]", above) for i, item in enumerate(node.value)]
        return _SCALARS[node.tag.removeprefix(_TAG)].read(node.value)

    def _mapping(self, node: yaml.MappingNode, path: str, above: tuple[int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not key:
                self._complain(key_node, path, "expected the name of a field before the colon.")
                continue
            here = f"{path}.{key}" if path else key
            if key in values:
                self._complain(key_node, here, "given a second time; keep one.")
            values[key] = self.plain(value_node, here, above)
        return values

    def _complain(self, node: yaml.Node, path: str, message: str) -> None:
        self.issues.append(Issue(path, f"line {node.start_mark.line + 1}: {message}"))


def override(tree: dict[str, Any], text: str, issues: list[Issue]) -> None:
    """Sets in `tree` what `text` says (``plan.0.epochs=2``); mistakes join `issues`.

    Whether the field exists is left to the recipe, which knows its fields.
    """
    path, equals, value_text = text.partition("=")
    path = re.sub(r"\[(-?\d+)\]", r".\1", path.strip())
    parts = path.split(".")
    if not equals or not all(parts):
        issues.append(
            Issue("", f"override {text!r} is not of the form path=value, such as plan.0.epochs=2.")
        )
        return
    before = len(issues)
    value = parse(value_text, issues, where=f"the value of override {text!r}")
    if len(issues) == before:
        parts += ["name"] if path in _BY_NAME and isinstance(value, str) else []
        _set(tree, parts, value, issues)


def _set(tree: dict[str, Any], parts: list[str], value: Any, issues: list[Issue]) -> None:
    here: Any = tree
    path = ""
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, dict):
            key: Any = part
            if not last and here.get(part) is None:
                here[part] = {}
        elif isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                issues.append(Issue(f"{path}[{part}]", _no_item(path, len(here))))
                return
            key = int(part)
        else:
            message = f"is {here!r} and has no field {part!r}; override {path} itself."
            issues.append(Issue(path, message))
            return
        path = f"{path}[{part}]" if isinstance(key, int) else f"{path}.{part}" if path else part
        if last:
            here[key] = value
        else:
            here = here[key]


def _no_item(path: str, length: int) -> str:
    held = {0: "no items", 1: "1 item, 0"}.get(length, f"{length} items, 0 to {length - 1}")
    return f"the override has no place: {path} has {held}."
