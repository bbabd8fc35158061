"""From text to token ids and back, by the tokenizer that came with the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from tunekit.errors import ModelError
from tunekit.models import tokenizer_files
from tunekit.models.chat_template import ChatTemplate, Message
from tunekit.models.encoded import Encoded, clean, encoded

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_USUAL = (
    {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    {
        "bos": "<s>",
        "eos": "</s>",
        "unk": "<unk>",
        "sep": "</s>",
        "pad": "<pad>",
        "cls": "<s>",
        "mask": "<mask>",
    },
)
"""Names of BERT's and of RoBERTa's special tokens, which their folders may leave unsaid."""

_Strategy = Literal["longest_first", "only_second"]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's own tokenizer, with what its files say of special tokens and dialogues.

    Lone surrogates, which no UTF-8 text can hold, are read as U+FFFD.

    Example:
        >>> tokenizer = Tokenizer.from_folder("minilm/")
        >>> tokenizer.decode(tokenizer.encode("Hello there").ids)
        'hello there'
    """

    files: Mapping[str, str] = field(repr=False)
    """Contents of tokenizer.json, tokenizer_config.json… by name: all that it is made of."""

    def __post_init__(self) -> None:
        """Refuses files of which no tokenizer can be made."""
        if "tokenizer.json" not in self.files:
            raise ModelError(
                f"a tokenizer is made of a tokenizer.json; got {sorted(self.files) or 'no file'}."
            )

    def __reduce__(self) -> Any:
        """Travels to other processes as its files; all else is made of them again."""
        return Tokenizer, (dict(self.files),)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Returns the tokenizer of a Hugging Face folder; `None` where it has no tokenizer.json."""
        folder = Path(folder)
        has_one = (folder / "tokenizer.json").is_file()
        return cls(tokenizer_files.read(folder)) if has_one else None

    def __len__(self) -> int:
        """Returns how many tokens there are, added ones among them."""
        return self._core.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """Of the token that begins a text, where there is one."""
        return self._id("bos")

    @property
    def eos_id(self) -> int | None:
        """Of the token that ends a text, where there is one; `stop_ids` has all that do."""
        return self._id("eos")

    @property
    def unk_id(self) -> int | None:
        """Of the token that stands for what the vocabulary lacks."""
        return self._id("unk")

    @property
    def mask_id(self) -> int | None:
        """Of the token that stands for a hidden one."""
        return self._id("mask")

    @property
    def cls_id(self) -> int | None:
        """Of the token that begins a text for a classifier."""
        return self._id("cls")

    @property
    def sep_id(self) -> int | None:
        """Of the token between two texts."""
        return self._id("sep")

    @property
    def pad_id(self) -> int:
        """Of the token that fills up a batch; that of the text's end, or 0, where there is none."""
        found = (self._id("pad"), self.eos_id, 0)
        return next(index for index in found if index is not None)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends an answer: eos, generation_config.json's, the chat template's."""
        named = self._json("generation_config.json").get("eos_token_id")
        ids = {self.eos_id, *(named if isinstance(named, list) else [named]), self._end_of_turn()}
        return frozenset(index for index in ids if index is not None)

    @property
    def special_ids(self) -> frozenset[int]:
        """Every token that is no text."""
        added = self._core.get_added_tokens_decoder().items()
        return frozenset(index for index, token in added if token.special)

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        special: bool = True,
        max_length: int | None = None,
    ) -> Encoded:
        """Returns the tokens of a text, or of two texts in one sequence.

        Args:
            text: any string; special tokens written in it are read as such.
            pair: the second text.
            special: whether the tokenizer adds its own tokens, such as [CLS] and [SEP].
            max_length: tokens kept, those added among them; the longer text is cut at its end.
        """
        core = self._core if max_length is None else self._truncating(max_length)
        pair = None if pair is None else clean(pair)
        return encoded(core.encode(clean(text), pair, add_special_tokens=special))

    def encode_many(
        self, texts: Sequence[str], *, special: bool = True, max_length: int | None = None
    ) -> list[Encoded]:
        """Returns the tokens of each text, on all cores."""
        core = self._core if max_length is None else self._truncating(max_length)
        found = core.encode_batch([clean(text) for text in texts], add_special_tokens=special)
        return [encoded(encoding) for encoding in found]

    def encode_words(
        self, words: Sequence[str], *, special: bool = True, max_length: int | None = None
    ) -> Encoded:
        """Returns the tokens of words that are split already.

        Its `word_ids` are numbers in `words`, -1 for a space alone; its `offsets` are places in
        the words joined by spaces. A word of which the tokenizer keeps nothing, such as a
        zero-width space, has no piece.
        """
        spaces = np.cumsum([len(word) + 1 for word in words]) - 1
        found = self.encode(" ".join(words), special=special, max_length=max_length)
        # The last character: the first may be the space before the word.
        last = found.offsets[:, 1] - 1
        is_word = ~found.special & ~np.isin(last, spaces)
        owners = np.where(is_word, np.searchsorted(spaces, last), -1).astype(np.int32)
        return replace(found, word_ids=owners)

    def windows(self, first: str, second: str, *, max_length: int, stride: int) -> list[Encoded]:
        """Returns `first` with each piece of a long `second`, of `max_length` tokens at most.

        Args:
            first: stands whole in every window, as a question does.
            second: the text that is cut.
            max_length: tokens of a window.
            stride: tokens of `second` that two neighbours share.

        Raises:
            ModelError: `first` leaves no room to go on by.
        """
        room = max_length - len(self.encode(first, "")) - stride
        if room < 1:
            raise ModelError(
                f"{max_length} tokens have no room for the {max_length - room - stride} that stand "
                f"in every window and {stride} shared with the next: raise max_length, or lower "
                "stride."
            )
        core = self._truncating(max_length, stride, "only_second")
        whole = core.encode(clean(first), clean(second))
        return [encoded(encoding) for encoding in (whole, *whole.overflowing)]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Returns the text of token ids; special tokens are left out unless `special`."""
        return self._core.decode([int(index) for index in ids], skip_special_tokens=not special)

    def token(self, index: int) -> str:
        """Returns a token as the vocabulary spells it, to show it.

        Raises:
            ModelError: there is none of that number.
        """
        token = self._core.id_to_token(int(index))
        if token is None:
            raise ModelError(
                f"token id {index} is outside of the vocabulary, 0 to {len(self) - 1}."
            )
        return token

    def token_id(self, token: str) -> int | None:
        """Returns the number of a token spelt as in the vocabulary; `None` if it is not there."""
        return self._core.token_to_id(token)

    def unknown_count(self, text: str) -> int:
        """Returns how many tokens of the text stand for what the vocabulary lacks."""
        if self.unk_id is None:
            return 0
        return int((self.encode(text, special=False).ids == self.unk_id).sum())

    @property
    def chat_template(self) -> str | None:
        """Jinja of a dialogue, where the files have it."""
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"]
        found = self._json("tokenizer_config.json").get("chat_template")
        if isinstance(found, list):
            named = {entry["name"]: entry["template"] for entry in found}
            return named.get("default")
        return found

    def chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """Returns a dialogue as the model's chat template writes it.

        Args:
            messages: of {"role", "content"}, in their order.
            add_generation_prompt: whether it ends where the model's answer begins.
            variables: that the template knows, such as `enable_thinking`.

        Raises:
            ModelError: there is no template, or it refuses the messages.
        """
        return self._template.render(messages, add_generation_prompt, **variables)

    def chat_ids(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of a dialogue, int32 [T], and which are the assistant's, bool [T].

        The token that ends a turn of the assistant's is its own too. Where the template marks its
        answers by ``{% generation %}``, that decides; else what each turn adds to the dialogue.

        Raises:
            ModelError: there is no template, it refuses the messages, or does not show its answers.
        """
        text, spans = self._template.answers(messages)
        found = self.encode(text, special=False)
        first, last = found.offsets.T
        answers = np.zeros(len(found), bool)
        for start, end in spans:
            answers |= (first < end) & (last > start)
        return found.ids, answers

    @cached_property
    def _template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise ModelError(
                "the tokenizer has no chat template, which dialogues are written by: expected "
                "a chat_template.jinja beside tokenizer.json, or 'chat_template' in "
                "tokenizer_config.json. Give the task a template of your own, such as "
                "'### Instruction: {prompt}\\n### Response: '."
            )
        named = {f"{name}_token": token for name, token in self._named.items()}
        ends = [self.token(index) for index in sorted(self.special_ids)]
        return ChatTemplate(clean(self.chat_template), named, tuple(ends))

    def _end_of_turn(self) -> int | None:
        """What the chat template writes right behind an answer, if that is a special token."""
        if self.chat_template is None:
            return None
        try:
            asked, answer = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
            text, spans = self._template.answers([asked, answer])
        except ModelError:
            return None
        after = "".join(text[slice(*span)] for span in spans).partition("2")[2]
        ids = self.encode(after, special=False).ids[:1]
        return next((int(index) for index in ids if index in self.special_ids), None)

    @cached_property
    def _core(self) -> tokenizers.Tokenizer:
        try:
            core = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"])
        except Exception as error:
            raise ModelError(
                f"the tokenizer.json cannot be read ({error}); fetch it again."
            ) from error
        # Some files keep what their makers once cut and padded to: MiniLM's both to 128.
        core.no_truncation()
        core.no_padding()
        added = {token.content for token in core.get_added_tokens_decoder().values()}
        for token in self._named.values():
            if token not in added and core.token_to_id(token) is not None:
                core.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        return core

    def _truncating(
        self, length: int, stride: int = 0, strategy: _Strategy = "longest_first"
    ) -> tokenizers.Tokenizer:
        """A tokenizer of its own: others may be using `_core` in their threads."""
        key = (length, stride, strategy)
        if key not in self._cutters:
            cutter = tokenizers.Tokenizer.from_str(self._core.to_str())
            cutter.enable_truncation(length, stride=stride, strategy=strategy)
            self._cutters[key] = cutter
        return self._cutters[key]

    @cached_property
    def _cutters(self) -> dict[tuple[int, int, str], tokenizers.Tokenizer]:
        return {}

    @cached_property
    def _named(self) -> dict[str, str]:
        """Special tokens by their use."""
        files = ("tokenizer_config.json", "special_tokens_map.json")
        sources = [self._json(name) for name in files]
        found = {}
        for name in _SPECIAL:
            values = [source.get(f"{name}_token") for source in sources]
            value = next((value for value in values if value), None)
            if value is not None:
                found[name] = value["content"] if isinstance(value, Mapping) else value
        return found

    def _id(self, name: str) -> int | None:
        if name in self._named:
            return self._core.token_to_id(self._named[name])
        known = self._json("generation_config.json").get(f"{name}_token_id")
        if known is not None:
            return known[0] if isinstance(known, list) else known
        usual = [names for names in _USUAL if self._core.token_to_id(names["mask"]) is not None]
        token = usual[0].get(name) if usual else None
        return None if token is None else self._core.token_to_id(token)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(self.files.get(name, "{}"))
        except ValueError as error:
            raise ModelError(f"{name} is no JSON ({error}); fetch it again.") from error
