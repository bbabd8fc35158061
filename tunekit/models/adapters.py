"""The adapters of one model: which there are, which act, and what they remember of the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.methods.adapter import Adapter
from tunekit.methods.spec import PrefixTuning, PromptTuning
from tunekit.models.spec import HeadSpec

Named = str | Sequence[str] | Mapping[str, float]
"""One adapter, several, or several with a weight each."""


@dataclass(frozen=True, eq=False)
class SavedHead:
    """A head as it was when an adapter was last used with it."""

    labels: tuple[str, ...]
    spec: HeadSpec
    multi_label: bool
    values: Mapping[str, jax.Array]
    """Of its variables, by structural name."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One adapter of a model."""

    adapter: Adapter
    head: SavedHead | None = None
    """`None` while the model's present head is its own, or where there is none."""


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """The adapters by name. Never changed: a change is another set."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    active: tuple[tuple[str, float], ...] = ()
    """Names of those that act and the weight of each, an earlier one nearer to the layers."""
    before_merge: Mapping[str, jax.Array] = field(default_factory=dict)
    """The network's own values before active adapters were merged into it; empty: none are."""
    merged: tuple[tuple[str, float], ...] = ()
    """The adapters in the network's own values, and their weights."""

    def __getitem__(self, name: str) -> Entry:
        """Returns the adapter of that name.

        Raises:
            ModelError: there is none.
        """
        if name not in self.entries:
            have = ", ".join(map(repr, self.entries)) or "none"
            raise ModelError(
                f"the model has no adapter {name!r}; it has {have}."
                f"{did_you_mean(str(name), self.entries)}"
            )
        return self.entries[name]

    @property
    def acting(self) -> tuple[tuple[Adapter, float], ...]:
        """The active adapters and the weight of each."""
        return tuple((self.entries[name].adapter, weight) for name, weight in self.active)

    @property
    def by_prefix(self) -> dict[str, Adapter]:
        """The active adapters by the prefix of their values' names."""
        return {f"adapters/{name}": self.entries[name].adapter for name, _ in self.active}

    def with_entry(self, name: str, entry: Entry) -> AdapterSet:
        """Returns the set with `entry` under `name`."""
        return replace(self, entries={**self.entries, name: entry})

    def added(self, name: str, adapter: Adapter) -> AdapterSet:
        """Returns the set with a new adapter, which alone is active."""
        self.check_free(name)
        return replace(self.with_entry(name, Entry(adapter)), active=((name, 1.0),))

    def without(self, name: str) -> AdapterSet:
        """Returns the set without one adapter."""
        entry = self[name]
        if name in dict(self.merged):
            raise ModelError(f"adapter {name!r} is merged into the network; unmerge() it first.")
        entries = {other: e for other, e in self.entries.items() if e is not entry}
        active = tuple((other, weight) for other, weight in self.active if other != name)
        return replace(self, entries=entries, active=active)

    def activated(self, names: Named) -> AdapterSet:
        """Returns the set in which these adapters act.

        Raises:
            ModelError: there is no such adapter, one is named twice, or they cannot be weighted.
        """
        self.check_not_merged("set_adapter")
        weights = weights_of(names)
        for name, weight in weights.items():
            self[name].adapter.check_weight(weight)
        kinds = {type(self[name].adapter.spec) for name in weights}
        if {PromptTuning, PrefixTuning} <= kinds:
            raise ModelError(
                "a prompt and a prefix both claim the positions before the text, and cannot act "
                "together; activate one of them."
            )
        return replace(self, active=tuple(weights.items()))

    def check_free(self, name: str) -> None:
        """Passes where an adapter may be called `name`.

        Raises:
            ModelError: it is taken, or is no name.
        """
        self.check_not_merged("add_adapter")
        if not isinstance(name, str) or not name.strip() or "/" in name:
            raise ModelError(f"expected a name without '/' for the adapter, got {name!r}.")
        if name in self.entries:
            raise ModelError(
                f"the model has an adapter {name!r} already; choose another name, or "
                f"remove_adapter({name!r}) first."
            )

    def check_not_merged(self, action: str) -> None:
        """Passes while no adapter is merged into the network.

        Raises:
            ModelError: some are.
        """
        if self.merged:
            names = ", ".join(repr(name) for name, _ in self.merged)
            raise ModelError(f"{action}: {names} is merged into the network; unmerge() it first.")


def weights_of(names: Named) -> dict[str, float]:
    """Returns the adapters named and the weight of each.

    Raises:
        ModelError: one is named twice, or a weight is no finite number.
    """
    if isinstance(names, str):
        return {names: 1.0}
    if isinstance(names, Mapping):
        for name, weight in names.items():
            if not isinstance(weight, (int, float)) or not np.isfinite(weight):
                raise ModelError(f"adapter {name!r}: expected a number as weight, got {weight!r}.")
        return {name: float(weight) for name, weight in names.items()}
    names = list(names)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ModelError(f"the adapter {twice[0]!r} is named twice.")
    return dict.fromkeys(names, 1.0)


def described_head(head: SavedHead) -> dict[str, Any]:
    """Returns a head but its values, as JSON values."""
    return {
        "labels": list(head.labels),
        "spec": asdict(head.spec),
        "multi_label": head.multi_label,
    }


def head_from_json(
    description: Mapping[str, Any], values: Mapping[str, Any] | None = None
) -> SavedHead:
    """Returns the head that `described_head` gave, with these values."""
    return SavedHead(
        tuple(description["labels"]),
        head_spec_from_json(description["spec"]),
        description["multi_label"],
        values or {},
    )


def head_spec_from_json(description: Mapping[str, Any]) -> HeadSpec:
    """Returns the spec whose fields these are, lists for tuples."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description.items()
    }
    return HeadSpec(**fields)
