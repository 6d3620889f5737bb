"""Speech2Text's tokenizer against transformers'."""

import copy
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from s2t_text import LANGUAGES, TEXTS, save_vocabulary

from fastspeech import AutoTokenizer, CheckpointError, Speech2TextTokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "upper": {"do_upper_case": True},
    "mustc": {"lang_codes": "mustc", "tgt_lang": "fr", "do_upper_case": True},
    "more": {"lang_codes": "mustc", "additional_special_tokens": ["<noise>"], "model_max_length": 9},
}


@pytest.fixture(params=SETTINGS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Speech2TextTokenizer]:
    files, settings = save_vocabulary(tmp_path), SETTINGS[request.param]
    return transformers.Speech2TextTokenizer(**files, **settings), Speech2TextTokenizer(**files, **settings)


def assert_alike(ours: Any, theirs: Any) -> None:
    rows = [theirs(text)["input_ids"] for text in TEXTS]
    for text, row in zip(TEXTS, rows, strict=True):
        assert ours.encode(text) == row, text
        assert ours.tokenize(text) == theirs.tokenize(text), text
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (False, True):
            assert ours.decode(row, skip_special_tokens=skip) == theirs.decode(row, skip_special_tokens=skip), text
    odd = [2, 0, 20, 1, 21, 22, 3, 30, 2, 1, 1]
    assert ours.decode(odd) == theirs.decode(odd)
    assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert sorted(ours.all_special_tokens) == sorted(set(theirs.all_special_tokens))


def test_texts_and_ids(both: Any) -> None:
    theirs, ours = both
    assert_alike(ours, theirs)
    assert ours.convert_ids_to_tokens([0, 109, 25]) == theirs.convert_ids_to_tokens([0, 109, 25])
    assert ours.convert_tokens_to_ids("nothing") == theirs.convert_tokens_to_ids("nothing") == 3
    assert ours.convert_ids_to_tokens(10**6) == "<unk>"
    assert (ours.bos_token_id, ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 2, 3)


def test_padding_and_truncation(both: Any) -> None:
    theirs, ours = both
    for options in (
        {"padding": True},
        {"padding": "max_length", "max_length": 40},
        {"truncation": True, "max_length": 5},
        {"truncation": True, "max_length": 5, "padding": True, "return_tensors": "pt"},
    ):
        found, expected = ours(TEXTS, **options), theirs(TEXTS, **options)
        for name in ("input_ids", "attention_mask"):
            assert np.array_equal(np.asarray(found[name], dtype=object), np.asarray(expected[name], dtype=object))
    assert ours(TEXTS[0], return_tensors="pt")["input_ids"].dtype == torch.int64


def test_methods_of_the_page(both: Any, tmp_path: Path) -> None:
    theirs, ours = both
    first, second = [20, 21, 22], [30, 31]
    for pair in ((first,), (first, second)):
        assert ours.build_inputs_with_special_tokens(*pair) == theirs.build_inputs_with_special_tokens(*pair)
        assert ours.get_special_tokens_mask(*pair) == theirs.get_special_tokens_mask(*pair)
        found = ours.create_token_type_ids_from_sequences(*pair)
        assert found == theirs.create_token_type_ids_from_sequences(*pair)
    built = ours.build_inputs_with_special_tokens(first)
    found = ours.get_special_tokens_mask(built, already_has_special_tokens=True)
    assert found == theirs.get_special_tokens_mask(built, already_has_special_tokens=True)
    with pytest.raises(ValueError, match="one list"):
        ours.get_special_tokens_mask(first, second, already_has_special_tokens=True)
    paths = [ours.save_vocabulary(tmp_path, filename_prefix="some"), theirs.save_vocabulary(str(tmp_path))]
    assert [Path(path).name for path in paths[0]] == ["some-vocab.json", "some-sentencepiece.bpe.model"]
    again = Speech2TextTokenizer(*paths[0])
    assert again.get_vocab() == ours.get_vocab() and again.tokenize(TEXTS[0]) == ours.tokenize(TEXTS[0])
    with pytest.raises(ValueError, match="no folder"):
        ours.save_vocabulary(tmp_path / "nowhere")


def test_either_name_of_the_tokens_without_a_role(tmp_path: Path) -> None:
    files = save_vocabulary(tmp_path)
    old = Speech2TextTokenizer(**files, lang_codes="mustc", additional_special_tokens=["<noise>"])
    new = Speech2TextTokenizer(**files, lang_codes="mustc", extra_special_tokens=["<noise>"])
    theirs = transformers.Speech2TextTokenizer(**files, lang_codes="mustc", extra_special_tokens=["<noise>"])
    assert new.extra_special_tokens == new.additional_special_tokens == old.extra_special_tokens
    assert new("a<noise>")["input_ids"] == old("a<noise>")["input_ids"] == theirs("a<noise>")["input_ids"]
    new.save_pretrained(tmp_path / "new")
    assert Speech2TextTokenizer.from_pretrained(tmp_path / "new").get_vocab() == old.get_vocab()


def test_texts_split_into_words(both: Any) -> None:
    theirs, ours = both
    for text in (["hello", "world"], [["hello", "a </s> b"], ["MISTER"]]):
        found, expected = (each(text, is_split_into_words=True)["input_ids"] for each in (ours, theirs))
        assert found == expected
    with pytest.raises(ValueError, match="is_split_into_words"):
        ours([["hello"]])
    with pytest.raises(ValueError, match="is_split_into_words"):
        ours("hello", is_split_into_words=True)


def test_languages(tmp_path: Path) -> None:
    files = save_vocabulary(tmp_path)
    theirs, ours = (
        maker(**files, lang_codes="mustc") for maker in (transformers.Speech2TextTokenizer, Speech2TextTokenizer)
    )
    assert ours.lang_code_to_id == theirs.lang_code_to_id == {code: 4 + i for i, code in enumerate(LANGUAGES)}
    assert ours.tgt_lang == theirs.tgt_lang == "pt"
    for language in LANGUAGES:
        ours.tgt_lang = theirs.tgt_lang = language
        assert ours.encode("hello") == theirs.encode("hello")
        assert ours.encode("hello")[0] == ours.lang_code_to_id[language]
    with pytest.raises(ValueError, match="unknown target language 'en'; known are pt, fr"):
        ours.tgt_lang = "en"
    plain = Speech2TextTokenizer(**files)
    assert plain.tgt_lang is None and plain.lang_code_to_id == {}
    with pytest.raises(ValueError, match="lang_codes is not set"):
        plain.tgt_lang = "fr"
    with pytest.raises(ValueError, match="unknown lang_codes 'all'"):
        Speech2TextTokenizer(**files, lang_codes="all")


def test_lower_case_is_honoured(tmp_path: Path) -> None:
    """transformers 4 reads in small letters all but special tokens; transformers 5 ignores the setting."""
    files = save_vocabulary(tmp_path)
    lower, plain = Speech2TextTokenizer(**files, do_lower_case=True), Speech2TextTokenizer(**files)
    assert lower.encode("HELLO World </s>") == plain.encode("hello world </s>")
    assert lower.encode("HELLO World") != plain.encode("HELLO World")
    mustc = Speech2TextTokenizer(**files, do_lower_case=True, additional_special_tokens=["<NOISE>"])
    assert mustc.tokenize("A<NOISE>")[-1] == "<NOISE>"


@pytest.mark.parametrize("name", SETTINGS)
def test_saved_either_way(name: str, tmp_path: Path) -> None:
    files, settings = save_vocabulary(tmp_path / "files"), SETTINGS[name]
    theirs, ours = (maker(**files, **settings) for maker in (transformers.Speech2TextTokenizer, Speech2TextTokenizer))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert_alike(Speech2TextTokenizer.from_pretrained(tmp_path / "theirs"), theirs)
    assert_alike(ours, transformers.Speech2TextTokenizer.from_pretrained(tmp_path / "ours"))
    again = Speech2TextTokenizer.from_pretrained(tmp_path / "ours")
    assert_alike(again, theirs)
    assert again.tgt_lang == ours.tgt_lang and again.model_max_length == ours.model_max_length
    assert Speech2TextTokenizer.from_pretrained(tmp_path / "ours", do_upper_case=True).decode([25]).isupper()


def test_copies_and_pickles(tmp_path: Path) -> None:
    files = save_vocabulary(tmp_path)
    ours = Speech2TextTokenizer(**files, lang_codes="mustc")
    for path in files.values():
        path.unlink()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [other.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_bad_files_are_named(tmp_path: Path) -> None:
    for name, content, fault in (
        ("vocab.json", b"[]", "not an object"),
        ("vocab.json", b'{"a": "b"}', "an id"),
        ("sentencepiece.bpe.model", b"nonsense", "not a SentencePiece model"),
    ):
        save_vocabulary(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.*{fault}"):
            Speech2TextTokenizer.from_pretrained(tmp_path)
    save_vocabulary(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").unlink()
    with pytest.raises(CheckpointError, match=r"sentencepiece.bpe.model cannot be read"):
        Speech2TextTokenizer.from_pretrained(tmp_path)


def test_sampling_is_passed_on(tmp_path: Path) -> None:
    files = save_vocabulary(tmp_path)
    options = {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1}
    ours = Speech2TextTokenizer(**files, sp_model_kwargs=options)
    assert len({tuple(ours.encode(TEXTS[0])) for _ in range(20)}) > 1


def test_auto(tmp_path: Path) -> None:
    Speech2TextTokenizer(**save_vocabulary(tmp_path)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "speech_to_text"}')
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), Speech2TextTokenizer)


def test_upper_case_texts(tmp_path: Path) -> None:
    """What the facts state of transformers, for either setting."""
    files = save_vocabulary(tmp_path)
    for upper, languages in product((False, True), (None, "mustc")):
        ours = Speech2TextTokenizer(**files, do_upper_case=upper, lang_codes=languages)
        hello = "HELLO WORLD" if upper else "hello world"
        ids = ours.encode("hello world")
        assert ours.decode(ids, skip_special_tokens=True) == hello
        assert ours.decode(ids) == ("<lang:pt> " if languages else "") + hello + "</s>"
