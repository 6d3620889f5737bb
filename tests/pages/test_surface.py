"""What the model pages promise against what is here: classes, methods, arguments, defaults, fields of outputs."""

import dataclasses
import inspect
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from extract import SURFACE, as_text, surfaces

import fastspeech

PAGES = Path(__file__).parents[3] / "shared" / "pages"
"""Beside the checkout, where the project's own machines have them."""

SURFACES: dict[str, Any] = json.loads(SURFACE.read_text(encoding="utf-8"))
ENTRIES = {key: entry for page in SURFACES.values() for key, entry in page["surface"].items()}

LOUD = "an unknown name is an error here; transformers swallows it"
OF_FORWARD = "those of TransformersKwargs that mean something here are arguments; an unknown name is an error"
OF_MOSHI = "a part of the model that speaks, for which neither library's class has a field"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("CohereAsrConfig", "order"): "keyword arguments alone in transformers; encoder_config first is shorter to write",
    ("CohereAsrFeatureExtractor.__call__", "**kwargs"): LOUD,
    ("CohereAsrProcessor.__call__", "language"): "an example of the page leaves it out; English then, with a warning",
    ("CohereAsrModel.forward", "**kwargs"): OF_FORWARD,
    ("KyutaiSpeechToTextConfig", "audio_encoder_config"): OF_MOSHI,
    ("KyutaiSpeechToTextConfig", "depth__config"): OF_MOSHI,
    ("KyutaiSpeechToTextConfig", "kwargs"): "the page lists **kwargs with the fields",
    ("KyutaiSpeechToTextModel.forward", "**kwargs"): OF_FORWARD,
    ("KyutaiSpeechToTextForConditionalGeneration.forward", "**kwargs"): OF_FORWARD,
    ("CohereAsrForConditionalGeneration.forward", "**kwargs"): OF_FORWARD,
    ("MoonshineModel.forward", "**kwargs"): OF_FORWARD,
    ("MoonshineForConditionalGeneration.forward", "**kwargs"): OF_FORWARD,
    ("Speech2TextFeatureExtractor.__call__", "**kwargs"): LOUD,
    ("Speech2TextModel.forward", "returns loss"): "the page lists the fields of the model with a head",
    ("Speech2TextModel.forward", "returns logits"): "the page lists the fields of the model with a head",
}
"""Where we differ from a page, and why: by class or method, and by argument, "order" or "returns FIELD"."""


def ours(key: str) -> Any:
    """The class or function of that name; None where there is none."""
    owner, _, method = key.partition(".")
    found = getattr(fastspeech, owner, None)
    return getattr(found, method, None) if method else found


def faults(key: str, entry: dict[str, Any]) -> dict[str, str]:
    """What is not as the page has it, by argument."""
    found = ours(key)
    if found is None:
        return {"": "is not there"}
    signature = inspect.signature(found)
    parameters = {name: item for name, item in signature.parameters.items() if name != "self"}
    kinds = {item.kind for item in parameters.values()}
    wrong: dict[str, str] = {}
    for argument in entry["arguments"]:
        name = argument["name"]
        if name.startswith("**"):
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                wrong[name] = "is not taken"
        elif name.startswith("*"):
            if inspect.Parameter.VAR_POSITIONAL not in kinds:
                wrong[name] = "is not taken"
        elif name not in parameters:
            wrong[name] = "is not taken"
        elif fault := default_fault(argument, parameters[name].default):
            wrong[name] = fault
    wrong |= {name: "is not taken" for name in entry.get("described", ()) if name not in parameters}
    page = [argument["name"] for argument in entry["arguments"] if argument["name"][0] != "*"]
    positional = [name for name, item in parameters.items() if item.kind is item.POSITIONAL_OR_KEYWORD]
    if positional[: len(page)] != page and not wrong.keys() & set(page):
        wrong["order"] = f"is {', '.join(positional)}"
    if "returns" in entry:
        fields = returned_fields(found)
        wrong |= {f"returns {name}": "is not a field" for name in entry["returns"] if name not in fields}
    return wrong


def default_fault(argument: dict[str, Any], default: Any) -> str:
    if "default_text" in argument:
        return ""
    if "default" not in argument:
        return "" if default is inspect.Parameter.empty else f"has a default, {default!r}"
    expected = argument["default"]
    default = list(default) if isinstance(default, tuple) else default
    same = type(expected) is type(default) and expected == default
    return "" if same else f"is {default!r} by default, not {expected!r}"


def returned_fields(function: Any) -> set[str]:
    """Of the first record that the function's annotation names."""
    hint = typing.get_type_hints(function)["return"]
    record = next(kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind))
    return {field.name for field in dataclasses.fields(record)}


@pytest.mark.parametrize("key", ENTRIES)
def test_it_is_as_the_page_says(key: str) -> None:
    wrong = faults(key, ENTRIES[key])
    excepted = {argument for name, argument in EXCEPTIONS if name == key}
    assert {name: fault for name, fault in wrong.items() if name not in excepted} == {}
    assert excepted <= wrong.keys(), "an exception that is none"


def test_exceptions_are_of_something() -> None:
    assert {key for key, _ in EXCEPTIONS} <= ENTRIES.keys()


def test_the_extract_is_that_of_the_pages() -> None:
    if not PAGES.is_dir():
        pytest.skip(f"the pages are not at {PAGES}: only the project's own machines have them")
    assert as_text(surfaces(PAGES)) == SURFACE.read_text(encoding="utf-8")


def test_faults_are_found() -> None:
    """The walk itself: each kind of fault, on a class of ours with the page's entry made wrong."""
    entry = {
        "arguments": [{"name": "feature_extractor"}, {"name": "tokenizer", "default": 1}, {"name": "more"}],
        "described": ["told"],
    }
    found = faults("Speech2TextProcessor", entry)
    assert found.keys() == {"tokenizer", "more", "told"}
    swapped = {"arguments": [{"name": "tokenizer"}, {"name": "feature_extractor"}]}
    assert faults("Speech2TextProcessor", swapped).keys() == {"order"}
    assert faults("NoSuchClass", swapped) == {"": "is not there"}
    assert faults("Speech2TextModel.forward", {"arguments": [], "returns": ["loss"]}).keys() == {"returns loss"}
