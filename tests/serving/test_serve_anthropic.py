"""Anthropic's protocol, through Anthropic's own package."""

import anthropic
import pytest

ASKED = {"model": "tiny", "max_tokens": 20, "messages": [{"role": "user", "content": "What is the capital of France?"}],
         "extra_body": {"temperature": 0}}
TOOL = {"name": "weather", "description": "The weather of a place", "input_schema": {
    "type": "object", "properties": {"city": {"enum": ["Kyoto", "Paris"]}}, "required": ["city"],
    "additionalProperties": False}}


@pytest.fixture(scope="module")
def client(served):
    with anthropic.Anthropic(base_url=served.address, api_key="none", max_retries=0) as found:
        yield found


def test_messages_as_a_whole_and_as_a_stream(client):
    found = client.messages.create(**ASKED)
    block, = found.content
    assert block.text and found.stop_reason == "end_turn" and found.usage.output_tokens > 1
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == block.text == last.content[0].text
    assert last.usage.output_tokens == found.usage.output_tokens and last.stop_reason == "end_turn"
    short = client.messages.create(**{**ASKED, "max_tokens": 2})
    assert short.stop_reason == "max_tokens"
    cut = client.messages.create(**ASKED, stop_sequences=[block.text[8:12]])
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == block.text[8:12]
    assert cut.content[0].text == block.text[: block.text.index(block.text[8:12])]


def test_system_prompts_blocks_and_counting(client):
    blocks = [{"role": "user", "content": [{"type": "text", "text": "What is the capital "},
                                           {"type": "text", "text": "of France?"}]}]
    plain = client.messages.count_tokens(model="tiny", messages=ASKED["messages"]).input_tokens
    assert client.messages.count_tokens(model="tiny", messages=blocks).input_tokens == plain
    assert client.messages.count_tokens(model="tiny", messages=blocks, system="Be brief.").input_tokens > plain
    found = client.messages.create(**ASKED).usage
    assert found.input_tokens + found.cache_read_input_tokens == plain


def test_tools(client):
    more = {"model": "travel", "max_tokens": 60, "messages": ASKED["messages"], "tools": [TOOL]}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        found = client.messages.create(**more, tool_choice=choice)
        block, = found.content
        assert found.stop_reason == "tool_use" and block.input["city"] in ("Kyoto", "Paris")
    with client.messages.stream(**more, tool_choice={"type": "any"}) as stream:
        streamed, = stream.get_final_message().content
    assert streamed.type == "tool_use" and streamed.input.keys() == {"city"}
    back = [*ASKED["messages"], {"role": "assistant", "content": [block.model_dump(exclude_none=True)]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "rain"},
                                         {"type": "text", "text": "So?"}]}]
    assert client.messages.create(**{**more, "messages": back}).content


@pytest.mark.parametrize(("more", "said"), [
    ({"output_format": {"type": "json_schema", "schema": {}}}, "output_config.format"),
    ({"messages": [*ASKED["messages"], {"role": "assistant", "content": "{"}]}, "assistant"),
    ({"mcp_servers": [{"name": "a"}]}, "mcp_servers")])
def test_what_would_change_the_answer_is_not_passed_over(client, more, said):
    """An answer that was begun would be given anew, and one that was to be JSON as any text."""
    with pytest.raises(anthropic.BadRequestError, match=said):
        client.messages.create(**{**ASKED, "extra_body": ASKED["extra_body"] | more})


def test_errors_have_anthropics_form(client):
    with pytest.raises(anthropic.NotFoundError, match="there are: tiny, cooking, travel") as e:
        client.messages.create(**{**ASKED, "model": "claude"})
    assert e.value.body["type"] == "error" and e.value.body["error"]["type"] == "not_found_error"
    for wrong in ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
                  {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {"max_tokens": 0}):
        with pytest.raises(anthropic.BadRequestError) as e:
            client.messages.create(**{**ASKED, **wrong})
        assert e.value.body["error"]["type"] == "invalid_request_error"


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny", "cooking", "travel"]
    assert client.models.retrieve("travel").display_name == "travel"
