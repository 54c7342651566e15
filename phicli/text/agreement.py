"""Whether a text template lays rows out as a chat template does, so that chat sends what was trained."""

import json

from phicli.text.codec import TextCodec
from phicli.text.layout import ASSISTANT, PLAIN_CHAT, USER
from phicli.text.template import TextTemplate


def disagreement(codec: TextCodec, template: TextTemplate) -> str | None:
    """In words, where the two differ in what stands around a question and its answer; None if they agree.

    The last field is the answer; whatever stands between the other fields is part of the question.
    """
    text, alphabet = codec.layout.foreign([{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}], False)
    asked, said = ([at for at, c in enumerate(text) if alphabet.owners.get(c) == owner] for owner in (0, 1))
    if not asked or not said:
        return "the chat template does not show a question and its answer"
    before, between, after = text[: asked[0]], text[asked[-1] + 1 : said[0]], text[said[-1] + 1 :]
    end = codec.turns.end
    after = after[: after.find(end) + len(end)] if end else after
    literals = [literal for literal, _ in template.parts]
    answer_at = max(at for at, (_, name) in enumerate(template.parts) if name is not None)
    own_after = "".join(literals[answer_at + 1 :])
    begin = _as_text(codec, codec.begin_of_chat)
    if end and end not in own_after:
        return f"the model would not learn to end an answer, which {end!r} does"
    if not own_after.startswith(after):
        return f"an answer is followed by {own_after[:40]!r} in place of {after!r}"
    if not literals[answer_at].endswith(between):
        return f"an answer follows after {literals[answer_at][-40:]!r} in place of {between!r}"
    if answer_at and not (begin + literals[0].removeprefix(begin)).endswith(before):
        return f"a row begins with {literals[0][:40]!r} in place of {before!r}"
    return None


def as_chat_template(codec: TextCodec, template: TextTemplate) -> str:
    """A chat template (Jinja) that lays a question and its answer out as a text template does for this tokenizer.

    It takes no system message, which then becomes part of the first question.
    """
    answer_at = max(at for at, (_, name) in enumerate(template.parts) if name is not None)
    literals = [literal for literal, _ in template.parts]
    begin = _as_text(codec, codec.tokens.begin)
    before, between, after = literals[0].removeprefix(begin), literals[answer_at], "".join(literals[answer_at + 1 :])
    question = [_quoted(before), "message.content", _quoted(between)] if answer_at else ["message.content"]
    return ("{{ " + _quoted(begin) + " }}{% for message in messages %}"
            "{% if message.role == 'system' %}{{ raise_exception('no system message') }}"
            "{% elif message.role == 'assistant' %}{{ message.content + " + _quoted(after) + " }}"
            "{% else %}{{ " + " + ".join(question) + " }}{% endif %}{% endfor %}")


def plain_chat(codec: TextCodec) -> str:
    """A chat template for a model that has none, with what its tokenizer puts before a text."""
    begin, end = (_quoted(_as_text(codec, ids)) for ids in (codec.tokens.begin, codec.end_of_text))
    return "{{ " + begin + " }}" + PLAIN_CHAT.replace("eos_token", end)


def _as_text(codec: TextCodec, ids: list[int]) -> str:
    return str(codec.tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
