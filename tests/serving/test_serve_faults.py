"""What is wrong with a request is said with the name of the field, in the words of the protocol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_schemas.py"
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASKED = {CHAT: {"messages": [{"role": "user", "content": "Hello"}]}, TEXT: {"prompt": "Hello"},
         RESPONSES: {"input": "Hello"}}
NONE = {"type": "array", "uniqueItems": True}  # which llguidance has not
LONG = "word " * 9000
TOOL = {"type": "function", "function": {"name": "f", "parameters": NONE}}


@pytest.mark.parametrize(("path", "body", "param"), [
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"), (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": 1}, "messages"), (CHAT, {"messages": [{"role": "tool"}]}, "messages"),
    (CHAT, {"model": "travel", "messages": [{"role": "nobody", "content": "x"}]}, "messages"),
    (CHAT, {"max_tokens": 0}, "max_tokens"), (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"stop": [""]}, "stop"), (CHAT, {"stop": [1]}, "stop"), (CHAT, {"logit_bias": {"999999": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"1": 101}}, "logit_bias"), (CHAT, {"temperature": -1}, "temperature"),
    (CHAT, {"top_logprobs": 21}, "top_logprobs"), (CHAT, {"n": 0}, "n"), (CHAT, {"tool_choice": 3}, "tool_choice"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": NONE}}}, "response_format"),
    (CHAT, {"response_format": {"type": "x"}}, "response_format.type"),
    (CHAT, {"model": "travel", "tools": [TOOL], "tool_choice": "required"}, "tools"),
    (TEXT, {"prompt": LONG}, "prompt"), (TEXT, {"prompt": []}, "prompt"), (TEXT, {"prompt": [999999]}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"), (TEXT, {"logprobs": -1}, "logprobs"), (TEXT, {"prompt": None}, "prompt"),
    (RESPONSES, {"input": LONG}, "input"), (RESPONSES, {"max_output_tokens": 0}, "max_output_tokens"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": NONE}}}, "text.format"),
    (RESPONSES, {"top_logprobs": 65}, "top_logprobs"), (RESPONSES, {"input": []}, "input")])
def test_the_field_is_named(served, path, body, param):
    reply = served.ask(path, ASKED[path] | body)
    assert reply.status == 400 and reply.json["error"]["message"], reply.body
    assert reply.json["error"]["param"] == param, reply.body


def test_embeddings_are_refused_in_words(served):
    reply = served.ask("/v1/embeddings", {"input": "Hello", "model": "tiny"})
    assert reply.status == 501 and reply.json["error"]["code"] == "not_supported", reply.body
    assert "made for them" in reply.json["error"]["message"]


def test_random_schemas(served):
    """Each answer follows its schema, is cut off, or is refused with the reason."""
    done = subprocess.run([sys.executable, SCRIPT, "--url", served.address, "--schemas", os.environ.get("FUZZ", "30"),
                           "--tokens", "60"], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(done.stdout)["found"]) == {"valid", "cut off", "refused"}
