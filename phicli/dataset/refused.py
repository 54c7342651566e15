"""Rows that cannot be learnt as they are, and the options with which they can."""

import shlex
from typing import Any

from phicli.dataset.defects import Defect
from phicli.dataset.field_names import DIALOGUES, LABELS, PROMPTS, RESPONSES, first
from phicli.dataset.understood import Fields

ANSWERS = ("answers", "responses", "completions", "replies")  # several, in a list: SQuAD's of each question


def preferred(fields: Fields) -> str:
    """The options that make answers to learn of preferred ones: in TRL's, LLaMA-Factory's and OpenAI's forms."""
    if "chosen" not in fields:
        return "--map prompt=input.messages --map response=preferred_output"
    if dialogue := first(fields, DIALOGUES):
        return f"--map prompt={dialogue} --map response=chosen"
    alone = isinstance(fields["chosen"], list) and not first(fields, PROMPTS)
    return "--map messages=chosen" if alone else "--map response=chosen"


def check_alone(fields: Fields, text: str) -> None:
    """Raise Defect where a text stands beside a question or an answer, which would be lost if it were learnt alone."""
    for names, wanted, meaning in ((PROMPTS, "response", "the answer"), (RESPONSES, "prompt", "the question")):
        other = first(fields, names)
        if other and isinstance(fields[other], str | list) and fields[other]:
            named = shlex.quote(f"{wanted}={text}")
            raise Defect("missing_field", f"no field '{wanted}' beside '{other}', but '{text}': --map {named} if it is "
                         f"{meaning}, --format text if it alone is to be learnt", wanted)


def check_label(fields: Fields) -> None:
    """Raise Defect (labelled_bad) where a row's answer is one that a model is to be kept from."""
    for name in (first(fields, (label,)) for label in LABELS):
        if name and str(fields[name]).strip().lower() == "false":  # in a table it is text
            raise Defect("labelled_bad", f"'{name}' is false: its answer is a bad one; phicli trains on good ones",
                         name)


def answer_within(fields: Fields) -> str:
    """The option that takes the first of several answers, in words; empty where there are none."""
    if not (name := first(fields, ANSWERS)):
        return ""
    path, found = name, fields[name]
    while isinstance(found, list | dict):
        step: Any = 0 if isinstance(found, list) else "text"
        path = f"{path}.{step}"
        if isinstance(found, dict) and step not in found:
            return ""
        found = found[step] if found else ""  # one that has no answer is refused
    taken = shlex.quote(f"response={path}")
    return f"; the first of '{name}': --map {taken}" if isinstance(found, str) and path != name else ""
