import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toy import ToyConfig, ToyModel, ToyWithHead, trained

from fastspeech.checkpoints import weights
from fastspeech.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    trained().save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def edit(folder: Path, change) -> None:
    """Rewrite the stored tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype, name
        assert torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", 50])
def test_round_trip(tmp_path, tie, max_shard_size):
    model = trained(ToyConfig(tie_word_embeddings=tie))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ToyWithHead.from_pretrained(tmp_path)
    assert_same_state(loaded, model)
    assert (loaded.head.weight is loaded.model.embed.weight) == tie
    ids = torch.arange(5)
    assert torch.equal(loaded(ids), model(ids))
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config == model.config
    assert loaded.config.architectures == ["ToyWithHead"]
    assert loaded.name_or_path == str(tmp_path)


def test_a_tied_tensor_is_saved_once(checkpoint):
    assert "head.weight" not in load_file(checkpoint / "model.safetensors")


def test_a_loaded_model_can_be_trained_and_saved_over_its_own_files(checkpoint):
    model = ToyWithHead.from_pretrained(checkpoint)
    model(torch.arange(5)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    model.save_pretrained(checkpoint)
    assert_same_state(ToyWithHead.from_pretrained(checkpoint), model)


@pytest.mark.parametrize("argument", [{"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}])
def test_dtype_is_of_floating_tensors(checkpoint, argument):
    model = ToyWithHead.from_pretrained(checkpoint, **argument)
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert model.model.norm.running_var.dtype == torch.bfloat16
    assert model.model.norm.num_batches_tracked.dtype == torch.int64
    assert model.model.norm.num_batches_tracked == 3
    assert model.model.positions.rates.dtype == torch.float32


def test_dtype_is_that_of_the_checkpoint_by_default(checkpoint):
    half = ToyWithHead.from_pretrained(checkpoint).to(torch.float16)
    half.save_pretrained(checkpoint)
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "float16"
    assert ToyWithHead.from_pretrained(checkpoint).dtype == torch.float16
    set_config(checkpoint, dtype=None)
    assert ToyWithHead.from_pretrained(checkpoint).dtype == torch.float16
    # transformers 4 wrote torch_dtype
    set_config(checkpoint, torch_dtype="float64")
    assert ToyWithHead.from_pretrained(checkpoint, dtype="auto").dtype == torch.float64


@pytest.mark.parametrize("dtype", ["int64", torch.int8, "no_dtype", "nn", 3])
def test_bad_dtype(checkpoint, dtype):
    with pytest.raises(ValueError, match="dtype must be a floating dtype"):
        ToyWithHead.from_pretrained(checkpoint, dtype=dtype)


@pytest.mark.parametrize("device_map", [None, "cpu", torch.device("cpu"), {"": "cpu"}])
def test_device_map(checkpoint, device_map):
    assert ToyWithHead.from_pretrained(checkpoint, device_map=device_map).device == torch.device("cpu")


def test_device_map_auto(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ToyWithHead.from_pretrained(checkpoint, device_map="auto").device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_map_auto_on_a_gpu(checkpoint):
    model = ToyWithHead.from_pretrained(checkpoint, device_map="auto")
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cuda"}


def test_a_device_map_over_several_devices_is_refused(checkpoint):
    with pytest.raises(ValueError, match="the whole model only"):
        ToyWithHead.from_pretrained(checkpoint, device_map={"model": "cpu", "head": "cuda:0"})


def test_config_and_overrides(checkpoint):
    config = ToyConfig.from_pretrained(checkpoint)
    model = ToyWithHead.from_pretrained(checkpoint, config=config, dtype="float64")
    assert config.dtype == torch.float32
    assert model.config is not config
    assert ToyWithHead.from_pretrained(checkpoint, output_attentions=True).config.output_attentions
    with pytest.raises(TypeError, match=r"low_memory: neither an argument nor a field of ToyConfig"):
        ToyWithHead.from_pretrained(checkpoint, low_memory=True)


def test_original_names_and_ignored_tensors(checkpoint):
    def to_original(tensors):
        for name in list(tensors):
            if ".norm." in name or name.startswith("head."):
                tensors[name.replace(".norm.", ".old_norm.").replace("head.", "classifier.")] = tensors.pop(name)
        tensors["scratch"] = torch.ones(3)

    model = ToyWithHead.from_pretrained(checkpoint)
    edit(checkpoint, to_original)
    assert_same_state(ToyWithHead.from_pretrained(checkpoint), model)


def test_a_bare_model_loads_from_a_checkpoint_with_a_head(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = ToyModel.from_pretrained(checkpoint)
    assert_same_state(bare, ToyWithHead.from_pretrained(checkpoint).model)


@pytest.mark.parametrize("tie", [True, False])
def test_a_model_with_a_head_loads_from_a_bare_checkpoint(tmp_path, tie):
    bare = trained(ToyConfig(tie_word_embeddings=tie)).model
    bare.save_pretrained(tmp_path)
    assert "embed.weight" in load_file(tmp_path / "model.safetensors")
    missing = "head.bias" if tie else "head.weight, head.bias"
    with pytest.warns(UserWarning, match=f"holds no {missing}: newly initialised"):
        model = ToyWithHead.from_pretrained(tmp_path, dtype="float64")
    assert_same_state(model.model, bare.double())
    assert model.head.bias.dtype == torch.float64
    assert 0 < model.head.bias.abs().max() <= 6**-0.5
    assert (model.head.weight is model.model.embed.weight) == tie
    assert model(torch.arange(5)).isfinite().all()


def test_a_bare_checkpoint_with_a_hole_is_refused(tmp_path):
    trained().model.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("norm.weight"))
    with pytest.raises(CheckpointError, match=r"lacks head\.bias, model\.norm\.weight|lacks model\.norm\.weight"):
        ToyWithHead.from_pretrained(tmp_path)


def test_a_missing_tensor_is_named(checkpoint):
    edit(checkpoint, lambda tensors: tensors.pop("model.norm.running_var"))
    with pytest.raises(CheckpointError, match=r"toy lacks model\.norm\.running_var, which ToyWithHead needs"):
        ToyWithHead.from_pretrained(checkpoint)


def test_a_missing_piece_of_the_head_is_no_new_head(tmp_path):
    trained(ToyConfig(tie_word_embeddings=False)).save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("head.bias"))
    with pytest.raises(CheckpointError, match=r"lacks head\.bias"):
        ToyWithHead.from_pretrained(tmp_path)


def test_an_unexpected_tensor_is_named(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({f"model.extra.{n}": torch.ones(1) for n in range(7)}))
    with pytest.raises(CheckpointError, match=r"holds model\.extra\.0, .* and 2 more, which ToyWithHead has no place"):
        ToyWithHead.from_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=r"model\.extra\.0"):
        ToyModel.from_pretrained(checkpoint)


def test_a_stored_derived_buffer_is_ignored(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({"model.positions.rates": torch.full((6,), 7.0)}))
    for loaded in (ToyWithHead.from_pretrained(checkpoint).model, ToyModel.from_pretrained(checkpoint)):
        assert torch.equal(loaded.positions.rates, torch.arange(6.0))


def test_a_misshapen_tensor_is_named_before_anything_is_read(checkpoint, monkeypatch):
    edit(checkpoint, lambda tensors: tensors.update({"model.norm.bias": torch.ones(6, 1)}))
    monkeypatch.setattr(weights, "_reader", lambda *args: lambda: pytest.fail("read"))
    with pytest.raises(CheckpointError, match=r"norm\.bias has the shape \(6, 1\), and ToyWithHead needs \(6,\)"):
        ToyWithHead.from_pretrained(checkpoint)


def test_a_bin_checkpoint_holds_tied_tensors_twice(checkpoint):
    model = ToyWithHead.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    loaded = ToyWithHead.from_pretrained(checkpoint)
    assert_same_state(loaded, model)
    assert loaded.head.weight is loaded.model.embed.weight


def test_tied_tensors_that_differ_are_refused(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({"head.weight": torch.ones(5, 6)}))
    with pytest.raises(CheckpointError, match=r"ties head\.weight to model\.embed\.weight, but holds two"):
        ToyWithHead.from_pretrained(checkpoint)
    loaded = ToyWithHead.from_pretrained(checkpoint, tie_word_embeddings=False)
    assert torch.equal(loaded.head.weight, torch.ones(5, 6))


def test_a_tied_tensor_may_be_stored_under_its_other_name(checkpoint):
    model = ToyWithHead.from_pretrained(checkpoint)
    edit(checkpoint, lambda tensors: tensors.update({"head.weight": tensors.pop("model.embed.weight")}))
    assert_same_state(ToyWithHead.from_pretrained(checkpoint), model)


def test_generation_config(checkpoint):
    assert ToyWithHead.can_generate()
    assert not ToyModel.can_generate()
    assert ToyModel(ToyConfig()).generation_config is None
    model = ToyWithHead.from_pretrained(checkpoint)
    assert model.generation_config.num_beams == 1
    model.generation_config.num_beams = 4
    model.save_pretrained(checkpoint)
    assert ToyWithHead.from_pretrained(checkpoint).generation_config.num_beams == 4
    # an old checkpoint keeps generation's parameters in config.json
    (checkpoint / "generation_config.json").unlink()
    set_config(checkpoint, num_beams=5)
    assert ToyWithHead.from_pretrained(checkpoint).generation_config.num_beams == 5


def test_a_bad_generation_config_is_named(checkpoint):
    (checkpoint / "generation_config.json").write_text("many")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: invalid literal"):
        ToyWithHead.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"model_type": "whisper"}, r"config\.json: the model type is 'whisper'; ToyConfig reads 'toy'"),
        ({"width": 0}, r"config\.json: width must be positive, got 0"),
        ({"width": "wide"}, r"config\.json: "),
        ({"dtype": "int8"}, r"config\.json: dtype must be"),
        ({"vocab_size": "five"}, "toy: "),
        ({"vocab_size": -5}, "toy: .*negative"),
    ],
)
def test_a_bad_config_is_named(checkpoint, fields, fault):
    set_config(checkpoint, **fields)
    with pytest.raises(CheckpointError, match=fault):
        ToyWithHead.from_pretrained(checkpoint)


def test_a_folder_without_weights_or_config(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="toy has no weights"):
        ToyWithHead.from_pretrained(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"toy has no config\.json"):
        ToyWithHead.from_pretrained(checkpoint)


def test_a_forgotten_derived_buffer_is_a_clear_error(checkpoint, monkeypatch):
    monkeypatch.delattr("toy.Positions.reset_buffers")
    monkeypatch.setattr(
        "toy.Positions.__init__",
        lambda self, width: (
            nn.Module.__init__(self),
            self.register_buffer("rates", torch.zeros(width), persistent=False),
        )[0],
    )
    with pytest.raises(RuntimeError, match=r"no reset_buffers\(\) makes model\.positions\.rates of ToyWithHead"):
        ToyWithHead.from_pretrained(checkpoint)


def test_numbers_of_parameters():
    model = ToyWithHead(ToyConfig(width=6, vocab_size=5))
    assert model.num_parameters() == 5 * 6 + 2 * 6 + 5
    model.head.bias.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 5 * 6 + 2 * 6
    assert ToyWithHead(ToyConfig(width=6, vocab_size=5, tie_word_embeddings=False)).num_parameters() == 77
    assert model.to(torch.float64).dtype == torch.float64
    assert model.device == torch.device("cpu")


def test_attention_implementations(checkpoint):
    for name in (None, "eager", "sdpa"):
        model = ToyWithHead.from_pretrained(checkpoint, attn_implementation=name)
        assert not hasattr(model.config, "attn_implementation")
    with pytest.raises(ValueError, match="'eager' or 'sdpa', got 'flash_attention_2'"):
        ToyWithHead.from_pretrained(checkpoint, attn_implementation="flash_attention_2")
    assert "attn_implementation" not in ToyConfig(attn_implementation="eager").to_dict()
    with pytest.raises(ValueError, match="got 'flex_attention'"):
        ToyConfig(attn_implementation="flex_attention")


def test_a_kind_of_weights_can_be_asked_for(checkpoint):
    loaded = ToyWithHead.from_pretrained(checkpoint, use_safetensors=True, low_cpu_mem_usage=False)
    assert_same_state(loaded, trained())
    with pytest.raises(ValueError, match="use_safetensors=False"):
        ToyWithHead.from_pretrained(checkpoint, use_safetensors=False)
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    assert_same_state(ToyWithHead.from_pretrained(checkpoint), trained())
    with pytest.raises(CheckpointError, match=r"\.bin files and no safetensors"):
        ToyWithHead.from_pretrained(checkpoint, use_safetensors=True)
