"""Texts become tokens and tokens texts, whatever the files of a tokenizer leave unsaid."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference import text_folders
from tests.unit.models.tiny_folders import PROCESSOR, RESNET, resnet_tensors, write
from tunekit.errors import ModelError
from tunekit.models import tokenizer_files
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec
from tunekit.models.tokenizing import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "b", "c", "who", "cafe", "##s", "wrote", "?", "it"]
PAIRS = ["<s>", "<end>", "h", "i", "Ġ", "hi", "Ġhi", "Ċ", "x"]
MERGES = ["h i", "Ġ hi"]
TEMPLATE = "{% for m in messages %}{{ m.content }}<end>{{ '\n' }}{% endfor %}"


def bert(**config: Any) -> Tokenizer:
    """A tiny one of word pieces; `config` as in tokenizer_config.json."""
    content = tokenizer_files.word_pieces(WORDS, lowercase=True)
    return tokenizer(content, config)


def gpt(special: tuple[str, ...] = ("<s>", "<end>"), **config: Any) -> Tokenizer:
    """A tiny one of byte pairs."""
    vocabulary = {token: index for index, token in enumerate(PAIRS)}
    added = tokenizer_files.added(vocabulary, special)
    return tokenizer(tokenizer_files.byte_pairs(vocabulary, MERGES, "gpt-2", added), config)


def tokenizer(content: Mapping[str, Any], config: Mapping[str, Any]) -> Tokenizer:
    files = {"tokenizer.json": json.dumps(content)}
    return Tokenizer({**files, "tokenizer_config.json": json.dumps(config)})


def tokens(reader: Tokenizer, ids: np.ndarray) -> list[str]:
    return [reader.token(index) for index in ids]


def test_a_text_has_ids_offsets_words_and_marks_of_what_was_added():
    found = bert().encode("who  cafés")
    assert tokens(bert(), found.ids) == ["[CLS]", "who", "cafe", "##s", "[SEP]"]
    assert found.offsets.tolist() == [[0, 0], [0, 3], [5, 9], [9, 10], [0, 0]]
    assert found.special.tolist() == [True, False, False, False, True]
    assert found.word_ids.tolist() == [-1, 0, 1, 1, -1]
    assert {found.ids.dtype, found.offsets.dtype, found.types.dtype} == {np.dtype("int32")}
    assert len(bert().encode("who", special=False)) == 1


def test_a_pair_has_segments_and_says_which_text_each_token_is_of():
    found = bert().encode("who", "a b")
    assert found.types.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.sequences.tolist() == [-1, 0, -1, 1, 1, -1]


def test_truncation_and_padding_kept_in_the_file_are_switched_off():
    content = tokenizer_files.word_pieces(WORDS, lowercase=True)
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 4},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    reader = tokenizer(content, {})
    assert len(reader.encode("a")) == 3
    assert [len(found) for found in reader.encode_many(["a b c a b", ""])] == [7, 2]


def test_a_cut_text_keeps_the_tokens_that_end_it_and_a_later_one_is_whole():
    reader = bert()
    assert tokens(reader, reader.encode("a b c", max_length=4).ids) == ["[CLS]", "a", "b", "[SEP]"]
    cut = reader.encode("who wrote it ?", "a b", max_length=6)
    assert tokens(reader, cut.ids) == ["[CLS]", "who", "wrote", "[SEP]", "a", "[SEP]"]
    assert [len(found) for found in reader.encode_many(["a b c", "a"], max_length=4)] == [4, 3]
    assert len(reader.encode("a b c")) == 5


def test_a_long_second_text_is_read_through_windows_that_overlap():
    found = bert().windows("who ?", "a b c a b", max_length=7, stride=1)
    contexts = [tokens(bert(), one.ids[4:-1]) for one in found]
    assert contexts == [["a", "b"], ["b", "c"], ["c", "a"], ["a", "b"]]
    assert found[1].offsets[found[1].sequences == 1].tolist() == [[2, 3], [4, 5]]
    whole = bert().windows("who ?", "a b", max_length=20, stride=1)
    assert [len(one) for one in whole] == [7]


def test_windows_without_room_are_refused():
    with pytest.raises(ModelError, match="6 tokens have no room for the 5 .* and 1 shared"):
        bert().windows("who ?", "a b c", max_length=6, stride=1)


def test_words_split_already_keep_their_numbers():
    words = ["cafés", "\u200b", "a?", "b"]
    found = bert().encode_words(words)
    assert found.word_ids.tolist() == [-1, 0, 0, 2, 2, 3, -1]  # nothing is left of the second
    assert bert().encode_words(words, max_length=4).word_ids.tolist() == [-1, 0, 0, -1]
    spaced = gpt().encode_words(["hi", "hi", "x"])
    assert tokens(gpt(), spaced.ids) == ["hi", "Ġhi", "Ġ", "x"]
    assert spaced.word_ids.tolist() == [0, 1, -1, 2]


def test_lone_surrogates_are_read_as_replacement_characters_of_one_character():
    found = bert().encode("\ud83d a", "\udc4d")
    assert found.ids.tolist() == bert().encode("\ufffd a", "\ufffd").ids.tolist()
    assert found.offsets[1].tolist() == [2, 3]
    assert bert().encode_many(["a\ud83d"])[0].ids.tolist() == bert().encode("a").ids.tolist()


def test_ids_become_text_with_or_without_special_tokens():
    ids = bert().encode("who cafes ?").ids
    assert bert().decode(ids) == "who cafes?"
    assert bert().decode(ids, special=True) == "[CLS] who cafes? [SEP]"
    assert gpt().decode(gpt().encode("hi<end> hi").ids) == "hi hi"


def test_special_tokens_are_found_by_their_usual_names_where_no_file_says_them():
    reader = bert()
    assert (reader.pad_id, reader.unk_id, reader.cls_id, reader.sep_id) == (0, 1, 2, 3)
    assert (reader.mask_id, reader.bos_id, reader.eos_id) == (4, None, None)
    vocabulary = {token: index for index, token in enumerate(tokenizer_files.ROBERTA)}
    added = tokenizer_files.added(vocabulary, tokenizer_files.ROBERTA)
    roberta = tokenizer(tokenizer_files.byte_pairs(vocabulary, [], "gpt-2", added), {})
    assert (roberta.bos_id, roberta.pad_id, roberta.eos_id, roberta.mask_id) == (0, 1, 2, 4)
    assert (gpt().bos_id, gpt().eos_id, gpt().unk_id) == (None, None, None)


def test_a_batch_is_filled_up_with_the_end_where_there_is_no_padding_token():
    assert gpt().pad_id == 0
    assert gpt(eos_token="<end>").pad_id == 1
    assert gpt(eos_token="<end>", pad_token={"content": "x", "special": True}).pad_id == 8
    said = {"generation_config.json": '{"pad_token_id": 3, "eos_token_id": [1, 0]}'}
    assert Tokenizer({**gpt().files, **said}).pad_id == 3


def test_all_that_ends_an_answer_is_a_stop():
    said = {"generation_config.json": '{"eos_token_id": [7, 8]}'}
    assert Tokenizer({**gpt(eos_token="<s>").files, **said}).stop_ids == {0, 7, 8}
    assert gpt(eos_token="<s>", chat_template=TEMPLATE).stop_ids == {0, 1}
    assert gpt().stop_ids == frozenset()


def test_a_special_token_that_only_the_config_names_is_never_split():
    plain = gpt(special=("<s>",))
    named = gpt(special=("<s>",), eos_token="<end>")
    assert 1 not in plain.encode("hi<end>").ids
    assert tokens(named, named.encode("hi<end>").ids) == ["hi", "<end>"]
    assert named.special_ids == {0, 1}


def test_what_stands_round_a_text_is_the_files_word_and_not_the_configs():
    """As in transformers 5, where there is a tokenizer.json."""
    names = {"bos_token": "<s>", "eos_token": "<end>"}
    asked = gpt(**names, add_bos_token=True, add_eos_token=True)
    assert tokens(asked, asked.encode("hi").ids) == ["hi"]
    content = json.loads(gpt().files["tokenizer.json"])
    content["post_processor"] = tokenizer_files.begins_with("<s>", 0)
    refused = tokenizer(content, {**names, "add_bos_token": False})
    assert tokens(refused, refused.encode("hi").ids) == ["<s>", "hi"]


def test_unknown_tokens_are_counted():
    assert bert().unknown_count("who zyx it qq") == 2
    assert gpt().unknown_count("zyx") == 0


def test_a_dialogue_has_tokens_and_says_which_are_the_assistants():
    reader = gpt(eos_token="<end>", chat_template=TEMPLATE)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x hi"}]
    ids, answers = reader.chat_ids(messages)
    assert (ids.dtype, answers.dtype) == (np.int32, bool)
    assert reader.decode(ids, special=True) == reader.chat(messages) == "hi<end>\nx hi<end>\n"
    assert reader.decode(ids[answers], special=True) == "x hi<end>"


def test_of_several_templates_the_default_is_taken_and_a_file_of_its_own_first():
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    reader = gpt(chat_template=several)
    assert reader.chat_template == "D"
    assert Tokenizer({**reader.files, "chat_template.jinja": "J"}).chat_template == "J"


def test_without_a_template_dialogues_are_refused():
    with pytest.raises(ModelError, match="no chat template.*### Instruction: {prompt}"):
        bert().chat([{"role": "user", "content": "hi"}])


def test_a_tokenizer_travels_to_other_processes_as_its_files():
    reader = gpt(chat_template=TEMPLATE)
    reader.chat([{"role": "user", "content": "hi"}])
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.files == reader.files
    assert copy.encode("hi hi").ids.tolist() == reader.encode("hi hi").ids.tolist()


def test_files_that_are_no_tokenizer_are_refused():
    with pytest.raises(ModelError, match="made of a tokenizer.json; got \\['vocab.txt'\\]"):
        Tokenizer({"vocab.txt": ""})
    with pytest.raises(ModelError, match="tokenizer.json cannot be read .*fetch it again"):
        Tokenizer({"tokenizer.json": "{}"}).encode("hi")
    with pytest.raises(ModelError, match="tokenizer_config.json is no JSON"):
        Tokenizer({**bert().files, "tokenizer_config.json": "{"}).encode("hi")
    with pytest.raises(ModelError, match="token id 99 is outside of the vocabulary, 0 to 13"):
        bert().token(99)


def in_folder(name: str, folder: Path, files: Mapping[str, str]) -> Path:
    text_folders.write(name, folder)
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content, encoding="utf-8")
    return folder


def test_a_folder_brings_its_tokenizer_and_the_numbers_of_its_config(tmp_path):
    folder = in_folder("llama", tmp_path, {"tokenizer.json": gpt().files["tokenizer.json"]})
    backbone = load_backbone(folder, BackboneSpec())
    reader = backbone.text_tokenizer()
    assert (reader.bos_id, reader.eos_id, reader.pad_id) == (2, 3, 1)
    assert reader.stop_ids == {3}
    assert backbone.sentence_pooling is None


def test_a_folder_of_a_sentence_encoder_says_how_it_pools_and_how_long_a_sentence_is(tmp_path):
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    files = {
        "vocab.txt": "\n".join(WORDS),
        "modules.json": json.dumps(modules),
        "1_Pooling/config.json": json.dumps({"word_embedding_dimension": 32, **modes}),
        "sentence_bert_config.json": json.dumps({"max_seq_length": 16}),
    }
    backbone = load_backbone(in_folder("bert", tmp_path, files), BackboneSpec())
    assert (backbone.sentence_pooling, backbone.max_length_tokens) == ("token", 16)
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(both))
    assert load_backbone(tmp_path, BackboneSpec()).sentence_pooling is None


def test_folders_older_than_tokenizer_json_have_one_built_of_their_vocabulary(tmp_path):
    files = {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": '{"do_lower_case": true}'}
    folder = in_folder("bert", tmp_path / "bert", files)
    reader = load_backbone(folder, BackboneSpec()).text_tokenizer()
    assert tokens(reader, reader.encode("Cafés").ids) == ["[CLS]", "cafe", "##s", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*tokenizer_files.ROBERTA, *PAIRS[2:]])}
    merges = "\n".join(["#version: 0.2", *MERGES, ""])
    files = {"vocab.json": json.dumps(vocabulary), "merges.txt": merges}
    read = Tokenizer(tokenizer_files.read(in_folder("roberta", tmp_path / "r", files), "roberta"))
    assert tokens(read, read.encode("hi <mask> hi", "x").ids) == (
        ["<s>", "hi", "<mask>", "Ġhi", "</s>", "</s>", "x", "</s>"]
    )
    assert read.encode("hi", "x").types.tolist() == [0] * 6


def test_a_folder_without_a_tokenizer_says_so_when_it_is_to_read_text(tmp_path):
    backbone = load_backbone(text_folders.write("gpt2", tmp_path), BackboneSpec())
    assert backbone.tokenizer is None
    with pytest.raises(ModelError, match="reads no text: .* has no tokenizer.json.*it holds conf"):
        backbone.text_tokenizer()
    images = load_backbone(write(tmp_path, RESNET, resnet_tensors(), PROCESSOR), BackboneSpec())
    with pytest.raises(ModelError, match="reads no text: it takes images, not texts"):
        images.text_tokenizer()
