"""What the model pages promise, read out of them: classes, methods, arguments, defaults and fields of outputs.

    python tests/pages/extract.py ../shared/pages

writes surface.json beside this file. The pages of transformers 4 and 5 are written in two ways; both are read.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

PAGES = ("cohere_asr", "moonshine", "speech_to_text", "kyutai_speech_to_text")
SURFACE = Path(__file__).with_name("surface.json")

_HEADING = re.compile(r"^#{3,4} (?P<title>.*)$", re.M)
_FENCE = re.compile(r"^```(?:python|py)?[ ]*\n(?P<code>.*?)^```[ ]*$", re.M | re.S)
_LISTED = re.compile(r"^(?:\*|-) (?:\\?\*)*(?P<name>\w+)(?:\\?\*)* \((?P<kind>[^\n]*?)\) (?:—|--)", re.M)
_TABLED = re.compile(r"^(?P<name>\w+) \((?P<kind>.*?)\) : ", re.M)
_CALLED = re.compile(r"^(?P<shown>\w+?)transformers\.(?P<owner>\w+)\.(?P<method>\w+)https?:\S+?#L\d+(?=\[\{)", re.M)
_DEFAULT = re.compile(r"defaults? to `?(?P<value>.+?)`?$")


def surface_of(page: str) -> dict[str, Any]:
    """`{"version": ..., "surface": {"Class" or "Class.method": {"arguments": [...], "described": [...], "returns":
    [...]}}}` of a page's text.

    An argument is `{"name": ...}`, with "default" where it has one that is a literal and "default_text" where it is
    something else. "described" names what the prose tells of beyond the signature, "returns" the fields of the output.
    """
    version = re.search(r"/(v\d+\.\d+\.\d+)/", page)
    assert version is not None
    prose = _FENCE.sub("", page).replace("\\_", "_").replace("\\*", "*")
    read = _new_style if "[[transformers." in prose else _old_style
    return {"version": version[1], "surface": read(prose)}


def examples_of(page: str) -> list[str]:
    """The code blocks of a page that are programs, prompts and printed results taken off."""
    found = []
    for match in _FENCE.finditer(page):
        lines = match["code"].splitlines()
        if any(line.startswith(">>>") for line in lines):
            lines = [line[4:] for line in lines if line.startswith((">>>", "..."))]
        found.append("\n".join(lines).strip() + "\n")
    return found


def _old_style(prose: str) -> dict[str, Any]:
    """Signatures stand in parentheses under the headings."""
    surface: dict[str, Any] = {}
    owner = ""
    for title, body in _sections(prose):
        name = title.split()[-1].removeprefix("transformers.")
        if title.startswith("class "):
            owner, key = name, name
        else:
            key = f"{owner}.{name}"
        signature = re.search(r"^\( (?P<inside>.*?)  \)(?: → .*)?$", body, re.M)
        if signature is None:
            continue
        told, _, returned = body.partition("\nReturns\n")
        arguments = _signature(signature["inside"])
        surface[key] = _entry(arguments, [m["name"] for m in _LISTED.finditer(told)], returned)
    return surface


def _new_style(prose: str) -> dict[str, Any]:
    """Signatures of methods are JSON in a line of text, those of classes a list of parameters behind everything."""
    surface: dict[str, Any] = {}
    for title, body in _sections(prose):
        key = title.partition("[[")[0].removeprefix("transformers.")
        if not re.fullmatch(r"transformers\.\w+", title.partition("[[")[0]):
            if "[[transformers." in title:
                surface[title.partition("[[transformers.")[2].rstrip("]")] = _entry([], [], "")
            continue
        calls = list(_CALLED.finditer(body))
        table = body.partition("**Parameters:**")[2].partition("**Returns:**")[0]
        surface[key] = _entry([_from_table(match) for match in _TABLED.finditer(table)], [], "")
        for call in calls:
            arguments, end = json.JSONDecoder().raw_decode(body, call.end())
            rest = body[end:].partition("**Parameters:**")[0]
            # Behind the last argument's text stands a 0, then what is returned.
            told, _, returned = rest.partition("0[")
            made = [_from_annotation(argument) for argument in arguments]
            surface[f"{key}.{call['method']}"] = _entry(made, [m["name"] for m in _LISTED.finditer(told)], returned)
    return surface


def _sections(prose: str) -> list[tuple[str, str]]:
    """(title, text) of each heading of the third and fourth level, up to the next heading of any level."""
    heads = list(_HEADING.finditer(prose))
    found = []
    for head in heads:
        after = re.compile(r"^#{2,4} ", re.M).search(prose, head.end())
        found.append((head["title"].strip(), prose[head.end() : after.start() if after else len(prose)]))
    return found


def _entry(arguments: list[dict[str, Any]], described: list[str], returned: str) -> dict[str, Any]:
    names = {argument["name"].lstrip("*") for argument in arguments}
    entry: dict[str, Any] = {"arguments": arguments}
    if more := [name for name in described if name not in names]:
        entry["described"] = more
    if fields := [match["name"] for match in _LISTED.finditer(returned)]:
        entry["returns"] = fields
    return entry


def _signature(inside: str) -> list[dict[str, Any]]:
    """Arguments out of "a = 1 b: int = 2 c **kwargs": Python but for the commas, which brackets alone keep."""
    arguments: list[dict[str, Any]] = []
    for piece in _words(inside):
        if piece == "=" or (arguments and arguments[-1].get("default_text") == "="):
            arguments[-1]["default_text"] = piece
        elif arguments and arguments[-1]["name"].endswith(":"):
            arguments[-1]["name"] = arguments[-1]["name"][:-1]
        else:
            arguments.append({"name": piece})
    return [_settled(argument) for argument in arguments]


def _words(text: str) -> list[str]:
    """Words of a text, of which brackets and quotes keep theirs together."""
    words, depth, quoted = [""], 0, False
    for sign in text:
        quoted ^= sign == "'"
        depth += (sign in "([{") - (sign in ")]}")
        if sign == " " and depth == 0 and not quoted:
            words.append("")
        else:
            words[-1] += sign
    return [word for word in words if word]


def _from_annotation(argument: dict[str, str]) -> dict[str, Any]:
    _, equals, default = argument["val"].rpartition(" = ")
    return _settled({"name": argument["name"]} | ({"default_text": default} if equals else {}))


def _from_table(match: re.Match[str]) -> dict[str, Any]:
    default = _DEFAULT.search(match["kind"])
    if default is not None:
        return _settled({"name": match["name"], "default_text": default["value"]}, match["kind"])
    return {"name": match["name"]} | ({"default": None} if "*optional*" in match["kind"] else {})


def _settled(argument: dict[str, Any], kind: str = "") -> dict[str, Any]:
    """An argument with its default as a value, where it is a literal."""
    if "default_text" in argument:
        text = argument["default_text"].strip("`")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            if not re.match(r"`str`", kind):
                return argument
            value = text
        argument = {"name": argument["name"], "default": list(value) if isinstance(value, tuple) else value}
    return argument


def surfaces(folder: Path) -> dict[str, Any]:
    """The surface of every page in a folder."""
    return {name: surface_of((folder / f"{name}.md").read_text(encoding="utf-8")) for name in PAGES}


def as_text(pages: dict[str, Any]) -> str:
    """JSON with one class or method a line."""
    blocks = []
    for name, page in pages.items():
        lines = (f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in page["surface"].items())
        blocks.append(f'{json.dumps(name)}: {{"version": {json.dumps(page["version"])}, "surface": {{\n')
        blocks[-1] += ",\n".join(lines) + "\n}}"
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main(folder: Path) -> None:
    SURFACE.write_text(as_text(surfaces(folder)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
