"""The door to texts: opens whatever holds them as checked sources of one kind of examples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunekit.data.examples import Splits, data_error, in_order, listed
from tunekit.data.mixture import mixed
from tunekit.data.preflight import model_label_issues, too_few_to_split
from tunekit.data.rows import SPLIT_NAMES, Rows
from tunekit.data.spec import DataSpec
from tunekit.data.stratify import draw, split
from tunekit.data.text_checks import check_texts
from tunekit.data.text_examples import TextSource, source_of
from tunekit.data.text_files import path_rows
from tunekit.data.text_kinds import TextKind
from tunekit.data.text_recognition import recognised
from tunekit.data.text_scan import Scan, scan
from tunekit.data.text_values import value_rows
from tunekit.errors import DataError, Issue, did_you_mean

__all__ = ["TextKind", "TextSource", "open_text", "open_text_examples", "recognised"]

_SPLIT_OF = {alias: name for name, aliases in SPLIT_NAMES.items() for alias in aliases}


def open_text(data: Any, spec: DataSpec, kind: TextKind, *, seed: int) -> Splits:
    """Returns checked training, validation and test sources; see `TextSource` for their examples.

    Args:
        data: a path; a list of dicts, or of strings; (texts, labels); a dict of those by split; a
            TextSource or Splits of them. None takes `spec.path`.
        spec: how to read and split it.
        kind: what is to be learned of each row.
        seed: fixes the validation split, `max_examples` and the draw of `mix` where the spec has
            no `split_seed`.

    Raises:
        DataError: lists everything that is wrong with the data.
    """
    seed = seed if spec.split_seed is None else spec.split_seed
    issues: list[Issue] = []
    sources = _given(data, kind)
    if not sources:
        scans = _scans(spec.path if data is None else data, spec, kind, issues)
        sources = _bound(scans, spec, kind)
    if "train" not in sources:
        raise DataError(f"data: expected a split named train, got {listed(list(sources))}")
    if issues and not all(len(source) for source in sources.values()):
        raise data_error(issues)  # bad rows say why a split is empty
    if spec.max_examples is not None:
        sources = {name: _drawn(one, spec.max_examples, seed) for name, one in sources.items()}
    if "validation" not in sources and spec.validation_fraction > 0 and len(sources["train"]):
        issues += too_few_to_split(sources["train"]) if kind == "labelled" else []
        sources |= _held_out(sources["train"], spec.validation_fraction, seed)
    issues += check_texts(sources, spec)
    if spec.mix and not issues and not isinstance(data, Splits):  # those were mixed before
        judged = [one.digests for name, one in sources.items() if name != "train"]
        others = [_mixed_in(i, spec, sources["train"], issues) for i in range(len(spec.mix))]
        weights = [one.weight for one in spec.mix]
        if not issues:
            sources["train"] = mixed(sources["train"], others, weights, judged, seed)
    if issues:
        raise data_error(issues)
    return Splits(**sources)


def open_text_examples(
    data: Any, labels: tuple[str, ...], spec: DataSpec, kind: TextKind
) -> TextSource:
    """Returns checked examples to evaluate a model on whose labels are `labels`.

    Args:
        data: a path to examples that are not divided in splits, or what `open_text` takes for one.
        labels: the model's label names, in the order of its outputs; empty for kinds without.
        spec: columns and the like; its splits and label order are not used.
        kind: what the model learned of each row.

    Raises:
        DataError: lists everything that is wrong with the data.
    """
    if kind not in ("labelled", "tagged"):
        labels = ()  # The outputs of other tasks have names too, which no row does.
    spec = replace(spec, labels=tuple(labels) or None, train=None, validation=None, test=None)
    issues: list[Issue] = []
    if isinstance(data, TextSource):
        source = _given(data, kind)["train"]
    else:
        scanned = scan(_one(data, spec, kind, "data"), kind, spec)
        _tell(scanned, spec, "data", issues)
        source = _bound({"train": scanned}, spec, kind)["train"]
    issues += model_label_issues(source, labels)
    if not len(source) and not issues:
        issues.append(Issue("data", "has no examples"))
    if issues:
        raise data_error(issues)
    return source


def _given(data: Any, kind: TextKind) -> dict[str, TextSource]:
    """Returns the sources that the data are, by split; empty where they are to be opened.

    Raises:
        DataError: they are of another kind; plain texts may stand among dialogues.
    """
    if isinstance(data, Splits):
        data = dict(data.items())
    if isinstance(data, TextSource):
        data = {"train": data}
    if not isinstance(data, Mapping):
        return {}
    found = {name: one for name, one in data.items() if isinstance(one, TextSource)}
    if len(found) < len(data):
        return {}
    for name, one in found.items():
        if one.kind != kind and (one.kind, kind) != ("plain", "dialogue"):
            expected = f"expected examples that are {kind}, got a source of {one.kind} ones"
            raise DataError(f"data.{name}: {expected}; open its file again")
    return {_split_name(name): one for name, one in found.items()}


def _scans(data: Any, spec: DataSpec, kind: TextKind, issues: list[Issue]) -> dict[str, Scan]:
    if isinstance(data, Mapping):
        rows = {
            _split_name(name): _one(value, spec, kind, f"data.{name}")
            for name, value in data.items()
        }
    elif isinstance(data, (str, Path)):
        rows = path_rows(data, spec, tagged=kind == "tagged")
    else:
        rows = {"train": value_rows(data, kind, "data")}
    scans = {name: scan(one, kind, spec) for name, one in rows.items()}
    for name in [name for name, found in scans.items() if found.unlabelled and name != "train"]:
        del scans[name]
        message = f"data.{name}: none of its {len(rows[name])} rows has a label, so it is not used"
        warnings.warn(message, stacklevel=3)
    for name, found in scans.items():
        _tell(found, spec, f"data.{name}", issues)
    return scans


def _one(data: Any, spec: DataSpec, kind: TextKind, where: str) -> Rows:
    """Returns rows that are one split."""
    if not isinstance(data, (str, Path)):
        return value_rows(data, kind, where)
    found = path_rows(data, spec, tagged=kind == "tagged")
    if len(found) > 1:
        raise DataError(f"{where}: {data} holds splits ({listed(list(found))}); name one of them")
    return found["train"]


def _tell(found: Scan, spec: DataSpec, where: str, issues: list[Issue]) -> None:
    """Adds an issue of the rows that cannot be read, or warns that they are skipped."""
    if found.bad_count and spec.on_unreadable == "error":
        issues += found.issues(where)
    elif found.bad_count:
        reasons = listed([f"{name} ({reason})" for name, reason in found.bad])
        count = f"skipped {found.bad_count} of {len(found.rows)} rows that cannot be read"
        warnings.warn(f"{where}: {count}: {reasons}", stacklevel=4)


def _bound(scans: dict[str, Scan], spec: DataSpec, kind: TextKind) -> dict[str, TextSource]:
    train = scans.get("train")
    names: tuple[str, ...] = ()
    if train is not None and kind in ("labelled", "tagged"):
        names = spec.labels or train.rows.reader.declared or _in_order(train.names, kind)
    several = any(found.several for found in scans.values())
    return {
        name: source_of(found, kind, names, multi_label=several) for name, found in scans.items()
    }


def _in_order(names: frozenset[str], kind: TextKind) -> tuple[str, ...]:
    """Returns names sorted; the tag "O", for words outside of entities, first."""
    if kind == "tagged":
        return tuple(sorted(names, key=lambda name: (name != "O", name)))
    return in_order(names)


def _strata(source: TextSource) -> np.ndarray:
    """Returns what keeps its share when examples are drawn: the labels, if they are classes."""
    return source.label_array if source.kind == "labelled" else np.zeros(len(source), np.int32)


def _drawn(source: TextSource, count: int, seed: int) -> TextSource:
    return source if count >= len(source) else source.select(draw(_strata(source), count, seed))


def _held_out(train: TextSource, fraction: float, seed: int) -> dict[str, TextSource]:
    kept, held_out = split(_strata(train), train.digests, fraction, seed)
    if not len(held_out):
        return {}
    return {"train": train.select(kept), "validation": train.select(held_out)}


def _mixed_in(index: int, spec: DataSpec, train: TextSource, issues: list[Issue]) -> TextSource:
    """Returns the examples that are to be mixed in, with the labels of the others."""
    where = f"data.mix[{index}]"
    names = train.label_names or None
    own = DataSpec(labels=names, on_unreadable=spec.on_unreadable)
    rows = path_rows(spec.mix[index].path, own, tagged=train.kind == "tagged")["train"]
    found = scan(rows, train.kind, own)
    _tell(found, spec, where, issues)
    strangers = sorted(found.names - set(train.label_names))
    if strangers:
        message = f"labels not among those of train ({listed(train.label_names)}): "
        issues.append(Issue(where, message + listed(strangers)))
    if found.several and not train.multi_label:
        issues.append(Issue(where, "examples have several labels where train has one label"))
    several = train.multi_label or found.several
    return source_of(found, train.kind, train.label_names, multi_label=several)


def _split_name(name: Any) -> str:
    if name not in _SPLIT_OF:
        hint = did_you_mean(str(name), _SPLIT_OF)
        raise DataError(f"data: expected splits train, validation and test, got {name!r}.{hint}")
    return _SPLIT_OF[name]
