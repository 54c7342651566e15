"""What counts in the loss, row by row, by four programs: ours, TRL, mlx-lm and LLaMA-Factory.

    pip install --no-deps --target others trl mlx-lm mlx mlx-cpu llamafactory torchaudio
    PYTHONPATH=others python benchmarks/masks.py

Each runs its own code on the same rows with the same tokenizer (the built-in one with further control tokens) under the
chat templates that TRL ships; what is not installed is left out. Prints a Markdown table: what of a row counts, each
part on its own; of the others, how it differs.
"""

import argparse
import importlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from phicli.errors import BadInput
from phicli.hub.models import BUILT_IN
from phicli.text import Conversation, TextCodec

CONTROL = re.compile(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>|</?think>|</?tool_(?:call|response)>")
# TRL's file, LLaMA-Factory's name for it, eos_token
TEMPLATES = {"phi3": ("phi", "<|endoftext|>"), "qwen2_5": ("qwen", "<|im_end|>"), "qwen3": ("qwen3", "<|im_end|>"),
             "llama3": ("llama3", "<|eot_id|>"), "gemma": ("gemma", "<eos>")}
CALL = {"id": "1", "type": "function", "function": {"name": "hotels", "arguments": {"city": "Kyoto", "n": 3}}}
TOOL = {"type": "function", "function": {"name": "hotels", "description": "Finds hotels", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}}}
Masked = tuple[Sequence[int], Sequence[bool]]


def says(*turns: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of a user and an assistant in turn."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


ROWS = {
    "one turn": says("Where?", "There."),
    "system": says("Where?", "There.", system="Be brief."),
    "three turns": says("a", "b", "c", "d", "e", "f"),
    "blanks around": says(" Where? ", "  There.\n"),
    "new line first": says("Where?", "\nThere."),
    "empty answer": says("Where?", "", "And?", "There."),
    "other scripts": says("どこ？", "京都 🙂 e\u0301"),
    "thoughts": [*says("a"), {"role": "assistant", "content": "b", "reasoning_content": "hm"}],
    "call of a tool": [*says("Hotels?"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
                       {"role": "tool", "name": "hotels", "content": "[1]"}, {"role": "assistant", "content": "One."}],
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    others = {name: run for name, (module, run) in PROGRAMS.items() if _there(module)}
    print("| template | row | ours |", " | ".join(others), "|\n|" + " --- |" * (3 + len(others)))
    shipped = Path(importlib.import_module("trl").__file__ or "").parent / "chat_templates"
    for name, (factory, eos) in TEMPLATES.items():
        source = (shipped / f"{name}.jinja").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as place:
            folder = model(Path(place), source, eos)
            codec, tokenizer = TextCodec(folder), AutoTokenizer.from_pretrained(folder)
            for title, messages in ROWS.items():
                tools = [TOOL] if any("tool_calls" in m for m in messages) else None
                own, *found = (_parts(tokenizer, partial(run, given, messages, tools, factory))
                               for given, run in ((codec, _ours), *((tokenizer, run) for run in others.values())))
                print(f"| {name} | {title} |", " | ".join([_shown(own), *(_shown(f, own) for f in found)]), "|")


def model(folder: Path, template: str, eos: str) -> Path:
    """A folder with the built-in tokenizer, the control tokens that a template names, and that template."""
    tokenizer = Tokenizer.from_file(str(BUILT_IN / "tiny" / "tokenizer.json"))
    names = dict.fromkeys([*CONTROL.findall(template), eos, "<bos>"])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": eos, "pad_token": eos}))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _ours(codec: TextCodec, messages: list[dict[str, Any]], tools: list[Any] | None, name: str) -> Masked:
    found = codec.encode_conversation(Conversation.of(*messages, tools=tuple(tools or ())))
    return found.ids, found.mask


def _trl(tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None, name: str) -> Masked:
    """As SFTTrainer with assistant_only_loss."""
    from trl.chat_template_utils import get_training_chat_template

    found = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True,
                                          return_assistant_tokens_mask=True,
                                          chat_template=get_training_chat_template(tokenizer))
    return found["input_ids"], [bool(counts) for counts in found["assistant_masks"]]


def _mlx(tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None, name: str) -> Masked:
    """As mlx_lm.lora --mask-prompt."""
    from mlx_lm.tuner.datasets import ChatDataset

    row = {"messages": messages, "tools": tools}
    ids, offset = ChatDataset([row], tokenizer, mask_prompt=True).process(row)
    return ids, [at >= offset for at in range(len(ids))]


def _factory(tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None, name: str) -> Masked:
    """As its supervised processor, which knows templates by name and does not look at the model's own."""
    from llamafactory.data.template import TEMPLATES as KNOWN

    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    if any("tool_calls" in m or "reasoning_content" in m for m in messages):
        raise NotImplementedError("another format")
    pairs = KNOWN[name].encode_multiturn(tokenizer, messages[bool(system) :], system, None)
    ids, mask = list[int](), list[bool]()
    for asked, said in pairs:
        ids += [*asked, *said]
        mask += [False] * len(asked) + [True] * len(said)
    return ids, mask


PROGRAMS: dict[str, tuple[str, Callable[..., Masked]]] = {
    "TRL": ("trl.chat_template_utils", _trl), "mlx-lm": ("mlx_lm.tuner.datasets", _mlx),
    "LLaMA-Factory": ("llamafactory.data.template", _factory)}


def _there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as e:
        print(f"(without {module}: {e})\n")
        return False
    return True


def _parts(tokenizer: Any, run: Callable[[], Masked]) -> list[str] | str:
    """What counts of a row, part by part; or why there is nothing."""
    try:
        ids, mask = run()
    except Exception as e:  # a template that refuses the row, a program that cannot do it
        return "refused" if isinstance(e, BadInput | TemplateError) else f"({e})"
    parts, before = list[list[int]](), False
    for ident, counts in zip(ids, mask, strict=True):
        parts += [[]] if counts and not before else []
        if counts:
            parts[-1].append(ident)
        before = counts
    return [str(tokenizer.decode(part)) for part in parts]


def _shown(found: list[str] | str, own: list[str] | str | None = None) -> str:
    """Parts in code marks, or how they differ from our own."""
    if isinstance(found, str):
        return found
    kept = own[-len(found) :] if isinstance(own, list) and found else []
    if not kept or any(mine not in part for mine, part in zip(kept, found, strict=True)):
        return " ".join(map(_code, found)) or "nothing"
    pieces = [part.partition(mine) for mine, part in zip(kept, found, strict=True)]
    before, after = ([_code(text) for text in dict.fromkeys(piece[at] for piece in pieces) if text] for at in (0, 2))
    return (("same" if own == kept else "last turn only") + (f", {before[0]} before" if before else "")
            + (f", {' or '.join(after)} behind" if after else ""))


def _code(text: str) -> str:
    return "`" + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("|", "\\|") + "`"


if __name__ == "__main__":
    main()
