import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from vocabulary import EXTRA, ROLES, TEXTS, build, save_as_transformers_4

from fastspeech.checkpoints import Tokenizer
from fastspeech.errors import CheckpointError

KINDS = ["bpe", "metaspace", "unigram"]


def save(folder: Path, kind: str, clean_up: bool, version: int) -> None:
    """A tokenizer in the files of a version of transformers (5 writes its own)."""
    if version == 4:
        save_as_transformers_4(folder, kind, clean_up)
    else:
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=build(kind),
            additional_special_tokens=EXTRA,
            clean_up_tokenization_spaces=clean_up,
            **ROLES,
        ).save_pretrained(folder)


@pytest.fixture(params=[4, 5], ids=["v4", "v5"])
def folder(request, tmp_path):
    save(tmp_path, "bpe", False, request.param)
    return tmp_path


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clean_up", [False, True])
def test_agrees_with_transformers(tmp_path, kind, clean_up, version):
    save(tmp_path, kind, clean_up, version)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map == ROLES
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.additional_special_tokens == theirs.extra_special_tokens == EXTRA
    assert (ours.pad_token_id, ours.eos_token_id) == (theirs.pad_token_id, theirs.eos_token_id)

    chance = random.Random(0)
    rows = [theirs.encode(text) for text in TEXTS]
    rows += [chance.choices(range(len(theirs)), k=12) for _ in range(200)]
    for skip in (False, True):
        assert ours.decode(rows, skip_special_tokens=skip) == theirs.decode(rows, skip_special_tokens=skip)
        for clean in (None, False, True):
            for row in rows:
                arguments = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                assert ours.decode(row, **arguments) == theirs.decode(row, **arguments)
                tokens = theirs.convert_ids_to_tokens(row, skip_special_tokens=skip)
                assert ours.convert_ids_to_tokens(row, skip_special_tokens=skip) == tokens
    for text in TEXTS:
        for add in (False, True):
            assert ours.encode(text, add_special_tokens=add) == theirs.encode(text, add_special_tokens=add)


def test_cleaning_up_is_seen_by_the_comparison():
    # so that the test above cannot pass for want of anything to clean
    tokenizer = Tokenizer(build("unigram"), clean_up_tokenization_spaces=True)
    ids = tokenizer.encode("and .", add_special_tokens=False)
    assert tokenizer.decode(ids) == "and."
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "and ."


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": True},
        {"padding": "longest", "padding_side": "left"},
        {"padding": "max_length", "max_length": 30},
        {"padding": True, "truncation": True, "max_length": 9},
        {"padding": True, "truncation": True, "max_length": 9, "add_special_tokens": False},
        {"padding": True, "return_tensors": "pt"},
        {"padding": True, "return_tensors": "np"},
    ],
)
def test_batches_agree_with_transformers(folder, arguments):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, **arguments)
    ours = Tokenizer.from_pretrained(folder)(TEXTS, **arguments)
    for name in ("input_ids", "attention_mask"):
        assert type(ours[name]) is type(theirs[name])
        assert np.array_equal(ours[name], theirs[name]) if "return_tensors" in arguments else ours[name] == theirs[name]
    if "return_tensors" in arguments:
        assert ours.input_ids.dtype in (torch.int64, np.int64)


def test_one_text(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS[0]).input_ids
    assert tokenizer(TEXTS[0]).attention_mask == [1] * len(ids)
    assert tokenizer(TEXTS[0], return_tensors="pt").input_ids.tolist() == [ids]
    assert tokenizer.encode(TEXTS[0], return_tensors="pt").tolist() == [ids]
    assert ids[0] == tokenizer.bos_token_id


def test_what_decode_takes(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = tokenizer.encode("Käfer")
    text = "<s> Käfer"
    for one in (ids, tuple(ids), np.array(ids), torch.tensor(ids), [np.int64(i) for i in ids], list(torch.tensor(ids))):
        assert tokenizer.decode(one) == text
    for batch in ([ids, ids], np.array([ids, ids]), torch.tensor([ids, ids]), [torch.tensor(ids), np.array(ids)]):
        assert tokenizer.decode(batch) == tokenizer.batch_decode(batch) == [text, text]
    assert tokenizer.decode(ids[0]) == "<s>"
    assert tokenizer.decode([]) == ""


def test_tokens_and_ids(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(["<|en|>", "▁", "no such piece"])
    assert ids[2] == tokenizer.unk_token_id == 0
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|en|>", "▁", "<unk>"]
    assert tokenizer.convert_tokens_to_ids("<|en|>") == ids[0]
    assert tokenizer.convert_ids_to_tokens(ids[1]) == "▁"
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == (None, None)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    with pytest.raises(AttributeError, match="Tokenizer has no attribute 'vocabulary'"):
        tokenizer.vocabulary  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_is_saved(tmp_path, kind):
    ours = Tokenizer(build(kind), additional_special_tokens=EXTRA, model_max_length=77, padding_side="left", **ROLES)
    # as if transformers 4 had saved another one here
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<s>"}')
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.get_vocab() == ours.get_vocab()
    assert theirs.special_tokens_map == ROLES
    assert theirs.extra_special_tokens == EXTRA
    assert (theirs.model_max_length, theirs.padding_side) == (77, "left")
    again = Tokenizer.from_pretrained(tmp_path)
    assert (again.model_max_length, again.padding_side) == (77, "left")
    for tokenizer in (theirs, again):
        assert tokenizer.encode(TEXTS[0]) == ours.encode(TEXTS[0])
        assert tokenizer.special_tokens_map == ROLES
        assert tokenizer.all_special_ids == ours.all_special_ids


def test_missing_special_tokens_are_appended(tmp_path):
    build().save(str(tmp_path / "tokenizer.json"))
    size = len(build().get_vocab())
    roles = {"eos_token": "</s>", "pad_token": {"content": "<pad>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    assert ours.pad_token_id == theirs.pad_token_id == size
    assert ours.eos_token_id == theirs.eos_token_id == 2
    assert ours.decode([2, size, 3], skip_special_tokens=True) == theirs.decode([2, size, 3], skip_special_tokens=True)


def test_settings_of_the_model_round_trip(folder, tmp_path):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": True, "tgt_lang": "fr"}))
    Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert (written["do_lower_case"], written["tgt_lang"]) == (True, "fr")
    assert "model_max_length" not in written


def test_padding_and_truncation_in_tokenizer_json_are_off(tmp_path):
    backend = build()
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_pretrained(tmp_path).encode(TEXTS[0])) > 8
    assert len(Tokenizer.from_pretrained(tmp_path).encode("a")) < 8


def test_wrong_arguments():
    tokenizer = Tokenizer(build())
    with pytest.raises(ValueError, match="padding needs a pad_token"):
        tokenizer(TEXTS, padding=True)
    with pytest.raises(ValueError, match="truncation needs a max_length"):
        tokenizer(TEXTS, truncation=True)
    tokenizer.pad_token = "</s>"
    with pytest.raises(ValueError, match="padding='max_length' needs a max_length"):
        tokenizer(TEXTS, padding="max_length")
    with pytest.raises(ValueError, match="padding must be True, False"):
        tokenizer(TEXTS, padding="shortest")
    with pytest.raises(ValueError, match=r"input_ids does not make one tensor .*padding=True"):
        tokenizer(TEXTS, return_tensors="pt")
    with pytest.raises(ValueError, match="padding_side must be"):
        Tokenizer(build(), padding_side="top")


def test_bad_files(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    moved = {"999": {"content": "<|new|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": moved}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: .*'<\|new\|>' the id 999"):
        Tokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Tokenizer.from_pretrained(folder)
