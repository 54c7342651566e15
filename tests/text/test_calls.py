"""How models write calls of tools, found out by their own templates, and read out of answers that come in pieces."""

import json

import pytest
from chat_templates import MARKED, unmarked

from phicli.text import TextCodec
from phicli.text.calls import Call, CallFormat, CallReader, call_format

NAMES = ("weather", "time")
HERMES = CallFormat("<tool_call>", "</tool_call>", "<tool_call>\n", "\n</tool_call>", "name", "arguments", False)
LISTED = CallFormat("[TOOL_CALLS]", "", "[TOOL_CALLS] ", "", "name", "arguments", True)
BARE = CallFormat("", "", "", "", "name", "parameters", False)
ONE = '{"name": "weather", "arguments": {"city": "Kyoto"}}'
CALL = Call("weather", '{"city": "Kyoto"}')


@pytest.mark.parametrize(("name", "opening", "keys", "listed"), [
    ("qwen2.5", "<tool_call>", ("name", "arguments"), False), ("qwen3", "<tool_call>", ("name", "arguments"), False),
    ("llama3.1", "", ("name", "parameters"), False), ("mistral v3", "[TOOL_CALLS]", ("name", "arguments"), True),
    ("granite", "<|tool_call|>", ("name", "arguments"), True)])
def test_the_format_of_a_template(tiny, name, opening, keys, listed):
    found = call_format(TextCodec(tiny, unmarked(MARKED[name])))
    assert found and (found.opening, (found.name, found.arguments), found.listed) == (opening, keys, listed)


@pytest.mark.parametrize("name", ["chatml", "phi3.5", "gemma3", "mistral v7", "deepseek r1", "gpt oss"])
def test_templates_that_show_no_tools_or_no_json(tiny, name):
    assert call_format(TextCodec(tiny, unmarked(MARKED[name]))) is None


def read(format, text, size=3, opening_id=None):
    """Shown text and calls of an answer in pieces of some characters."""
    reader = CallReader(format, NAMES, opening_id)
    shown = "".join(reader.step(text[at : at + size]) for at in range(0, len(text), size))
    rest, calls = reader.finish()
    return shown + rest, calls


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize(("format", "text", "shown", "calls"), [
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", "", [CALL]),
    (HERMES, f"I look.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{ONE}</tool_call>", "I look.\n", [CALL, CALL]),
    (HERMES, "a <b> and <tool of mine", "a <b> and <tool of mine", []),
    (HERMES, "<tool_call>\n{broken\n</tool_call>", "<tool_call>\n{broken\n</tool_call>", []),
    (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "other", "arguments": {}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "time", "arguments": {"a": "\\ud800"}}',
     '<tool_call>{"name": "time", "arguments": {"a": "\\ud800"}}', []),
    (HERMES, "<tool_call>" + "[" * 5000, "<tool_call>" + "[" * 5000, []),
    (LISTED, f"[TOOL_CALLS] [{ONE}, {ONE}]", "", [CALL, CALL]),
    (BARE, ONE.replace("arguments", "parameters"), "", [CALL]),
    (BARE, '{"a": 1} is JSON', '{"a": 1} is JSON', []), (BARE, "No call.", "No call.", [])])
def test_answers_in_pieces(format, text, shown, calls, size):
    assert read(format, text, size) == (shown, calls)


def test_an_opening_that_decoded_text_leaves_out():
    reader = CallReader(LISTED, NAMES, opening_id=5)
    assert reader.step("Well. ", (1, 2)) == "Well. " and reader.step("", (5,)) == ""
    assert reader.step(f"[{ONE}]", (7, 8)) == ""
    assert reader.finish() == ("", [CALL])


def test_a_call_that_is_written_like_that_is_read_again(tiny):
    codec = TextCodec(tiny, unmarked(MARKED["qwen2.5"]))
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    told = codec.render_chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": json.loads(CALL.arguments)}}]}],
        add_generation_prompt=False, tools=[tool])
    said = told[told.rindex("<tool_call>") :]
    assert read(call_format(codec), said)[1] == [CALL]


def test_bytes_of_tokens(tiny):
    from phicli.text.pieces import token_bytes

    codec = TextCodec(tiny)
    for text in (" Café – naïve", "東京 🚉", "a\n\tb"):
        ids = codec.encode_text(text)
        assert b"".join(token_bytes(codec.tokens, ident) for ident in ids).decode() == text
    assert token_bytes(codec.tokens, codec.special["<|end|>"][0]) == b"<|end|>"
    assert token_bytes(codec.tokens, 10**7) == b""
