"""What chat needs beside the graph: tokenizer, chat templates, and the tokens that end an answer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from phicli.artifacts.names import ADAPTERS, GENAI_CONFIG
from phicli.artifacts.reading import read_json
from phicli.errors import BadInput
from phicli.export.sources import Source
from phicli.progress import Progress
from phicli.text import TextCodec
from phicli.text.agreement import plain_chat
from phicli.text.layout import TEMPLATE_FILE, has_template

TEXT_FILES = ("tokenizer.json", "special_tokens_map.json", TEMPLATE_FILE)  # genai's builder rewrites them
TEMPLATE_SUFFIX = ".jinja"  # of the template that an adapter was trained with, beside its file


def copy_text_files(model: Path, folder: Path, sources: Sequence[Source], progress: Progress) -> None:
    """Put tokenizer and chat template of a model into its ONNX folder.

    A model without a chat template gets that of its first adapter that has one, or a plain one.
    """
    for name in TEXT_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    copy_templates(folder, sources)
    if not has_template(folder):
        own = [source.template for source in sources if source.template.is_file()]
        if own:
            shutil.copyfile(own[0], folder / TEMPLATE_FILE)
        elif (codec := TextCodec(folder)).end_of_text:
            (folder / TEMPLATE_FILE).write_text(plain_chat(codec), encoding="utf-8")
            progress.note("the model has no chat template: chat lays it out plainly (User: … Assistant: …)")
    _complete_ends(folder, progress)


def copy_templates(folder: Path, sources: Sequence[Source]) -> None:
    """Put the chat template that an adapter was trained with beside its file, if it has one of its own."""
    for source in sources:
        if source.template.is_file():
            shutil.copyfile(source.template, folder / ADAPTERS / (source.name + TEMPLATE_SUFFIX))


def _complete_ends(folder: Path, progress: Progress) -> None:
    """Add the token that ends a turn in the chat template to those that end an answer, if it is missing there."""
    codec = TextCodec(folder)
    try:
        end = codec.turns.end
    except BadInput:  # no chat template, or none that can be used; chat says so
        return
    path = folder / GENAI_CONFIG
    document = read_json(path)
    known = document["model"]["eos_token_id"]
    known = known if isinstance(known, list) else [known]
    ident = codec.special[end][0] if end else known[0]
    if ident not in known:
        document["model"]["eos_token_id"] = [*known, ident]
        path.write_text(json.dumps(document, indent=4), encoding="utf-8")
        progress.note(f"answers end at {end}, as the chat template says; the model's own settings leave it out")
