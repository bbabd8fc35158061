"""The command ``tunekit chat``: a dialogue with a language model in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunekit.errors import TunekitError, did_you_mean

if TYPE_CHECKING:
    from tunekit.models.model import Model
    from tunekit.tasks.language_modelling import LanguageModelling

COMMANDS = {
    "/reset": "begin anew",
    "/system": "TEXT: begin anew with this system message; without TEXT with none",
    "/base": "let the base answer in place of the tuned model, and back",
    "/help": "these lines",
    "/quit": "end, as Ctrl-D does",
}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds what the command takes to its parser."""
    sub.add_argument("model", help="folder of a saved result; or a GGUF file or folder of a model")
    sub.add_argument("--system", help="system message of the dialogue")
    sub.add_argument(
        "--compare", action="store_true", help="show the base's answer beside the tuned model's"
    )
    sub.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer")
    sub.add_argument(
        "--temperature", type=float, default=0.0, help="0, as by default, is always the likeliest"
    )
    sub.add_argument("--top-k", type=int, help="how many of the likeliest tokens may be drawn")
    sub.add_argument("--top-p", type=float, default=1.0, help="probability that they have together")
    sub.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 repeats less")
    sub.add_argument("--seed", type=int, default=0, help="of what is drawn")


def chat(args: argparse.Namespace) -> None:
    """Talks until the user ends it.

    Raises:
        ModelError: the model writes no text.
        TunekitError: a base is to be compared with, and there is none beside the tuned model.
    """
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    options = {name: getattr(args, name) for name in names}
    model, task = _loaded(Path(args.model).expanduser())
    converse(Session(model, task, options, system=args.system), Console(), compare=args.compare)


def _loaded(path: Path) -> tuple[Model, LanguageModelling | None]:
    """The model, and what it was tuned for where it is a saved result."""
    from tunekit.models.loading import load_model
    from tunekit.result import MODEL_FILE, load
    from tunekit.tasks.language_modelling import LanguageModelling

    if not (path / MODEL_FILE).is_file():
        return load_model(str(path)), None
    result = load(path)
    return result.model, result.task if isinstance(result.task, LanguageModelling) else None


@dataclass
class Session:
    """A dialogue with one model."""

    model: Model
    task: LanguageModelling | None
    """What the model was tuned for, which may say how prompts are written."""
    options: dict[str, Any]
    """Of `generate`."""
    system: str | None = None
    base: bool = False
    """Whether the base answers, in place of the tuned model."""
    turns: list[dict[str, str]] = field(default_factory=list)
    """What was said, without the system message."""

    def __post_init__(self) -> None:
        """Checks that the model can talk.

        Raises:
            ModelError: it writes no text, or has no tokenizer.
        """
        from tunekit.models.generation import Generator

        Generator(self.model)
        self.tokenizer = self.model.backbone.text_tokenizer()

    @property
    def remembers(self) -> bool:
        """Whether the model is told what was said before: it has a form for dialogues."""
        return self.tokenizer.chat_template is not None or self._is_tuned

    @property
    def _is_tuned(self) -> bool:
        return self.task is not None and self.task.name == "sft"

    def check_base(self) -> None:
        """Passes where the base can answer.

        Raises:
            TunekitError: no adapter could be put aside.
        """
        if not self.model.adapters.active:
            raise TunekitError(
                "there is no base beside this model: it has no adapter that could be put aside. "
                "Its own weights were trained, or it is a base itself."
            )

    def reset(self, system: str | None) -> None:
        """Begins anew with this system message."""
        self.system, self.turns = system, []

    def pieces(self, *, base: bool) -> Iterator[str]:
        """Yields the answer to what was said last, of the base or of the tuned model."""
        from tunekit.generate import generate

        prompt: Any = self._fitting() if self.remembers else self.turns[-1]["content"]
        options = {**self.options, "seed": self.options["seed"] + len(self.turns)}
        longest = self.model.backbone.max_length_tokens
        if longest is not None:
            options["max_new_tokens"] = min(options["max_new_tokens"], longest // 2)
        # The stream goes on with the adapters that are active as it begins.
        with self.model.adapters_disabled() if base else nullcontext():
            return generate(self.model, prompt, **options, stream=True, task=self.task)

    def _fitting(self) -> list[dict[str, str]]:
        """The dialogue, without its oldest turns where it is too long for the model."""
        from tunekit.generate import prompt_ids

        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        longest = self.model.backbone.max_length_tokens
        while True:
            messages = [*opening, *self.turns]
            length = len(prompt_ids(messages, self.tokenizer, task=self.task))
            room = min(self.options["max_new_tokens"], (longest or 0) // 2)
            if longest is None or length + room <= longest or len(self.turns) == 1:
                return messages
            del self.turns[:2]


def converse(session: Session, console: Console, *, compare: bool = False) -> None:
    """Asks and answers until the input ends.

    Args:
        session: with the model.
        console: where all is shown; what is said comes from the standard input.
        compare: whether base and tuned model both answer.

    Raises:
        TunekitError: there is no base to compare with.
    """
    if compare:
        session.check_base()
    _note(console, f"{session.model.backbone.source}: /help shows the commands, Ctrl-C stops.")
    if not session.remembers:
        _note(console, "It has no chat template: it goes on from each line, and forgets it.")
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                _note(console, _obeyed(session, line))
            elif line:
                _answer(session, console, line, compare=compare)
        except TunekitError as error:
            _note(console, str(error))


def _obeyed(session: Session, line: str) -> str:
    """What a command did."""
    command, _, rest = line.partition(" ")
    if command == "/reset":
        session.reset(session.system)
        return "A new dialogue."
    if command == "/system":
        session.reset(rest.strip() or None)
        return f"A new dialogue, {'with' if session.system else 'without a'} system message."
    if command == "/base":
        session.check_base()
        session.base = not session.base
        return "The base answers." if session.base else "The tuned model answers."
    if command == "/help":
        return "\n".join(f"{name:8} {about}" for name, about in COMMANDS.items())
    hint = did_you_mean(command, COMMANDS)
    return f"no such command: {command}.{hint} It has {', '.join(COMMANDS)}."


def _answer(session: Session, console: Console, line: str, *, compare: bool) -> None:
    """Shows the answer to a line as it is written, and keeps both; Ctrl-C keeps what there is."""
    session.turns.append({"role": "user", "content": line})
    written: list[str] = []
    try:
        if compare:
            _beside(session, console, written)
        else:
            for piece in session.pieces(base=session.base):
                written.append(piece)
                console.print(Text(piece), end="", soft_wrap=True)
            console.print()
    except KeyboardInterrupt:
        console.print()
        _note(console, "stopped")
    except TunekitError:
        session.turns.pop()
        raise
    session.turns.append({"role": "assistant", "content": "".join(written)})


def _beside(session: Session, console: Console, written: list[str]) -> None:
    """Shows the answers of base and tuned model in two columns; `written` gets the tuned one."""
    columns: tuple[list[str], list[str]] = ([], written)

    def table() -> Table:
        shown = Table(expand=True, show_lines=False)
        for name in ("base", "tuned"):
            shown.add_column(name, ratio=1)
        shown.add_row(*(Text("".join(column)) for column in columns))
        return shown

    with Live(table(), console=console, auto_refresh=False) as live:
        for is_base, column in ((False, columns[1]), (True, columns[0])):
            for piece in session.pieces(base=is_base):
                column.append(piece)
                live.update(table(), refresh=console.is_terminal)


def _note(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"), soft_wrap=True)
