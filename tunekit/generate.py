"""What a language model writes: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunekit.errors import ModelError
from tunekit.models.generation import Generator
from tunekit.models.model import Model
from tunekit.models.sampling import Greedy, Sampler, Sampling
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.language_modelling import LanguageModelling

Dialogue = Sequence[Mapping[str, Any]]
Prompt = str | Dialogue
"""A text, or a dialogue as messages of "role" and "content"."""


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stream: bool = False,
    raw: bool = False,
    task: LanguageModelling | None = None,
) -> Any:
    """Returns what the model answers, or how it goes on; with the adapters that are active.

    Example:
        >>> model = load_model("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> generate(model, "Name three primary colours.", max_new_tokens=5)
        'The primary colours are:'

    Args:
        model: a causal language model with its tokenizer.
        prompts: a text or a dialogue, or a list of these. A text is what the user says where the
            model has a chat template.
        max_new_tokens: tokens of an answer, at most.
        temperature: 0 takes the likeliest token; above that tokens are drawn (see `Sampling`, as
            for the numbers after it).
        top_k: how many of the likeliest may be drawn; `None` is all.
        top_p: probability that those which may be drawn have together.
        min_p: how likely they are at least, as a share of the likeliest.
        repetition_penalty: makes what the text holds already less likely.
        seed: of what is drawn.
        stream: whether to return an iterator of pieces of the text, as they are written.
        raw: goes on from texts as they are, without chat template.
        task: what the model was tuned for, whose own format of prompts stands before the chat
            template.

    Returns:
        A text for a prompt, a list of texts for a list of prompts; without special tokens.

    Raises:
        ModelError: the model writes no text, has no tokenizer, or a prompt is empty or too long.
    """
    sampler = _sampler(temperature, top_k, top_p, min_p, repetition_penalty)
    generator = Generator(model)
    tokenizer = model.backbone.text_tokenizer()
    alone = isinstance(prompts, str) or _is_dialogue(prompts)
    listed: list[Any] = [prompts] if alone else list(prompts)
    ids = [prompt_ids(prompt, tokenizer, raw=raw, task=task) for prompt in listed]
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "sampler": sampler,
        "stop_ids": tokenizer.stop_ids,
        "seed": seed,
    }
    if stream:
        if len(ids) != 1:
            raise ModelError(f"stream=True writes to one prompt at a time, and got {len(ids)}.")
        steps = generator.stream(ids, **options)
        return text_pieces(tokenizer, (tokens for (tokens,) in steps))
    texts = [_text(tokenizer, answer) for answer in generator.generate(ids, **options)]
    return texts[0] if alone else texts


def prompt_ids(
    prompt: Prompt,
    tokenizer: Tokenizer,
    *,
    raw: bool = False,
    task: LanguageModelling | None = None,
) -> list[int]:
    """Returns the tokens after which the model writes.

    Args:
        prompt: a text or a dialogue.
        tokenizer: the model's.
        raw: whether a text is taken as it is.
        task: what the model was tuned for.

    Raises:
        ModelError: the prompt is empty, or a dialogue that there is no chat template for.
    """
    if not prompt:
        raise ModelError("the prompt is empty: give a text, or messages of a dialogue.")
    tuned = task is not None and task.name == "sft"
    if isinstance(prompt, str) and (raw or not (tuned or tokenizer.chat_template)):
        encoded = tokenizer.encode(prompt)
        count = len(encoded)
        while count and encoded.special[count - 1]:  # what the tokenizer ends a whole text with
            count -= 1
        return encoded.ids[:count].tolist()
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if tuned:
        assert task is not None
        return list(task.prompt_ids({"messages": messages}, tokenizer))
    text = tokenizer.chat(messages, add_generation_prompt=True)
    return tokenizer.encode(text, special=False).ids.tolist()


def text_pieces(tokenizer: Tokenizer, steps: Iterable[Sequence[int]]) -> Iterator[str]:
    """Yields the text of tokens as they come, never a part of a character."""
    ids: list[int] = []
    written = ""
    for tokens in steps:
        ids += tokens
        text = _text(tokenizer, ids)
        if len(text) > len(written):
            yield text[len(written) :]
            written = text


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of tokens, without the bytes of a character that is not whole at their end."""
    return tokenizer.decode(ids).rstrip("\ufffd")


def _sampler(temperature: float, top_k: Any, top_p: float, min_p: float, penalty: float) -> Sampler:
    if temperature == 0:
        return Greedy(penalty)
    return Sampling(temperature, top_k, top_p, min_p, penalty)


def _is_dialogue(prompts: Sequence[Any]) -> bool:
    return bool(prompts) and all(isinstance(each, Mapping) for each in prompts)
