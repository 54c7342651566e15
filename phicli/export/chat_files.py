"""What chat needs beside the graph: tokenizer, chat templates, and the tokens that end an answer."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.names import ADAPTERS, GENAI_CONFIG
from phicli.artifacts.reading import read_json, read_text
from phicli.config.commands import ChatConfig
from phicli.config.setting import checked
from phicli.errors import BadInput, UsageError
from phicli.export.sources import Source
from phicli.progress import Progress
from phicli.text import TextCodec
from phicli.text.agreement import plain_chat
from phicli.text.layout import LONGEST, TEMPLATE_FILE, has_template

TOKENIZER = "tokenizer.json"
TEXT_FILES = (TOKENIZER, "special_tokens_map.json", TEMPLATE_FILE)  # genai's builder rewrites them
GENERATION_CONFIG = "generation_config.json"
TEMPLATE_SUFFIX = ".jinja"  # of the template that an adapter was trained with, beside its file


def copy_text_files(model: Path, folder: Path, sources: Sequence[Source], progress: Progress) -> None:
    """Put tokenizer and chat template of a model into its ONNX folder.

    A model without a chat template gets that of its first adapter that has one, or a plain one.
    """
    for name in TEXT_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    if (folder / TOKENIZER).is_file():
        _without_spaces(folder / TOKENIZER)
    copy_templates(folder, sources)
    if not has_template(folder):
        own = [source.template for source in sources if source.template.is_file()]
        if own:
            shutil.copyfile(own[0], folder / TEMPLATE_FILE)
        elif (codec := TextCodec(folder)).end_of_text:
            (folder / TEMPLATE_FILE).write_text(plain_chat(codec), encoding="utf-8")
            progress.note("the model has no chat template: chat lays it out plainly (User: … Assistant: …)")
    _take_over_settings(model, folder, progress)
    if not complete_ends(folder, progress):
        raise BadInput("no token ends an answer: its settings, its tokenizer's and its chat template name none",
                       where=model, hint='"eos_token_id" in config.json, or the model\'s tokenizer_config.json')


def _without_spaces(path: Path) -> None:
    """Write a JSON document anew: of a tokenizer half of the bytes may be indentation."""
    text = json.dumps(read_json(path), ensure_ascii=False, separators=(",", ":"))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def copy_templates(folder: Path, sources: Sequence[Source]) -> None:
    """Put the chat template that an adapter was trained with beside its file, if it has one of its own."""
    for source in sources:
        if source.template.is_file():
            shutil.copyfile(source.template, folder / ADAPTERS / (source.name + TEMPLATE_SUFFIX))


def _take_over_settings(model: Path, folder: Path, progress: Progress) -> None:
    """Put into genai_config.json how the model asks to be sampled, and at which tokens its answers end."""
    path, said, codec = folder / GENAI_CONFIG, _said(model / GENERATION_CONFIG), TextCodec(folder)
    document = read_json(path)
    document["search"] |= _search(said, progress)
    known = document["model"]
    named = (known | _said(model / "config.json") | said)["eos_token_id"]
    ends = [ident for ident in (named if isinstance(named, list) else [named])
            if type(ident) is int and 0 <= ident < known["vocab_size"]]
    for ident in codec.end_of_text:
        if ident not in ends and ident < known["vocab_size"]:
            ends.append(ident)
            progress.note(f"answers end at {codec.tokenizer.id_to_token(ident)}, as tokenizer_config.json says; the "
                          "model's own settings leave it out")
    known["eos_token_id"] = ends
    path.write_text(json.dumps(document, indent=4), encoding="utf-8")


def _said(path: Path) -> dict[str, Any]:
    """What a file of settings says; nothing where there is none. Raises BadInput: it is damaged."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise BadInput("not a JSON object", where=path)
    return {name: value for name, value in found.items() if value is not None}


def _search(said: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """How the model asks to be sampled, as genai and `Sampling.asked_by` read it. temperature 0: never.

    genai's builder keeps no difference between what a model says and what it leaves out, nor the penalty.
    """
    sound: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        try:
            sound |= {name: checked(ChatConfig, name, said[name])} if name in said else {}
        except UsageError as e:
            progress.warn(f"{GENERATION_CONFIG}: {e}; left out")
    penalty = {"repetition_penalty": sound.pop("repetition_penalty", 1.0)}
    silent = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, **penalty}
    if said.get("do_sample") is False or sound.get("temperature") == 0:
        return {**silent, "temperature": 0.0}
    return {**silent, "do_sample": bool(sound) or said.get("do_sample") is True, **sound}


def complete_ends(folder: Path, progress: Progress) -> list[int]:
    """Add the tokens that end a turn in the chat templates there to those that end an answer, where one is missing.

    Returns:
        all of them.
    """
    codec = TextCodec(folder)
    own = [codec.under(read_text(file, LONGEST)) for file in sorted((folder / ADAPTERS).glob("*" + TEMPLATE_SUFFIX))]
    path = folder / GENAI_CONFIG
    document = read_json(path)
    found = document["model"]["eos_token_id"]
    known = [*found] if isinstance(found, list) else [found]
    for layout in (codec, *own):
        try:
            end = layout.turns.end
        except BadInput:  # no chat template, or none that can be used; chat says so
            continue
        if end and codec.special[end][0] not in known:
            known.append(codec.special[end][0])
            progress.note(f"answers end at {end}, as the chat template says; the model's own settings leave it out")
    if known != (found if isinstance(found, list) else [found]):
        document["model"]["eos_token_id"] = known
        path.unlink()  # it may be a link to that of the folder which this one replaces
        path.write_text(json.dumps(document, indent=4), encoding="utf-8")
    return known
