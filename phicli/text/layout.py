"""A model's chat template: conversations as text, in which what is the template's own is told from what is not."""

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG
from phicli.artifacts.reading import parse_json, read_text
from phicli.errors import BadInput, PhicliError, UsageError
from phicli.text.foreign import Alphabet

# {"role": "system", "user", "assistant" or "tool", "content": text}; an assistant's may have "tool_calls" as OpenAI's
# API has them, their arguments an object
Message = Mapping[str, Any]
LONGEST = 1 << 16  # bytes of a template; those in use have up to 30,000
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEMPLATE_FILE = "chat_template.jinja"
TOOL_USE = "tool_use"
REASONING = ("reasoning_content", "thinking", "reasoning")  # fields of a message; templates read one of the first two
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "self")  # variables that are no option
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
MERGED_SYSTEM = "the chat template takes no system message: it is put before the first question"
# For a model that has no chat template, as most base models; its turns end with the token that ends its texts. An
# answer has a line of its own: a blank before it would be part of its first token, then neither trained nor asked for.
PLAIN_CHAT = """{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\n\n' }}
{%- elif message.role == 'assistant' %}{{ 'Assistant:\n' + message.content + eos_token + '\n' }}
{%- else %}{{ 'User: ' + message.content + '\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"""


class ChatLayout:
    """The chat template of a model's folder.

    Args:
        source: another template, in place of the folder's. options: further variables of it, such as enable_thinking.

    Raises:
        BadInput: there is none, or it cannot be read.
    """

    def __init__(self, folder: Path, source: str | None = None, options: Mapping[str, Any] | None = None):
        from phicli.text.sandbox import BoundedEnvironment

        self.folder = folder
        found = {"default": source} if source else _templates(folder)
        self.source = found["default"]
        names = special_names(folder)
        self.eos = names.get("eos_token")
        self._given = {"documents": None} | names | dict(options or {})
        self._own = "".join(found.values()) + "".join(map(str, self._given.values()))
        self._environment, self._lock = BoundedEnvironment(), threading.Lock()
        try:
            self._template = self._environment.from_string(self.source)
            self._with_tools = self._environment.from_string(found.get(TOOL_USE, self.source))
        except Exception as e:  # Jinja and Python's compiler fail in many ways
            raise BadInput(f"chat template: {e}", where=folder) from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, *, tools: Sequence[Any] | None = None,
               alphabet: Alphabet | None = None, options: Mapping[str, Any] | None = None) -> str:
        """The conversation as text; with an alphabet, foreign text in its characters, owned by the message's number.

        options: variables for this time, over those of the layout; what they say is foreign, as messages are.

        Raises:
            BadInput: the template fails, refuses the messages, or takes too much time or memory.
        """
        shown, marks = alphabet or Alphabet(), alphabet.marks if alphabet else ("", "")
        given = [_with_reasoning(message) for message in self.accepted(messages)]
        if alphabet is not None:
            given = [{"role": m["role"], **{str(k): alphabet.hide_all(v, at) for k, v in m.items() if k != "role"}}
                     for at, m in enumerate(given, len(messages) - len(given))]
            tools = alphabet.hide_all(list(tools), -1) if tools else None
            options = {name: alphabet.hide_all(value, -1) for name, value in (options or {}).items()}
        return self._run(given, tools or None, add_generation_prompt, shown, marks, options)

    def foreign(self, messages: Sequence[Message], add_generation_prompt: bool,
                tools: Sequence[Any] | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, Alphabet]:
        """The conversation as text in which every foreign character is one of the alphabet's. Raises as `render`."""
        alphabet = Alphabet(self._own)
        return self.render(messages, add_generation_prompt, tools=tools, alphabet=alphabet, options=options), alphabet

    @cached_property
    def refuses_system(self) -> bool:
        """Whether the template takes a question, but none with a system message before it."""
        question = {"role": USER, "content": "a"}
        try:
            self._run([question], None, True, Alphabet(), ("", ""))
        except BadInput:
            return False  # it refuses for another reason
        try:
            self._run([{"role": SYSTEM, "content": "b"}, question], None, True, Alphabet(), ("", ""))
        except BadInput:
            return True
        return False

    def accepted(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages; if the template refuses a system message, the first is part of the first user's message."""
        if len(messages) < 2 or messages[0]["role"] != SYSTEM or messages[1]["role"] != USER or not self.refuses_system:
            return messages
        system, user, *rest = messages
        return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    def _run(self, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool, shown: Alphabet,
             marks: tuple[str, str], options: Mapping[str, Any] | None = None) -> str:
        with self._lock:
            self._environment.begin(messages, [tools, options], shown, marks)
            try:
                template = self._with_tools if tools else self._template
                return template.render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt,
                                       **self._given | dict(options or {}))
            except PhicliError:
                raise
            except Exception as e:  # a template can fail in any way that Python can
                said = shown.show(str(e) or type(e).__name__)
                raise BadInput(f"chat template: {said}", where=self.folder) from None


def _templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name, "default" and perhaps "tool_use", for conversations that have tools.

    They are in chat_template.jinja and the folder beside it, or in tokenizer_config.json. Raises BadInput: none.
    """
    own = tokenizer_settings(folder).get("chat_template")
    named = [t for t in own if isinstance(t, dict)] if isinstance(own, list) else [{"name": "default", "template": own}]
    found: dict[str, Any] = {str(t.get("name")): t.get("template") for t in named}
    for name, path in (("default", TEMPLATE_FILE), (TOOL_USE, f"additional_chat_templates/{TOOL_USE}.jinja")):
        with contextlib.suppress(FileNotFoundError):
            found[name] = read_text(folder / path, LONGEST)
    found = {name: source for name in ("default", TOOL_USE) if isinstance(source := found.get(name), str) and source}
    if "default" not in found:
        raise BadInput("the model has no chat template", where=folder,
                       hint=f"a {TEMPLATE_FILE} there, or the tokenizer_config.json of the same model; finetune and "
                       "inspect take --chat-template FILE too")
    if max(map(len, found.values())) > LONGEST:
        raise BadInput(f"chat template: more than {LONGEST:,} characters are not read", where=folder)
    return found


def _with_reasoning(message: Message) -> dict[str, Any]:
    """The message, its reasoning under both names that templates know, as transformers gives it to them."""
    found = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return dict(message) if found is None else {"thinking": found, **message, "reasoning_content": found}


def has_template(folder: Path) -> bool:
    """Whether a model's folder has a chat template. Raises BadInput: damaged settings."""
    return (folder / TEMPLATE_FILE).is_file() or bool(tokenizer_settings(folder).get("chat_template"))


def tokenizer_settings(folder: Path, name: str = "tokenizer_config.json") -> dict[str, Any]:
    """What this file says; nothing where there is none. Raises BadInput: it is damaged."""
    path = folder / name
    try:
        found = parse_json(read_text(path), path)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise BadInput("damaged tokenizer settings: not a JSON object", where=path)
    return found


def special_names(folder: Path) -> dict[str, str]:
    """What a template knows as bos_token, eos_token and so on; special_tokens_map.json has them in older folders.

    Raises as `tokenizer_settings`.
    """
    settings = tokenizer_settings(folder, "special_tokens_map.json") | tokenizer_settings(folder)
    named = {name: settings.get(name) for name in NAMES}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}


def ends_said(folder: Path) -> list[int]:
    """Ids of tokens that end an answer, by the settings of a model or of an ONNX folder beside its tokenizer's."""
    found: list[Any] = []
    for name in ("generation_config.json", "config.json", GENAI_CONFIG):
        with contextlib.suppress(OSError, BadInput):
            said = parse_json(read_text(folder / name), folder / name)
            said = said.get("model") if name == GENAI_CONFIG and isinstance(said, dict) else said
            ends = said.get("eos_token_id") if isinstance(said, dict) else None
            found += ends if isinstance(ends, list) else [ends]
    return list(dict.fromkeys(ident for ident in found if type(ident) is int and 0 <= ident < 1 << 31))


def is_option(name: str) -> bool:
    """Whether a variable of that name may be given to a template."""
    return name.isidentifier() and name not in RESERVED


def template_options(given: Sequence[str]) -> dict[str, Any]:
    """`enable_thinking=false` as {"enable_thinking": False}. Raises UsageError: not NAME=VALUE, or a reserved name."""
    found = {}
    for option in given:
        name, equals, value = option.partition("=")
        if not equals or not is_option(name):
            raise UsageError(f"needs NAME=VALUE with a name that is free, not {option[:40]!r}",
                             where="--chat-template-kwargs", hint="--chat-template-kwargs enable_thinking=false")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found
