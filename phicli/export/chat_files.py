"""What chat needs beside the graph: tokenizer, chat templates, and the tokens that end an answer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from phicli.artifacts.names import ADAPTERS, GENAI_CONFIG
from phicli.artifacts.reading import read_json, read_text
from phicli.errors import BadInput
from phicli.export.sources import Source
from phicli.progress import Progress
from phicli.text import TextCodec
from phicli.text.agreement import plain_chat
from phicli.text.layout import LONGEST, TEMPLATE_FILE, has_template

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
    complete_ends(folder, progress)


def copy_templates(folder: Path, sources: Sequence[Source]) -> None:
    """Put the chat template that an adapter was trained with beside its file, if it has one of its own."""
    for source in sources:
        if source.template.is_file():
            shutil.copyfile(source.template, folder / ADAPTERS / (source.name + TEMPLATE_SUFFIX))


def complete_ends(folder: Path, progress: Progress) -> None:
    """Add the tokens that end a turn in the chat templates there to those that end an answer, where one is missing."""
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
