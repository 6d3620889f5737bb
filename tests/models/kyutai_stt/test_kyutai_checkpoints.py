"""Kyutai STT's files: configurations, weights to transformers and back, and the folders of the original."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import sentencepiece
import tiny_kyutai
import torch
import transformers
from kyutai_pair import CODES, FRAME, ODD, TEXTS, audio, configs, ids, pair, worst

from fastspeech import (
    AutoConfig,
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    CheckpointError,
    GenerationConfig,
    KyutaiSpeechToTextConfig,
    KyutaiSpeechToTextForConditionalGeneration,
    KyutaiSpeechToTextModel,
    KyutaiSpeechToTextProcessor,
    MimiConfig,
)

Model = KyutaiSpeechToTextForConditionalGeneration


@pytest.mark.parametrize("name", ["small", "grouped"])
def test_round_trips(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="60KB")
    assert list((tmp_path / "ours").glob("*.index.json"))
    given, heard = ids(2, 9), audio(2, 10 * FRAME)
    tokens = ours.generate(heard)
    with torch.no_grad():
        expected = theirs(input_ids=given).logits
        for folder in (tmp_path / "theirs", tmp_path / "ours"):
            here = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
            assert type(here) is Model and not here.training
            assert worst(here(given).logits, expected) <= 1e-4
            assert torch.equal(here.generate(heard), tokens)
            bare = AutoModel.from_pretrained(folder)
            assert type(bare) is KyutaiSpeechToTextModel
            assert worst(bare(given).last_hidden_state, theirs.model(input_ids=given).last_hidden_state) <= 1e-4
            there = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(folder)
            assert worst(there(input_ids=given).logits, expected) <= 1e-4
            assert torch.equal(there.generate(input_values=heard), tokens)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == ["KyutaiSpeechToTextForConditionalGeneration"]
    assert written["codec_config"]["model_type"] == "mimi"


def test_a_bare_model_is_saved_and_is_no_whole_one(tmp_path: Path) -> None:
    _, ours = pair()
    ours.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight, codec_model\.encoder"):
        Model.from_pretrained(tmp_path)
    with torch.no_grad():
        found = KyutaiSpeechToTextModel.from_pretrained(tmp_path)(ids(1, 4)).last_hidden_state
        assert torch.equal(found, ours.model(ids(1, 4)).last_hidden_state)


def test_the_codecs_parameters_of_generation(tmp_path: Path) -> None:
    """They lie in one file with the model's, under names of their own, and go to the codec and back."""
    _, ours = pair()
    ours.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["audio_window_size"] == 1 and written["codec_use_cache"] is True
    (tmp_path / "generation_config.json").write_text(
        json.dumps(written | {"codec_cache_implementation": "sliding_window", "codec_max_length": 7})
    )
    found = Model.from_pretrained(tmp_path)
    assert not [name for name in vars(found.generation_config) if name.startswith("codec_")]
    assert found.generation_config.bos_token_id == ours.config.bos_token_id
    codec = found.codec_model.generation_config
    assert isinstance(codec, GenerationConfig)
    assert (codec.cache_implementation, codec.max_length, codec.use_cache) == ("sliding_window", 7, True)
    found.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert again == json.loads((tmp_path / "generation_config.json").read_text())
    assert "codec_use_cache" not in vars(found.generation_config)
    there = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert there.codec_model.generation_config.max_length == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_loaded_narrow_the_codec_is_float32(dtype: Any, tmp_path: Path) -> None:
    _, ours = pair()
    ours.save_pretrained(tmp_path)
    narrow = Model.from_pretrained(tmp_path, dtype=dtype)
    assert str(narrow.dtype) in ("torch.bfloat16", "torch.float16")
    assert {p.dtype for p in narrow.model.parameters()} == {narrow.lm_head.weight.dtype} == {narrow.dtype}
    kept = narrow.codec_model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in ours.codec_model.state_dict().items())
    assert narrow.generate(audio(2, 5 * FRAME)).shape == (2, 6)
    narrow.save_pretrained(tmp_path / "narrow")
    stored = safetensors.torch.load_file(tmp_path / "narrow" / "model.safetensors")
    assert {t.dtype for name, t in stored.items() if name.startswith("codec_model.")} == {torch.float32}
    assert Model.from_pretrained(tmp_path / "narrow").dtype == narrow.dtype


def test_defaults_are_transformers() -> None:
    expected, found = transformers.KyutaiSpeechToTextConfig().to_dict(), KyutaiSpeechToTextConfig().to_dict()
    for name in found.keys() & expected.keys() - {"codec_config", "architectures"}:
        assert found[name] == expected[name], name
    fields = {"vocab_size", "sliding_window", "rope_parameters", "frame_size", "ffn_dim", "head_dim", "bos_token_id"}
    assert fields <= found.keys() & expected.keys()
    assert KyutaiSpeechToTextConfig().embeddings == 69570


@pytest.mark.parametrize("name", ODD)
def test_configurations_go_both_ways(name: str, tmp_path: Path) -> None:
    theirs, ours = configs(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    here = AutoConfig.from_pretrained(tmp_path / "theirs")
    assert isinstance(here.codec_config, MimiConfig)
    for field in ("vocab_size", "head_dim", "num_key_value_heads", "rope_theta", "ffn_dim", "frame_size", "hidden_act"):
        assert getattr(here, field) == getattr(ours, field), field
    there = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert there.rope_parameters == theirs.rope_parameters
    assert there.codec_config.to_dict()["upsampling_ratios"] == [8, 4]
    assert KyutaiSpeechToTextConfig.from_pretrained(tmp_path / "ours") == ours


@pytest.mark.parametrize(
    ("given", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 100000.0}, 100000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}, 100000.0),
    ],
)
def test_the_rotary_base_of_either_version(given: dict[str, Any], theta: float) -> None:
    config = KyutaiSpeechToTextConfig.from_dict({"model_type": "kyutai_speech_to_text", **given})
    expected = transformers.KyutaiSpeechToTextConfig.from_dict({"model_type": "kyutai_speech_to_text", **given})
    assert config.rope_theta == theta
    assert config.rope_parameters == expected.rope_parameters
    assert KyutaiSpeechToTextConfig.from_dict(config.to_dict()) == config
    assert KyutaiSpeechToTextConfig.from_dict(config.to_dict(), rope_theta=77.0).rope_theta == 77.0


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"ffn_dim": 11265}, "ffn_dim must be even, got 11265"),
        ({"num_attention_heads": 3}, r"num_attention_heads \(3\) must divide hidden_size"),
        ({"num_key_value_heads": 5}, r"num_key_value_heads \(5\) must divide"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not implemented"),
        ({"num_codebooks": 8}, "num_codebooks is 8, and the codec has 32 levels"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not implemented"),
    ],
)
def test_configurations_that_are_refused(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        KyutaiSpeechToTextConfig(**wrong)


def side_by_side(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in moshi's order: the two of a rotated pair next to each other."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def released_attention(state: dict[str, torch.Tensor], own: str, linear: str, heads: int, old: bool) -> dict[str, Any]:
    q, k, v, o = (state.pop(f"{own}self_attn.{part}_proj.{linear}weight") for part in "qkvo")
    packed = torch.cat((side_by_side(q, heads), side_by_side(k, heads), v))
    names = ("in_proj_weight", "out_proj.weight") if old else ("in_projs.0.weight", "out_projs.0.weight")
    return dict(zip(names, (packed, o), strict=True))


def save_as_released(model: Model, folder: Path, old_names: bool, heads: bool, named: bool) -> None:
    """A folder such as Kyutai's, written from the conversion's rules read backwards.

    old_names: of the attention's weights; heads: with those that tell pauses; named: config.json names the files.
    """
    folder.mkdir()
    config = model.config
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = state.pop("model.embed_tokens.embed_tokens.weight")
    decoder = {"text_emb.weight": table[:TEXTS].clone(), "text_linear.weight": state.pop("lm_head.weight")[:-1]}
    for book in range(8):
        decoder[f"emb.{book}.weight"] = table[TEXTS + book * CODES :][:CODES].clone()
    decoder["out_norm.alpha"] = state.pop("model.norm.weight")[None, None]
    for layer in range(config.num_hidden_layers):
        own, theirs = f"model.layers.{layer}.", f"transformer.layers.{layer}."
        attention = released_attention(state, own, "linear.", config.num_attention_heads, old_names)
        decoder |= {f"{theirs}self_attn.{name}": tensor for name, tensor in attention.items()}
        decoder[f"{theirs}gating.linear_in.weight"] = state.pop(f"{own}mlp.fc1.weight")
        decoder[f"{theirs}gating.linear_out.weight"] = state.pop(f"{own}mlp.fc2.weight")
        for number, norm in enumerate(("input_layernorm", "post_attention_layernorm"), 1):
            decoder[f"{theirs}norm{number}.alpha"] = state.pop(f"{own}{norm}.weight")[None, None]
    if heads:
        generator = torch.Generator().manual_seed(5)
        for number in range(4):
            decoder[f"extra_heads.{number}.weight"] = torch.randn(6, config.hidden_size, generator=generator)
    codec = {}
    state = {name.removeprefix("codec_model."): tensor for name, tensor in state.items()}
    for layer in range(config.codec_config.num_hidden_layers):
        own, theirs = f"encoder_transformer.layers.{layer}.", f"encoder_transformer.transformer.layers.{layer}."
        attention = released_attention(state, own, "", config.codec_config.num_attention_heads, old_names)
        codec |= {f"{theirs}self_attn.{name}": tensor for name, tensor in attention.items()}
        for name, old in (
            ("mlp.fc1.weight", "linear1.weight"),
            ("mlp.fc2.weight", "linear2.weight"),
            ("input_layernorm.weight", "norm1.weight"),
            ("input_layernorm.bias", "norm1.bias"),
            ("post_attention_layernorm.weight", "norm2.weight"),
            ("post_attention_layernorm.bias", "norm2.bias"),
            ("self_attn_layer_scale.scale", "layer_scale_1.scale"),
            ("mlp_layer_scale.scale", "layer_scale_2.scale"),
        ):
            codec[theirs + old] = state.pop(own + name)
    for name, tensor in state.items():
        name = name.replace("encoder.layers.", "encoder.model.").replace(".conv.", ".conv.conv.")
        name = name.replace("downsample.conv.", "downsample.conv.conv.")
        for group, old in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
            name = name.replace(f"{group}_residual_vector_quantizer.layers", f"{old}.vq.layers")
            name = name.replace(f"{group}_residual_vector_quantizer", old)
        name = name.replace("codebook.initialized", "_codebook._initialized")
        name = name.replace("codebook.cluster_usage", "_codebook.cluster_usage")
        codec[name.replace("codebook.embed_sum", "_codebook.embedding_sum")] = tensor
    codec["decoder.model.0.conv.conv.weight"] = torch.zeros(3)
    codec["upsample.convtr.convtr.convtr.weight"] = torch.zeros(3)
    codec["decoder_transformer.transformer.layers.0.norm1.weight"] = torch.zeros(3)
    safetensors.torch.save_file({name: t.contiguous() for name, t in decoder.items()}, folder / "model.safetensors")
    mimi = "mimi-pytorch-e351c8d8@125.safetensors"
    safetensors.torch.save_file({name: t.contiguous() for name, t in codec.items()}, folder / mimi)
    values = {
        "card": 16,
        "n_q": 8,
        "dep_q": 0,
        "delays": [0] * 9,
        "dim": 32,
        "text_card": TEXTS - 1,
        "existing_text_padding_id": 3,
        "num_heads": 4,
        "num_layers": 2,
        "hidden_scale": 33 / 32,
        "causal": True,
        "context": 6,
        "max_period": 10000.0,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "conditioners": {},
        "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
        "lm_gen_config": {"temp": 0.0, "temp_text": 0.0},
        "model_type": "stt",
    }
    tokenizer = "tokenizer_en_audio_4000.model"
    if named:
        values |= {"mimi_name": mimi, "tokenizer_name": tokenizer}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / tokenizer).write_bytes(vocabulary())


def vocabulary() -> bytes:
    """A SentencePiece model of Kyutai's kind: `<pad>` is the fourth piece, and unknown letters are bytes."""
    made = io.BytesIO()
    sentences = iter(["the cat sat on the mat", "a cat and a hat", "that hat on the cat"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=made,
        vocab_size=290,
        model_type="unigram",
        byte_fallback=True,
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return made.getvalue()


OF_TESTS = {"codec_config": tiny_kyutai.CODEC, "ffn_dim": 44}
"""What config.json does not tell of our small model: the codec's sizes, and a width that is no third."""


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("heads", [True, False])
def test_the_original_layout(old_names: bool, heads: bool, tmp_path: Path) -> None:
    _, ours = pair()
    expected = with_a_row_of_zeros(ours)
    save_as_released(expected, tmp_path / "released", old_names, heads, named=old_names)
    found = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "released", **OF_TESTS)
    state, wanted = found.state_dict(), expected.state_dict()
    assert state.keys() - wanted.keys() == ({f"extra_heads.{i}.weight" for i in range(4)} if heads else set())
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert torch.equal(
        found.generate(audio(2, 9 * FRAME), alignment="moshi"),
        expected.generate(audio(2, 9 * FRAME), alignment="moshi"),
    )
    hidden = torch.randn(3, 32)
    pauses = found.pause_probabilities(hidden)
    assert pauses.shape == (3, 4 if heads else 0)
    if heads:
        third = (hidden @ state["extra_heads.2.weight"].T).softmax(-1)[:, 0]
        assert worst(pauses[:, 2], third) <= 1e-6
    found.save_pretrained(tmp_path / "converted")
    again = Model.from_pretrained(tmp_path / "converted")
    assert again.state_dict().keys() == state.keys()
    there = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(tmp_path / "converted")
    with torch.no_grad():
        assert worst(there(input_ids=ids(1, 5)).logits, found(ids(1, 5)).logits) <= 1e-4


def with_a_row_of_zeros(model: Model) -> Model:
    """What conversion gives the head, of which the original lacks the last row."""
    made = Model(model.config).eval()
    made.load_state_dict(model.state_dict())
    with torch.no_grad():
        made.lm_head.weight[-1] = 0
    return made


@pytest.mark.parametrize("named", [True, False])
def test_the_originals_processor(named: bool, tmp_path: Path) -> None:
    save_as_released(pair()[1], tmp_path / "released", True, False, named)
    processor = AutoProcessor.from_pretrained(tmp_path / "released")
    assert type(processor) is KyutaiSpeechToTextProcessor
    extractor = processor.feature_extractor
    assert (extractor.audio_silence_prefix_seconds, extractor.audio_delay_seconds) == (1.0, 2.5)
    reader = sentencepiece.SentencePieceProcessor(model_proto=vocabulary())
    text = "that cat sät on a hat"
    pieces = reader.encode(text)
    assert processor.tokenizer.encode(text) == pieces
    woven = [3, 3, 0, *pieces[:3], 3, 0, *pieces[3:], 3]
    assert processor.batch_decode([woven], skip_special_tokens=True) == [reader.decode(pieces)] == [text]
    assert [processor.tokenizer.unk_token_id, processor.tokenizer.pad_token_id] == [0, 3]
    processor.save_pretrained(tmp_path / "saved")
    there = transformers.KyutaiSpeechToTextProcessor.from_pretrained(tmp_path / "saved")
    assert there.batch_decode([woven], skip_special_tokens=True) == [text]
    assert there.feature_extractor.audio_delay_seconds == 2.5


def test_the_originals_configuration() -> None:
    """The sizes of stt-2.6b-en and stt-1b-en_fr, by the facts."""
    common = {"card": 2048, "n_q": 32, "dim": 2048, "existing_text_padding_id": 3, "hidden_scale": 4.125}
    for own, expected in (
        (
            {"text_card": 4000, "num_heads": 32, "num_layers": 48, "context": 375, "max_period": 100000},
            {"vocab_size": 4001, "head_dim": 64, "sliding_window": 375, "audio_pad_token_id": 69569},
        ),
        (
            {"text_card": 8000, "num_heads": 16, "num_layers": 16, "context": 750, "max_period": 100000.0},
            {"vocab_size": 8001, "head_dim": 128, "sliding_window": 750, "audio_pad_token_id": 73569},
        ),
    ):
        config = KyutaiSpeechToTextConfig.from_dict(common | own)
        more = {"ffn_dim": 11264, "rope_theta": 1e5, "pad_token_id": 3, "audio_bos_token_id": 2048}
        assert {name: getattr(config, name) for name in expected | more} == expected | more
        assert config.embeddings == config.audio_pad_token_id + 1


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"dep_q": 8}, r"config\.json: dep_q is 8; Kyutai STT has 0"),
        ({"delays": [0, 2]}, r"delays are \[0, 2\]; Kyutai STT has none"),
        ({"gating": "none"}, "gating is 'none'"),
        ({"mimi_name": "absent.safetensors"}, "names the codec absent.safetensors, which is not in the folder"),
        ({"mimi_name": "../codec.safetensors"}, "codec.safetensors"),
        ({"n_q": 9}, r"lacks codec_model\.quantizer"),
        ({"text_card": 50}, r"embed_tokens\.weight has the shape \(178, 32\), and .* needs \(188, 32\)"),
        ({"num_heads": 32}, "which 32 heads cannot"),
    ],
)
def test_a_wrong_original(wrong: dict[str, Any], fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "released"
    save_as_released(pair()[1], folder, True, False, True)
    values = json.loads((folder / "config.json").read_text()) | wrong
    (folder / "config.json").write_text(json.dumps(values))
    codec = tiny_kyutai.CODEC | ({"num_quantizers": 9} if "n_q" in wrong else {})
    with pytest.raises(CheckpointError, match=fault):
        Model.from_pretrained(folder, codec_config=codec, ffn_dim=44)


def test_the_codecs_file_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "released"
    save_as_released(pair()[1], folder, True, False, False)
    (codec,) = folder.glob("mimi*")
    codec.rename(folder / "mimi-pytorch-other.safetensors")
    assert Model.from_pretrained(folder, **OF_TESTS).config.frame_size == FRAME
    (folder / "mimi-pytorch-other.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"0 files mimi-pytorch-\*\.safetensors, and needs one, the codec"):
        Model.from_pretrained(folder, **OF_TESTS)
    (folder / "tokenizer_en_audio_4000.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json, and not one vocabulary"):
        AutoProcessor.from_pretrained(folder)
