"""Rows of a JSON file: an array of objects, one below "data", or questions as SQuAD nests them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.data.examples import listed
from tunekit.data.file_rows import FileRows, jsonl_rows
from tunekit.data.rows import ListRows
from tunekit.errors import DataError


def json_rows(path: Path) -> ListRows | FileRows:
    """Returns the rows of a JSON file, held in memory; of one that is JSON Lines, by their place.

    Rows are an array, or the only array of objects in an object, such as that below "data".

    Raises:
        DataError: the file is no JSON, or it is not plain where its rows are.
    """
    try:
        tree = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # an object, and another: one a line
            return jsonl_rows(path)
        place = f"{path.name}:{error.lineno}"
        message = f"{error.msg} at character {error.colno}"
        raise DataError(f"data.path: {place}: invalid JSON ({message}); mend the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"data.path: {path} is not UTF-8 ({error})") from error
    return ListRows(_items(tree, path), path.name)


def _items(tree: Any, path: Path) -> list[Any]:
    if isinstance(tree, Mapping):
        arrays = [key for key, value in tree.items() if isinstance(value, list) and value]
        objects = [key for key in arrays if isinstance(tree[key][0], Mapping)]
        if len(objects) != 1:
            raise DataError(
                f"data.path: expected an array of rows in {path}, or an object with one; "
                f"it has {listed(list(tree), 12) or 'nothing'}"
            )
        tree = tree[objects[0]]
    if not isinstance(tree, list):
        raise DataError(f"data.path: expected an array of rows in {path}, got {tree!r:.30}")
    nested = tree and isinstance(tree[0], Mapping) and "paragraphs" in tree[0]
    return list(_questions(tree, path)) if nested else tree


def _questions(articles: list[Any], path: Path) -> Iterator[dict[str, Any]]:
    """Yields one row a question (SQuAD 1.1 and 2.0)."""
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": question.get("answers", []),
                    }
    except (KeyError, TypeError) as error:
        raise DataError(
            f"data.path: {path} is not nested as SQuAD: paragraphs of context and qas, each with "
            f"question and answers ({type(error).__name__}: {error})"
        ) from error
