"""Speech recognition models on fused GPU kernels.

Names are imported when they are first used: `import fastspeech` itself loads neither Triton nor transformers and
never initialises CUDA.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AudioError": "errors",
    "AutoConfig": "auto",
    "AutoFeatureExtractor": "auto",
    "AutoModel": "auto",
    "AutoModelForSpeechSeq2Seq": "auto",
    "AutoProcessor": "auto",
    "AutoTokenizer": "auto",
    "AutomaticSpeechRecognitionPipeline": "pipelines",
    "CheckpointError": "errors",
    "CohereAsrConfig": "models.cohere_asr",
    "CohereAsrFeatureExtractor": "models.cohere_asr",
    "CohereAsrForConditionalGeneration": "models.cohere_asr",
    "CohereAsrModel": "models.cohere_asr",
    "CohereAsrPreTrainedModel": "models.cohere_asr",
    "CohereAsrProcessor": "models.cohere_asr",
    "Engine": "engine",
    "GenerationConfig": "generation",
    "KyutaiSpeechToTextConfig": "models.kyutai_stt",
    "KyutaiSpeechToTextFeatureExtractor": "models.kyutai_stt",
    "KyutaiSpeechToTextForConditionalGeneration": "models.kyutai_stt",
    "KyutaiSpeechToTextModel": "models.kyutai_stt",
    "KyutaiSpeechToTextPreTrainedModel": "models.kyutai_stt",
    "KyutaiSpeechToTextProcessor": "models.kyutai_stt",
    "KyutaiSpeechToTextTokenizer": "models.kyutai_stt",
    "MimiConfig": "models.kyutai_stt",
    "MimiModel": "models.kyutai_stt",
    "MoonshineConfig": "models.moonshine",
    "MoonshineForConditionalGeneration": "models.moonshine",
    "MoonshineModel": "models.moonshine",
    "MoonshinePreTrainedModel": "models.moonshine",
    "ParakeetEncoderConfig": "models.cohere_asr",
    "QueueFullError": "errors",
    "Speech2TextConfig": "models.speech_to_text",
    "Speech2TextFeatureExtractor": "models.speech_to_text",
    "Speech2TextForConditionalGeneration": "models.speech_to_text",
    "Speech2TextModel": "models.speech_to_text",
    "Speech2TextPreTrainedModel": "models.speech_to_text",
    "Speech2TextProcessor": "models.speech_to_text",
    "Speech2TextTokenizer": "models.speech_to_text",
    "StreamEvent": "streaming",
    "StreamingError": "errors",
    "StreamingTranscriber": "streaming",
    "TextIteratorStreamer": "generation.streamers",
    "TextStreamer": "generation.streamers",
    "Tokenizer": "checkpoints",
    "Wav2Vec2FeatureExtractor": "models.moonshine",
    "Wav2Vec2Processor": "models.moonshine",
    "accelerate": "integrations.transformers",
    "from_transformers": "integrations.transformers",
    "load_audio": "audio",
    "pipeline": "pipelines",
    "restore": "integrations.transformers",
    "use_backend": "kernels",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastspeech' has no attribute {name!r}")
    value = getattr(import_module(f"fastspeech.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
