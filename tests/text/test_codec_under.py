"""One tokenizer under several chat templates."""

from phicli.hub.models import BUILT_IN
from phicli.text import TextCodec


def test_another_template_after_the_first_was_used():
    codec = TextCodec(BUILT_IN / "tiny")
    asked = [{"role": "user", "content": "Hello"}]
    before = codec.encode_chat(asked)
    assert codec.under("other: {{ messages[0].content }}").render_chat(asked) == "other: Hello"
    assert codec.encode_chat(asked) == before
