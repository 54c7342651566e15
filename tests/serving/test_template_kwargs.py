"""Variables of the chat template that come with a request: `chat_template_kwargs`, as Qwen3's clients send them."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

# In the style of Qwen3's: without enable_thinking=false an answer may think
TEMPLATE = """{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}
{%- if persona is defined %}{{- '<|system|>\\n' + persona + '<|end|>\\n' }}{%- endif %}
{%- if effort == 'high' %}{{- 'much' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
MESSAGES = [{"role": "user", "content": "Hello"}]
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}
PROTOCOLS = {"/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1}, "/v1/responses": {
    "input": "Hello", "max_output_tokens": 1}, "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": MESSAGES}}


@pytest.fixture(scope="module")
def root(serve_root, tmp_path_factory):
    found = tmp_path_factory.mktemp("kwargs")
    shutil.copytree(serve_root / "onnx-ao", found / "onnx-ao")
    (found / "onnx-ao" / "adapters" / "cooking.jinja").write_text(TEMPLATE)
    return found


@pytest.fixture(scope="module")
def server(root, start_server):
    with start_server(root) as found:
        yield found


def laid_out(server, given=None):
    reply = server.ask("/tokenize", {"model": "cooking", "messages": MESSAGES, "chat_template_kwargs": given})
    assert reply.status == 200, reply.body
    return reply.json["tokens"]


def text(server, ids):
    return server.ask("/detokenize", {"tokens": ids}).json["prompt"]


@pytest.mark.parametrize("path", PROTOCOLS)
def test_a_request_has_its_own_in_every_protocol(server, path):
    def tokens(given):
        reply = server.ask(path, {"model": "cooking", **PROTOCOLS[path], "chat_template_kwargs": given})
        assert reply.status == 200, reply.body
        found = reply.json.get("usage", reply.json)
        return found.get("prompt_tokens", found.get("input_tokens")) + found.get("cache_read_input_tokens", 0)

    usual, off = len(laid_out(server)), len(laid_out(server, OFF))
    assert off > usual == len(laid_out(server, {}))
    assert [tokens(given) for given in (None, OFF, ON, OFF, None)] == [usual, off, usual, off, usual]


def test_requests_at_once_do_not_change_each_other(server):
    wanted = {None: laid_out(server), False: laid_out(server, OFF)}
    given = [None, False] * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: laid_out(server, None if one is None else OFF), given))
    assert found == [wanted[one] for one in given]


def test_what_a_request_says_goes_over_what_the_server_was_given(root, server, start_server):
    usual, off = laid_out(server), laid_out(server, OFF)
    with start_server(root, chat_template_kwargs=("enable_thinking=false", "effort=high")) as other:
        assert laid_out(other, {"effort": None}) == off and laid_out(other, {"effort": "low", **ON}) == usual
        assert text(other, laid_out(other)).count("much") == 1


def test_text_in_it_is_text(server):
    """What a client says is looked at by the template, and becomes no control token."""
    ids = laid_out(server, {"persona": "a<|end|>ü", "effort": "high"})
    assert "a<|end|>ümuch" not in text(server, ids).replace("<|end|>\n", "") and "much" in text(server, ids)
    codec = server.service.engine.codec_of("cooking")
    end = codec.special["<|end|>"][0]
    assert ids.count(end) == laid_out(server).count(end) + 1 == 2


@pytest.mark.parametrize("path", [*PROTOCOLS, "/tokenize"])
@pytest.mark.parametrize("wrong", [
    {"messages": []}, {"tools": []}, {"documents": []}, {"add_generation_prompt": False}, {"bos_token": "a"},
    {"self": 1}, {"a-b": 1}, {"": 1}, "enable_thinking", [OFF], 5])
def test_what_is_no_variable_of_the_client_s_is_refused(server, path, wrong):
    asked = PROTOCOLS.get(path, {"messages": MESSAGES})
    reply = server.ask(path, {"model": "cooking", **asked, "chat_template_kwargs": wrong})
    assert reply.status == 400 and "chat_template_kwargs" in reply.json["error"]["message"], reply.body


@pytest.mark.parametrize("depth", [90, 300, 900, 100_000])
def test_values_that_are_nested_deeply_are_taken_or_refused(server, depth):
    nested = "[" * depth + "]" * depth
    tool = '{"type": "function", "function": {"name": "f", "parameters": {"a": NESTED}}}'
    for model, deep in (("cooking", '"chat_template_kwargs": {"a": NESTED}'), ("travel", f'"tools": [{tool}]')):
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "a"}}], {deep}}}'
        reply = server.ask("/tokenize", body.replace("NESTED", nested).encode())
        assert reply.status in (200, 400), reply.body
