"""A model's chat template: conversations as text, in which what is the template's own is told from what is not."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import parse_json, read_text
from phicli.errors import BadInput, PhicliError
from phicli.text.foreign import Alphabet

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
LONGEST = 1 << 16  # bytes of a template; those in use have up to 30,000
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatLayout:
    """The chat template of a model's folder.

    Raises:
        BadInput: there is none, or it cannot be read.
    """

    def __init__(self, folder: Path):
        from phicli.text.sandbox import BoundedEnvironment

        self.folder = folder
        settings = self._settings()
        self.source = self._source(settings)
        named = {name: settings.get(name) for name in NAMES}
        contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
        self._given = {"tools": None, "documents": None} | {n: v for n, v in contents.items() if isinstance(v, str)}
        self._environment, self._lock = BoundedEnvironment(), threading.Lock()
        try:
            self._template = self._environment.from_string(self.source)
        except Exception as e:  # Jinja and Python's compiler fail in many ways
            raise BadInput(f"chat template: {e}", where=folder) from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, alphabet: Alphabet | None = None) -> str:
        """The conversation as text; with an alphabet, foreign text in its characters.

        Raises:
            BadInput: the template fails, refuses the messages, or takes too much time or memory.
        """
        with self._lock:
            shown = alphabet or Alphabet()
            if alphabet is not None:
                messages = [{**m, "content": alphabet.trace(alphabet.hide(m["content"]))} for m in messages]
            self._environment.begin(messages := list(messages), shown)
            try:
                return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt,
                                             **self._given)
            except PhicliError:
                raise
            except Exception as e:  # a template can fail in any way that Python can
                said = shown.show(str(e) or type(e).__name__)
                raise BadInput(f"chat template: {said}", where=self.folder) from None

    def foreign(self, messages: Sequence[Message], add_generation_prompt: bool) -> tuple[str, Alphabet]:
        """The conversation as text in which every foreign character is one of the alphabet's. Raises as `render`."""
        alphabet = Alphabet(self.source + "".join(map(str, self._given.values())))
        return self.render(messages, add_generation_prompt, alphabet), alphabet

    def _settings(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        try:
            found = parse_json(read_text(path), path)
        except FileNotFoundError:
            return {}
        if not isinstance(found, dict):
            raise BadInput("damaged tokenizer settings: not a JSON object", where=path)
        return found

    def _source(self, settings: dict[str, Any]) -> str:
        """chat_template.jinja, or tokenizer_config.json's template, or the one it calls "default"."""
        try:
            return read_text(self.folder / "chat_template.jinja", LONGEST)
        except FileNotFoundError:
            found = settings.get("chat_template")
        if isinstance(found, list):
            named = [t for t in found if isinstance(t, dict) and t.get("name") == "default"]
            found = named[0].get("template") if named else None
        if not isinstance(found, str) or not found:
            raise BadInput("the model has no chat template", where=self.folder)
        if len(found) > LONGEST:
            raise BadInput(f"chat template: more than {LONGEST:,} characters are not read", where=self.folder)
        return found
