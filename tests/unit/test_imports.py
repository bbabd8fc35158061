"""Imports point one way; see the table of layers below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunekit

PACKAGE = Path(tunekit.__file__).parent

# Low to high: a room imports from the layers below it and from itself, never from a neighbour.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("ground",),
    ("data", "methods"),
    ("models",),
    ("tasks",),
    ("plans",),
    ("training",),
    ("evaluation", "export", "report"),
    ("result",),
    ("recipe",),
    ("finetune",),
    ("sweep", "probe", "preview", "planning", "launch"),
    ("cli",),
)
# Rooms that are several files at the top of the package.
FILES = {
    "errors": "ground",
    "xla_flags": "ground",
    "names": "ground",
    "rules": "ground",
    "durations": "ground",
    "platforms": "ground",
    "compilation_cache": "ground",
    "distributed": "ground",
    "peers": "ground",
    "place": "ground",
    "agreement": "ground",
    "rendezvous": "ground",
    "saved": "result",
    "folder": "ground",
    "recipe_text": "recipe",
    "recipe_issues": "recipe",
    "recipe_checks": "recipe",
    "recipe_keywords": "recipe",
    "shipped": "recipe",
    "image_answers": "result",
    "text_answers": "result",
    "generate": "result",
    "run": "finetune",
    "session": "finetune",
    "micro_batches": "finetune",
    "phases": "finetune",
    "meshes": "finetune",
    "same_run": "finetune",
    "step_identity": "finetune",
    "asked": "finetune",
    "inspection": "finetune",
    "ready_model": "finetune",
    "text_feeds": "finetune",
    "beside_base": "finetune",
    "feeds": "finetune",
    "side_by_side": "finetune",
    "cli_adapters": "cli",
    "cli_arguments": "cli",
    "retention": "sweep",
    "cli_chat": "cli",
    "cli_launch": "cli",
    "cli_texts": "cli",
    "cli_planning": "cli",
    "cli_tables": "cli",
    "sweep_members": "sweep",
    "sweep_record": "sweep",
    "sweep_search": "sweep",
    "sweep_space": "sweep",
}
# The trainer knows neither what is asked of the model nor what is attached to it, nor do these two
# know each other.
BLIND = {("training", "tasks"), ("training", "methods"), ("tasks", "methods")}

RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def room_of(module: str) -> str:
    """Returns the room of ``tunekit.x.y``."""
    name = module.split(".")[1]
    return FILES.get(name, name)


def imported(tree: ast.Module) -> Iterator[str]:
    """Yields every module of tunekit that is imported, in functions and for types included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "tunekit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide their direction"
            if node.module == "tunekit":
                names = (name.name for name in node.names if name.name != "__version__")
                yield from map(home_of, names)
            elif (node.module or "").startswith("tunekit."):
                yield str(node.module)


def home_of(name: str) -> str:
    is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
    public = tunekit._HOMES.get(name, "tunekit")
    return f"tunekit.{name}" if is_module and name not in tunekit._HOMES else public


def wrong_imports(room: str, source: str) -> list[str]:
    """Returns the imports of `source` that a file of `room` may not have."""
    wrong = []
    for module in imported(ast.parse(source)):
        if module == "tunekit":
            wrong.append("tunekit itself, which is every room at once")
            continue
        other = room_of(module)
        downward = RANK[other] < RANK[room] and (room, other) not in BLIND
        if other != room and not downward:
            wrong.append(module)
    return wrong


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("tunekit", *parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_imports_only_from_below(path: Path) -> None:
    room = room_of(module_name(path))
    assert room in RANK, f"{path.name} belongs to no layer; give it one in this test"
    assert wrong_imports(room, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from tunekit.models.spec import HeadSpec"),
        ("tasks", "import tunekit.methods.spec"),
        ("methods", "from tunekit.tasks.spec import ClassificationSpec"),
        ("training", "def f():\n    from tunekit.tasks.spec import ClassificationSpec"),
        ("training", "if TYPE_CHECKING:\n    from tunekit.methods import spec"),
        ("result", "from tunekit import Recipe"),
        ("result", "from tunekit import recipe_text"),
        ("plans", "import tunekit"),
        ("evaluation", "from tunekit.report import plots"),
    ],
)
def test_an_import_upwards_or_sideways_is_found(room: str, source: str) -> None:
    assert len(wrong_imports(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("training", "from tunekit.plans.phase import Phase\nfrom tunekit import errors"),
        ("recipe", "from tunekit import recipe_text\nfrom tunekit.data.spec import DataSpec"),
        ("data", "import numpy\nfrom tunekit.data.spec import DataSpec"),
    ],
)
def test_an_import_downwards_or_within_a_room_is_right(room: str, source: str) -> None:
    assert wrong_imports(room, source) == []


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="relative imports hide"):
        wrong_imports("data", "from ..models import spec")
