"""What was found in data, as a page of a terminal: tables, bars and coloured tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BAR, _EIGHTHS = 36, " ▏▎▍▌▋▊▉"
_LABELS, _LONG = 20, 70
_TRAINED, _SPECIAL, _PLAIN = "bold green", "cyan", "bright_black"
_STYLES = {
    (True, False): _TRAINED,
    (True, True): f"{_TRAINED} reverse",
    (False, True): _SPECIAL,
    (False, False): _PLAIN,
}
"""By whether a token is trained on, and whether it is special."""
_MARKS = "⟦", "⟧"
_WARNING = "yellow"

Found = Mapping[str, Any]


def render(found: Found, *, coloured: bool) -> Iterator[RenderableType]:
    """Yields the parts of a page, from top to bottom.

    Args:
        found: an `Inspection` in JSON's types.
        coloured: whether colours can be seen; else tokens that are trained on stand in brackets.
    """
    for name in ("model", "data", "task"):
        yield Text.assemble((f"{name:6}", "dim"), (_shortened(found[name]), "bold"))
    yield from _section("rows", _rows(found["splits"]))
    if any(split["labels"] for split in found["splits"]):
        yield from _section(found["label_title"], _labels(found["splits"]))
    if values := found.get("numbers"):
        told = "from {least:g} to {most:g}, mean {mean:.4g}, standard deviation {deviation:.4g}"
        yield from _section("labels of train", Text(told.format(**values)))
    if sizes := found.get("sizes"):
        yield from _section("sizes in pixels, width x height", _pairs(sizes))
    if lengths := found.get("lengths"):
        yield from _section(_length_title(lengths), _lengths(lengths))
        yield Padding(_length_lines(lengths, found.get("learned")), (0, 0, 0, 2))
    if unknown := found.get("unknown"):
        yield from _section("outside the vocabulary", _unknown(unknown))
    if found.get("copies") is not None:
        yield from _section("duplicates", _duplicates(found))
    yield from _section("to look at", _advice(found))
    yield from _views(found["views"], coloured=coloured)


def share(value: float) -> str:
    """Returns a share as a percentage, none that is not 0 as "0 %".

    Example:
        >>> share(0.4567), share(0.0004), share(0)
        ('46 %', '0.04 %', '0 %')
    """
    if value in (0, 1) or 0.1 <= value < 0.995:
        return f"{value:.0%}".replace("%", " %")
    digits = 2 if value < 0.001 else 1
    return "< 0.01 %" if 0 < value < 0.00005 else f"{100 * value:.{digits}f} %"


def _shortened(path: str) -> str:
    parts = path.split("/")
    return path if len(path) <= _LONG or len(parts) < 3 else "/".join(["…", *parts[-2:]])


def _section(title: str, body: RenderableType) -> Iterator[RenderableType]:
    yield Text()
    yield Text(title, style="bold")
    yield Padding(body, (0, 0, 0, 2))


def _table(*columns: str) -> Table:
    """A table without lines, whose first column is of words and whose others are of numbers."""
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=any(columns), header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _rows(splits: Sequence[Found]) -> RenderableType:
    table = _table("", "rows", "skipped", "copies")
    for split in splits:
        skipped = Text(f"{split['skipped']:,}", style=_WARNING if split["skipped"] else "")
        table.add_row(split["name"], f"{split['rows']:,}", skipped, f"{split['copies']:,}")
    reasons = [pair for split in splits for pair in split["reasons"]]
    return _with_lines(table, [f"{name}: {reason}" for name, reason in reasons])


def _labels(splits: Sequence[Found]) -> RenderableType:
    counts = {split["name"]: dict(split["labels"]) for split in splits if split["labels"]}
    first = next(iter(counts.values()))
    table = _table("", *counts, "")
    table.columns[-1].justify = "left"
    most, total = max(first.values(), default=0), sum(first.values())
    for label in list(first)[:_LABELS]:
        cells = [f"{own.get(label, 0):,}" for own in counts.values()]
        bar = f"{_bar(first[label], most)} {share(first[label] / max(total, 1))}"
        table.add_row(label, *cells, bar)
    if len(first) > _LABELS:
        table.add_row(f"and {len(first) - _LABELS} more")
    return table


def _pairs(values: Mapping[str, Any]) -> RenderableType:
    return Text("   ".join(f"{name} {value}" for name, value in values.items()))


def _length_title(lengths: Found) -> str:
    drawn = f" of {lengths['total']:,}" if lengths["total"] > lengths["texts"] else ""
    return f"lengths of train in tokens, {lengths['texts']:,}{drawn} texts"


def _lengths(lengths: Found) -> RenderableType:
    table = _table("", "", "")
    table.columns[0].justify, table.columns[2].justify = "right", "left"
    most = max(one["count"] for one in lengths["histogram"])
    for one in lengths["histogram"]:
        last = one["last"]
        name = f"{one['first']} and more" if last is None else f"{one['first']} to {last}"
        name = str(last) if one["first"] == last else name
        cut = one["first"] > lengths["max_length"]
        bar = Text(_bar(one["count"], most), style="red" if cut else "blue")
        table.add_row(name, f"{one['count']:,}", bar)
    return table


def _length_lines(lengths: Found, learned: Found | None) -> Text:
    lines = [
        f"median {lengths['median']:,}, 95 % have at most {lengths['p95']:,}, "
        f"longest {lengths['longest']:,}",
        f"max_length {lengths['max_length']:,} cuts {share(lengths['cut_texts'])} of the texts, "
        f"{share(lengths['cut_tokens'])} of the tokens",
    ]
    if learned is not None:
        silent = f"; texts without any: {learned['silent']:,}" if learned["silent"] else ""
        lines.append(f"{share(learned['tokens'])} of the tokens are in the loss{silent}")
    return Text("\n".join(lines))


def _unknown(unknown: Found) -> RenderableType:
    words = "   ".join(f"{word!r} {count:,}" for word, count in unknown["words"])
    return Text(f"{share(unknown['tokens'])} of the tokens" + (f": {words}" if words else ""))


def _duplicates(found: Found) -> RenderableType:
    copies, near = found["copies"], found.get("near")
    table = _table("", "exact", *(["near"] if near else []))
    near_counts = {(one, two): count for one, two, count in near["counts"]} if near else {}
    exact = {(one, two): count for one, two, count in copies["across"]}
    exact |= {(split["name"],) * 2: split["copies"] for split in found["splits"]}
    order = [split["name"] for split in found["splits"]]
    places = [(one == two, order.index(one), order.index(two)) for one, two in exact | near_counts]
    for within, first, second in sorted(places):
        one, two = order[first], order[second]
        name = f"within {one}" if within else f"{one} and {two}"
        row = [f"{counts.get((one, two), 0):,}" for counts in (exact, near_counts)]
        table.add_row(name, *row[: len(table.columns) - 1])
    lines = [f"two labels: {one} = {two}" for one, two in copies["conflict_names"]]
    lines += [f"exact: {one} = {two}" for one, two in copies["across_names"]]
    lines += [_near_told(pair) for pair in near["pairs"]] if near else []
    if near and near["compared"] < near["total"]:
        lines.append(
            f"near ones are of {near['compared']:,} texts drawn from {near['total']:,}: "
            "among all there may be more"
        )
    return _with_lines(table, lines)


def _near_told(pair: Found) -> str:
    first, second = (f"{pair[side]} ({pair[f'{side}_split']})" for side in ("first", "second"))
    return f"near, {share(pair['similarity'])}: {first} ~ {second}"


def _with_lines(table: Table, lines: Sequence[str]) -> RenderableType:
    return Group(table, *(Text(line) for line in lines))


def _views(views: Sequence[Found], *, coloured: bool) -> Iterator[RenderableType]:
    if not views:
        return
    title = Text("tokens", style="bold")
    legend = [("trained on", _TRAINED), ("special", _SPECIAL), ("the rest", _PLAIN)]
    if coloured:
        title.append("   ")
        title.append_text(Text("   ").join(Text(name, style=style) for name, style in legend))
    else:
        title.append(f"   {_MARKS[0]}trained on{_MARKS[1]}")
    yield Text()
    yield title
    for view in views:
        note = f"   {view['note']}" if view["note"] else ""
        yield Padding(Text(view["name"] + note, style="underline"), (0, 0, 0, 2))
        yield Padding(_view(view["runs"], coloured=coloured), (0, 0, 0, 4))


def _view(runs: Sequence[Found], *, coloured: bool) -> Text:
    shown = Text()
    for trained, group in groupby(runs, key=lambda run: run["trained"]):
        parts = [(run["text"].replace("\n", "↵\n"), run["special"]) for run in group]
        if coloured:
            for text, special in parts:
                shown.append(text, style=_STYLES[trained, special])
        else:
            text = "".join(text for text, _ in parts)
            space = text[: len(text) - len(text.lstrip(" "))]
            opening, closing = _MARKS if trained else ("", "")
            shown.append(f"{space}{opening}{text[len(space) :]}{closing}")
    shown.rstrip()
    return shown


def _advice(found: Found) -> RenderableType:
    lines = [*found["advice"], *found["notes"]]
    if not lines:
        return Text("nothing stands out", style="green")
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row("-", Text(line, style=_WARNING))
    return table


def _bar(count: int, most: int) -> str:
    eighths = round(8 * _BAR * count / max(most, 1))
    eighths = max(eighths, 1) if count else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
