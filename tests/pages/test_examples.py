"""The programs on the model pages, with nothing changed but where they import from.

Small random checkpoints lie in the place of the hub's, noise in the place of recordings and data sets, and the same
program, unchanged, run by transformers on the same checkpoints, says what is right.
"""

import contextlib
import io
import re
import sys
import urllib.request
from collections.abc import Callable
from email.message import Message
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tiny_cohere
import tiny_kyutai
import tiny_moonshine
import tiny_speech_to_text
import torch
import transformers
from extract import PAGES, examples_of
from media import encode
from test_surface import PAGES as FOLDER

from fastspeech import CohereAsrForConditionalGeneration, load_audio, pipelines

RATE = 16000


def save_cohere(folder: Path) -> Path:
    """With room for the page's 256 new tokens, and weights so large that the text depends on the sound."""
    config = tiny_cohere.model().config
    config.max_position_embeddings = 300
    torch.manual_seed(0)
    model = CohereAsrForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.2 if parameter.dim() == 1 else 0.4)
    model.save_pretrained(folder)
    tiny_cohere.processor().save_pretrained(folder)
    return folder


SAVED: dict[str, Callable[[Path], Path]] = {
    "CohereLabs/cohere-transcribe-03-2026": save_cohere,
    "UsefulSensors/cohere_asr-tiny": tiny_cohere.save,
    "UsefulSensors/moonshine-base": tiny_moonshine.save,
    "UsefulSensors/moonshine-tiny": tiny_moonshine.save,
    "kyutai/stt-2.6b-en-trfs": tiny_kyutai.save,
    "facebook/s2t-small-librispeech-asr": tiny_speech_to_text.save,
    "facebook/s2t-medium-mustc-multilingual-st": lambda folder: tiny_speech_to_text.save(folder, lang_codes="mustc"),
}
"""The checkpoint of each hub id."""

SECONDS = {"bcn_weather.mp3": 2.0, "obama_first_45_secs.mp3": 12.0, "fleur_es_sample.wav": 1.5, "mlk.flac": 1.0}
"""The length of each recording. The tiny CohereAsr hears 4 s at once."""

Names = dict[str, Any]


def noise(seconds: float, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


class Data(list[dict[str, Any]]):
    """Stands in for a data set: four clips of noise, in float64 as `datasets` decodes them."""

    def __init__(self, rate: int = RATE) -> None:
        clips = (noise((0.6 + 0.2 * i) * rate / RATE, i).astype(np.float64) for i in range(4))
        super().__init__({"audio": {"array": clip, "sampling_rate": rate}} for clip in clips)

    def cast_column(self, name: str, audio: Any) -> "Data":
        assert name == "audio"
        return Data(audio.sampling_rate)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name, save in SAVED.items():
        save(root / name)
    return root


@pytest.fixture
def stand_ins(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub, the net, two libraries, and a GPU that is the CPU."""

    def snapshot(name: str, **options: Any) -> str:
        return str(hub / name)

    def opened(request: Any, timeout: Any = None) -> Any:
        name = request.full_url.rpartition("/")[2]
        file = io.BytesIO(encode(noise(SECONDS[name], len(name))[None], RATE))
        file.headers = Message()  # type: ignore[attr-defined]
        return file

    data, speed = ModuleType("datasets"), ModuleType("accelerate")
    vars(data).update(load_dataset=lambda *names, split: Data(), Audio=SimpleNamespace)
    vars(speed).update(Accelerator=lambda: SimpleNamespace(device=torch.device("cpu")))
    for module in (data, speed):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(urllib.request, "urlopen", opened)
    monkeypatch.setattr(pipelines, "choose_device", lambda device: torch.device("cpu"))


def program(page: str, number: int) -> str:
    """A block of a page, behind the first where it goes on from that."""
    file = FOLDER / f"{page}.md"
    if not file.is_file():
        pytest.skip(f"the page is not at {file}: only the project's own machines have it")
    blocks = examples_of(file.read_text(encoding="utf-8"))
    assert len(blocks) == len([key for key in CHECKS if key[0] == page]), "a block is not run"
    before = blocks[0] if page == "cohere_asr" and 1 <= number <= 4 else ""
    return before + blocks[number]


def run(code: str) -> Names:
    """What the program leaves behind."""
    names: Names = {}
    exec(compile(code, "page", "exec"), names)
    return names


def theirs(code: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    """What it leaves behind with transformers, which finds a folder where the hub's name leads to one, and which does
    not choose a device without the real accelerate.
    """
    monkeypatch.chdir(hub)
    monkeypatch.setattr(transformers.audio_utils, "load_audio", load_audio)
    code = re.sub(r", device_map=(\"auto\"|torch_device)", "", code)
    # Kyutai's processor takes its first argument for images there, of which it makes nothing.
    return run(re.sub(r"processor\(\s*(ds\[0\]|audio_arrays)", r"processor(audio=\1", code))


def same_text(name: str) -> Callable[..., None]:
    """A check that the program's text is transformers', and is one."""

    def check(found: Names, expected: Names) -> None:
        assert found[name] == expected[name]
        for text in [found[name]] if isinstance(found[name], str) else found[name]:
            assert text.strip()

    return check


def same_states(found: Names, expected: Names) -> None:
    assert list(found["last_hidden_state"].shape) == [1, 2, found["model"].config.hidden_size]
    torch.testing.assert_close(found["last_hidden_state"], expected["last_hidden_state"], atol=1e-4, rtol=1e-4)


def same_features(found: Names, expected: Names) -> None:
    for name in ("inputs_pnc", "inputs_nopnc"):
        assert torch.equal(found[name]["decoder_input_ids"], expected[name]["decoder_input_ids"])
        torch.testing.assert_close(
            found[name]["input_features"], expected[name]["input_features"], atol=1e-3, rtol=1e-3
        )
    assert not torch.equal(found["inputs_pnc"]["decoder_input_ids"], found["inputs_nopnc"]["decoder_input_ids"])


def two_chunks(found: Names, expected: Names) -> None:
    assert [clip for clip, _ in found["audio_chunk_index"]].count(0) > 1
    same_text("text")(found, expected)


def short_and_long(found: Names, expected: Names) -> None:
    assert {(0, None), (1, 1)} < set(found["audio_chunk_index"])
    assert len(set(found["text"])) == 2
    same_text("text")(found, expected)


def built(parameters: int) -> Callable[[Names], None]:
    """A check of a model's size by the facts' count."""

    def check(found: Names) -> None:
        assert found["model"].num_parameters() == parameters
        assert found["model"].config is found["configuration"]

    return check


def loaded_configuration(found: Names, expected: Names) -> None:
    assert found["configuration"].hidden_size == expected["configuration"].hidden_size == 16
    assert found["model"].num_parameters() == expected["model"].num_parameters()


def without_language(found: Names) -> None:
    """transformers refuses the program: `language` is missing."""
    assert found["transcription"].strip()
    assert found["generated_ids"][0, 0] == found["model"].config.decoder_start_token_id


def half(found: Names) -> None:
    """transformers has no GPU 0 either."""
    recognise = found["pipeline"]
    assert recognise.model.dtype == torch.float16
    url = "https://example.org/mlk.flac"
    assert len(recognise(url)["text"].split()) == 7, "6.5 tokens a second"


def french(found: Names, expected: Names) -> None:
    same_text("translation")(found, expected)
    assert found["generated_ids"][0, 1] == found["processor"].tokenizer.lang_code_to_id["fr"]
    assert torch.equal(found["generated_ids"], expected["generated_ids"])


def same_tokens(found: Names, expected: Names) -> None:
    assert torch.equal(found["output_tokens"], expected["output_tokens"])
    assert found["output_tokens"].unique().numel() > 5
    texts = found["processor"].batch_decode(found["output_tokens"], skip_special_tokens=True)
    assert texts == expected["processor"].batch_decode(expected["output_tokens"], skip_special_tokens=True)
    assert all(text.strip() for text in texts)


CHECKS: dict[tuple[str, int], tuple[Callable[..., None], bool]] = {
    ("cohere_asr", 0): (same_text("text"), True),
    ("cohere_asr", 1): (same_features, True),
    ("cohere_asr", 2): (two_chunks, True),
    ("cohere_asr", 3): (short_and_long, True),
    ("cohere_asr", 4): (same_text("text"), True),
    ("cohere_asr", 5): (built(2_065_647_872), False),
    ("cohere_asr", 6): (same_states, True),
    ("cohere_asr", 7): (without_language, False),
    ("kyutai_speech_to_text", 0): (same_tokens, True),
    ("kyutai_speech_to_text", 1): (same_tokens, True),
    ("kyutai_speech_to_text", 2): (built(2_656_514_336), False),
    ("kyutai_speech_to_text", 3): (same_tokens, True),
    ("moonshine", 0): (half, False),
    ("moonshine", 1): (loaded_configuration, True),
    ("moonshine", 2): (same_states, True),
    ("moonshine", 3): (same_text("transcription"), True),
    ("speech_to_text", 0): (same_text("transcription"), True),
    ("speech_to_text", 1): (french, True),
    ("speech_to_text", 2): (built(29_536_256), False),
    ("speech_to_text", 3): (same_states, True),
    ("speech_to_text", 4): (same_text("transcription"), True),
}
"""What is asserted of each block of a page by its number, and whether it is compared with transformers."""


@pytest.mark.parametrize(("page", "number"), CHECKS)
@pytest.mark.filterwarnings("ignore")
def test_the_program_runs(page: str, number: int, hub: Path, stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    code = program(page, number)
    check, compared = CHECKS[page, number]
    ours = re.sub(r"^from transformers", "from fastspeech", code, flags=re.M)
    assert "transformers" not in ours and ours != code
    # A default configuration may be that of a model of 8 GB.
    with torch.device("meta") if "Config()\n" in ours else contextlib.nullcontext():
        found = run(ours)
    check(found, theirs(code, hub, monkeypatch)) if compared else check(found)


def test_every_page_is_here() -> None:
    assert set(PAGES) == {page for page, _ in CHECKS}
