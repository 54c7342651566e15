"""Whether a text template lays rows out as a chat template does, so that chat sends what was trained."""

import json

from phicli.text.codec import TextCodec
from phicli.text.layout import ASSISTANT, USER
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
    begin = codec.tokens.decoder.decode(codec.tokens.begin, skip_special_tokens=False)
    if end and end not in own_after:
        return f"the model would not learn to end an answer, which {end!r} does"
    if not own_after.startswith(after):
        return f"an answer is followed by {own_after[:40]!r} in place of {after!r}"
    if not literals[answer_at].endswith(between):
        return f"an answer follows after {literals[answer_at][-40:]!r} in place of {between!r}"
    if answer_at and not (begin + literals[0].removeprefix(begin)).endswith(before):
        return f"a row begins with {literals[0][:40]!r} in place of {before!r}"
    return None


def as_chat_template(template: TextTemplate) -> str:
    """A chat template (Jinja) that lays a question and its answer out as a text template does."""
    answer_at = max(at for at, (_, name) in enumerate(template.parts) if name is not None)
    literals = [literal for literal, _ in template.parts]
    before, between, after = literals[0], literals[answer_at], "".join(literals[answer_at + 1 :])
    question = f"{json.dumps(before)} + message.content + {json.dumps(between)}" if answer_at else "message.content"
    return ("{% for message in messages %}{% if message.role == 'assistant' %}"
            f"{{{{ message.content + {json.dumps(after)} }}}}{{% else %}}{{{{ {question} }}}}"
            "{% endif %}{% endfor %}")
