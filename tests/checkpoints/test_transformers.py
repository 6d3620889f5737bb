"""Checkpoints of transformers in, ours out to transformers, for a tiny CohereAsr with random weights."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from vocabulary import EXTRA, ROLES, build, save_as_transformers_4

import fastspeech
from fastspeech.errors import CheckpointError

ENCODER = {
    "model_type": "parakeet_encoder",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 8,
}
DECODER = {
    "vocab_size": 147,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_start_token_id": 85,
    "bos_token_id": 98,
    "eos_token_id": 98,
    "pad_token_id": 0,
}


def assert_same_state(mine: torch.nn.Module, theirs: torch.nn.Module) -> None:
    mine, theirs = mine.state_dict(), theirs.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype, name
        assert torch.equal(mine[name], theirs[name]), name


def their_model(**fields) -> transformers.CohereAsrForConditionalGeneration:
    torch.manual_seed(0)
    config = transformers.CohereAsrConfig(encoder_config=ENCODER, **DECODER | fields)
    model = transformers.CohereAsrForConditionalGeneration(config).eval()
    for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if "running" in name)]:
        tensor.data.uniform_(0.5, 1.5)
    for name, buffer in model.named_buffers():
        if "num_batches" in name:
            buffer.fill_(7)
    model.generation_config.max_length = 33
    return model


@pytest.fixture
def theirs():
    return their_model()


def loaded_by_transformers(folder: Path, kind: type = transformers.CohereAsrForConditionalGeneration):
    """The model as transformers loads it, which must not complain."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_theirs_to_ours(tmp_path, theirs, dtype, max_shard_size):
    theirs.to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "5GB")
    ours = fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_state(ours, theirs)
    assert ours.dtype == dtype
    assert ours.generation_config.max_length == 33
    assert ours.generation_config.decoder_start_token_id == 85


def test_ours_cast_as_theirs(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours = fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path, dtype="bfloat16")
    assert_same_state(ours, type(theirs).from_pretrained(tmp_path, dtype="bfloat16"))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_ours_to_theirs(tmp_path, max_shard_size, tie):
    theirs = their_model(tie_word_embeddings=tie)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    assert (ours.proj_out.weight is ours.model.decoder.embed_tokens.weight) == tie
    ours.save_pretrained(tmp_path / "ours", max_shard_size=max_shard_size)
    again = loaded_by_transformers(tmp_path / "ours")
    assert_same_state(ours, again)
    before, after = (m.config.to_dict() for m in (loaded_by_transformers(tmp_path / "theirs"), again))
    assert before | {"_name_or_path": ""} == after | {"_name_or_path": ""}
    assert again.generation_config.max_length == 33
    assert again.generation_config.decoder_start_token_id == 85
    assert isinstance(transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "ours"), type(theirs))


def test_names_of_the_model_itself(tmp_path, theirs):
    # transformers 5.23 saves CohereAsr under the released names; other versions under those of the modules
    theirs.save_pretrained(tmp_path)
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    assert_same_state(fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path), theirs)


def test_released_layout(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "model.transf_decoder._embedding.position_embedding.pos_enc" in tensors
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors["preprocessor.featurizer.fb"] = torch.ones(1, 8, 257)
    tensors["preprocessor.featurizer.window"] = torch.ones(400)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_state(fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path), theirs)
    assert_same_state(fastspeech.CohereAsrModel.from_pretrained(tmp_path), theirs.model)


def test_bare_models(tmp_path, theirs):
    theirs.save_pretrained(tmp_path / "whole")
    ours = fastspeech.CohereAsrModel.from_pretrained(tmp_path / "whole")
    assert_same_state(ours, theirs.model)
    theirs.model.save_pretrained(tmp_path / "bare")
    assert_same_state(fastspeech.CohereAsrModel.from_pretrained(tmp_path / "bare"), theirs.model)
    with pytest.warns(UserWarning, match=r"holds no proj_out\.weight, proj_out\.bias: newly initialised"):
        whole = fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "bare")
    assert_same_state(whole.model, theirs.model)
    ours.save_pretrained(tmp_path / "ours")
    assert_same_state(ours, loaded_by_transformers(tmp_path / "ours", transformers.CohereAsrModel))


def test_a_bin_checkpoint(tmp_path, theirs):
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_state(fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path), theirs)


def test_a_checkpoint_with_a_missing_or_misshapen_tensor(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    whole = dict(tensors)
    del tensors["model.encoder.layers.1.self_attn.pos_bias_u"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.encoder\.layers\.1\.self_attn\.bias_u"):
        fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path)
    whole["log_softmax.mlp.layer0.weight"] = torch.ones(148, 16)
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"proj_out\.weight has the shape \(148, 16\)"):
        fastspeech.CohereAsrForConditionalGeneration.from_pretrained(tmp_path)


SETTINGS = {"feature_size": 8, "dither": 0.0, "max_audio_clip_s": 12.5}


@pytest.mark.parametrize("version", [4, 5])
def test_their_processor_to_ours_and_back(tmp_path, version):
    extractor = transformers.CohereAsrFeatureExtractor(**SETTINGS)
    if version == 4:
        save_as_transformers_4(tmp_path, "bpe", False)
        extractor.save_pretrained(tmp_path)
    else:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=build(), additional_special_tokens=EXTRA, **ROLES
        )
        transformers.CohereAsrProcessor(extractor, tokenizer).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").exists() == (version == 4)
    ours = fastspeech.CohereAsrProcessor.from_pretrained(tmp_path)
    for name, value in extractor.to_dict().items():
        assert ours.feature_extractor.to_dict()[name] == value
    assert fastspeech.CohereAsrProcessor.from_pretrained(tmp_path, dither=0.5).feature_extractor.dither == 0.5

    # over the same files, which must not shine through
    ours.feature_extractor.dither = 0.25
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text()) == {"processor_class": "CohereAsrProcessor"}
    for load in (transformers.AutoProcessor, transformers.CohereAsrProcessor, fastspeech.CohereAsrProcessor):
        again = load.from_pretrained(tmp_path)
        assert type(again).__name__ == "CohereAsrProcessor"
        assert (again.feature_extractor.dither, again.feature_extractor.feature_size) == (0.25, 8)
        assert again.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
        ids = again.tokenizer.encode("my fellow Käfer")
        assert again.decode(ids, skip_special_tokens=True) == "my fellow Käfer"
        assert again.batch_decode([ids]) == ours.batch_decode([ids])
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path).dither == 0.25
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token == "</s>"
