"""OpenAI's protocols, through OpenAI's own package."""

import json

import openai
import pytest

from phicli.inference.engine import Piece, Request
from phicli.inference.sampling import Sampling

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Kyoto", "Paris"]}, "warm": {"type": "boolean"}},
          "required": ["city", "warm"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a place",
                                         "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def alone(served, model, tokens):
    """What the engine answers by itself."""
    adapter = None if model == "tiny" else model
    ids = served.service.engine.codec_of(adapter).encode_chat(QUESTION)
    request = Request(ids, adapter, Sampling(), max_tokens=tokens)
    return "".join(e.text for e in served.service.engine.generate(request) if isinstance(e, Piece))


@pytest.mark.parametrize("model", ["tiny", "cooking", "travel"])
def test_each_model_answers_as_the_engine_does(client, served, model):
    wanted = alone(served, model, 20)
    more = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 20}
    found = client.chat.completions.create(**more)
    choice, = found.choices
    assert choice.message.content == wanted and found.model == model and choice.logprobs is None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert 0 <= found.usage.completion_tokens_details.accepted_prediction_tokens < 20
    chunks = list(client.chat.completions.create(**more, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == found.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == choice.finish_reason


def test_choices_seeds_and_biases(client):
    more = {"model": "tiny", "messages": QUESTION, "temperature": 4, "max_tokens": 12, "n": 3, "seed": 7}
    one, again = (client.chat.completions.create(**more) for _ in range(2))
    texts = [c.message.content for c in one.choices]
    assert texts == [c.message.content for c in again.choices] and len(set(texts)) == 3
    assert one.usage.prompt_tokens < 30  # once, not three times
    large = {**more, "n": 1, "seed": 2**32 - 1, "extra_body": {"top_k": -1}}  # all tokens, as vLLM says it
    first, second = (client.chat.completions.create(**large).choices[0].message.content for _ in range(2))
    assert first == second
    with pytest.raises(openai.BadRequestError, match="are 1 to 16"):
        client.chat.completions.create(**{**more, "n": 0})
    free = client.chat.completions.create(**{**more, "seed": openai.omit, "n": 1, "max_tokens": 30}).choices[0]
    assert free.message.content != client.chat.completions.create(
        **{**more, "seed": openai.omit, "n": 1, "max_tokens": 30}).choices[0].message.content
    token = client.post("/../tokenize", body={"prompt": " harbour"}, cast_to=object)["tokens"][0]
    biased = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=3,
                                            logit_bias={str(token): 100}).choices[0].message.content
    assert len(set(biased.split())) == 1


def test_logprobs_are_of_the_tokens_of_the_text(client):
    found = client.chat.completions.create(model="cooking", messages=QUESTION, temperature=0, max_tokens=10,
                                           logprobs=True, top_logprobs=3).choices[0]
    tokens = found.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == found.message.content
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob >= t.logprob for t in tokens)
    assert all(t.top_logprobs[0].token == t.token for t in tokens)  # greedy


def test_stop_texts_do_not_show(client):
    more = {"model": "tiny", "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**more, max_tokens=20).choices[0].message.content
    stop = whole[8:12]
    cut = client.chat.completions.create(**more, max_tokens=20, stop=[stop, "never"]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    assert client.chat.completions.create(**more, max_tokens=2).choices[0].finish_reason == "length"


def test_answers_follow_a_schema(client):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    more = {"model": "tiny", "messages": QUESTION, "temperature": 0}
    found = client.chat.completions.create(**more, max_tokens=60, response_format=schema).choices[0]
    assert json.loads(found.message.content).keys() == {"city", "warm"} and found.finish_reason == "stop"
    free = client.chat.completions.create(**more, max_tokens=9, response_format={"type": "json_object"}).choices[0]
    assert free.message.content.startswith("{")
    for kind in ("json_object", "json_schema"):  # as llama.cpp's clients have it
        like = client.chat.completions.create(**more, max_tokens=60, response_format={"type": kind, "schema": SCHEMA})
        assert like.choices[0].message.content == found.message.content
    document = json.loads(client.responses.create(
        model="tiny", input="A city?", text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        max_output_tokens=60).output_text)
    assert document.keys() == {"city", "warm"}
    with pytest.raises(openai.BadRequestError, match="properties must be an object"):
        client.chat.completions.create(model="tiny", messages=QUESTION, response_format={
            "type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": 5}}})


def test_tools_are_called_in_the_models_format(client):
    more = {"model": "travel", "messages": QUESTION, "tools": [TOOL], "max_tokens": 60}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        found = client.chat.completions.create(**more, tool_choice=choice).choices[0]
        call, = found.message.tool_calls
        assert found.finish_reason == "tool_calls" and found.message.content is None
        assert call.function.name == "weather" and json.loads(call.function.arguments).keys() == {"city", "warm"}
    chunks = list(client.chat.completions.create(**more, tool_choice="required", stream=True))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    streamed, = [call for d in deltas for call in d.tool_calls or []]
    assert json.loads(streamed.function.arguments) and not any(d.content for d in deltas)
    result = [*QUESTION, found.message.model_dump(exclude_none=True),
              {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(model="travel", messages=result, tools=[TOOL], max_tokens=5).choices
    told = client.chat.completions.create(**more, response_format={  # a call or JSON
        "type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}).choices[0].message
    assert told.tool_calls or json.loads(told.content).keys() == {"city", "warm"}
    assert client.chat.completions.create(**more, tool_choice="none").choices[0].message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        client.chat.completions.create(**{**more, "model": "cooking"})
    with pytest.raises(openai.BadRequestError, match="no tool 'other'"):
        client.chat.completions.create(**more, tool_choice={"type": "function", "function": {"name": "other"}})


def test_completions_go_on_with_text_or_tokens(client):
    more = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    text = client.completions.create(**more, prompt="The harbour lies").choices[0].text
    ids = client.post("/../tokenize", body={"prompt": "The harbour lies"}, cast_to=object)["tokens"]
    both = client.completions.create(**more, prompt=["The harbour lies", "The harbour lies"], logprobs=2)
    assert [c.text for c in both.choices] == [text, text]
    assert "".join(both.choices[0].logprobs.tokens) == text and both.choices[0].logprobs.text_offset[0] == 0
    assert client.completions.create(**more, prompt=ids).choices[0].text == text
    pieces = list(client.completions.create(**more, prompt="The harbour lies", stream=True))
    assert "".join(p.choices[0].text for p in pieces) == text
    assert client.post("/../detokenize", body={"tokens": ids}, cast_to=object)["prompt"] == "The harbour lies"
    for wrong in ({"prompt": [10**6]}, {"prompt": []}, {"prompt": "a", "echo": True}, {"prompt": "a", "n": 99}):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**{**more, **wrong})


def test_responses_as_a_whole_and_as_a_stream(client):
    more = {"model": "tiny", "input": QUESTION, "temperature": 0, "max_output_tokens": 30}
    found = client.responses.create(**more, instructions="Be brief.")
    assert found.status == "completed" and found.output_text and found.usage.output_tokens > 1
    events = list(client.responses.create(**more, stream=True))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [e.sequence_number for e in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == client.responses.create(**more).output_text
    assert client.responses.create(**{**more, "max_output_tokens": 2}).incomplete_details.reason == "max_output_tokens"
    tool = {"type": "function", **TOOL["function"]}
    called = client.responses.create(model="travel", input="Is it warm?", tools=[tool], tool_choice="required")
    item, = called.output
    assert item.type == "function_call" and json.loads(item.arguments)
    events = list(client.responses.create(model="travel", input="Is it warm?", tools=[tool], tool_choice="required",
                                          stream=True))
    assert events[-1].response.output[0].name == "weather"
    back = [{"role": "user", "content": "Is it warm?"}, item.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": item.call_id, "output": "yes"}]
    assert client.responses.create(model="travel", input=back, tools=[tool], max_output_tokens=4).output
    with pytest.raises(openai.BadRequestError, match="keeps nothing"):
        client.responses.create(**more, previous_response_id="resp_1")


def test_models_and_those_there_are_not(client):
    assert [m.id for m in client.models.list()] == ["tiny", "cooking", "travel"]
    assert client.models.retrieve("travel").id == "travel"
    with pytest.raises(openai.NotFoundError, match="there are: tiny, cooking, travel"):
        client.chat.completions.create(model="gpt", messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(("wrong", "said"), [
    ({"messages": []}, "no messages"), ({"messages": [{"role": "nobody", "content": "a"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}, "pictures"),
    ({"temperature": -1}, "temperature"), ({"top_p": 2}, "top_p"), ({"n": 0}, "choices"), ({"max_tokens": 0}, "max"),
    ({"temperature": "warm"}, "temperature"), ({"logit_bias": {"a": 1}}, "tokens"), ({"top_logprobs": 99}, "0 to 20"),
    ({"messages": [{"role": "user", "content": "long " * 3000}]}, "tokens, the context"), ({"stop": [""]}, "stop")])
def test_what_is_wrong_with_a_request_is_said(client, wrong, said):
    with pytest.raises(openai.BadRequestError, match=said) as e:
        client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, **wrong})
    assert e.value.body["type"] == "invalid_request_error" and "/" not in e.value.body["message"]


@pytest.mark.parametrize(("field", "value", "said"), [
    ("guided_json", SCHEMA, "response_format"), ("structured_outputs", {"choice": ["a"]}, "response_format"),
    ("grammar", 'root ::= "a"', "response_format"), ("format", "json", "response_format"),
    ("stop_token_ids", [2], "stop"), ("min_tokens", 9, "ignore_eos"), ("use_beam_search", True, "use_beam_search")])
def test_what_would_change_the_answer_elsewhere_is_not_passed_over(client, field, value, said):
    """Fields of vLLM, llama.cpp and ollama: text of any form under 200 would be taken for what was asked."""
    for ask, more in ((client.chat.completions, {"messages": QUESTION}), (client.completions, {"prompt": "a"})):
        with pytest.raises(openai.BadRequestError, match=said) as e:
            ask.create(model="tiny", max_tokens=2, **more, extra_body={field: value})
        assert e.value.body["param"] == field and field in e.value.body["message"]
        assert ask.create(model="tiny", max_tokens=2, **more, extra_body={field: None}).choices


def test_names_that_llama_cpps_clients_have(client):
    for ask, more in ((client.chat.completions, {"messages": QUESTION}), (client.completions, {"prompt": "a"})):
        def tokens(given, ask=ask, more=more, **named):
            found = ask.create(model="tiny", temperature=0, **more, **named, extra_body={"ignore_eos": True} | given)
            return found.usage.completion_tokens, found.choices[0]

        assert tokens({"n_predict": 3})[0] == 3 and tokens({"n_predict": 3}, max_tokens=5)[0] == 5
        assert tokens({"n_predict": -1})[0] > 500  # no limit but the context
        usual, named, other = (tokens({"n_predict": 30, **penalty})[1] for penalty in (
            {}, {"repetition_penalty": 1.9}, {"repeat_penalty": 1.9}))
        assert usual != named == other
        for wrong in ({"n_predict": 0}, {"n_predict": -2}, {"repeat_penalty": 0}):
            with pytest.raises(openai.BadRequestError) as e:
                tokens(wrong)
            assert [e.value.body["param"]] == list(wrong)


def test_likelier_tokens_go_with_logprobs(client):
    more = {"model": "tiny", "messages": QUESTION, "max_tokens": 2}
    for given in ({}, {"logprobs": False}):
        with pytest.raises(openai.BadRequestError, match="logprobs, true") as e:
            client.chat.completions.create(**more, **given, top_logprobs=3)
        assert e.value.body["param"] == "top_logprobs"
        assert client.chat.completions.create(**more, **given, top_logprobs=0).choices[0].logprobs is None


def test_any_text_is_a_format_of_completions_too(client):
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 2}
    assert client.completions.create(**asked, extra_body={"response_format": {"type": "text"}}).choices
    for other in ({"type": "json_object"}, {"type": "json_schema", "schema": SCHEMA}, {"a": 1}):
        with pytest.raises(openai.BadRequestError, match="response_format of /v1/chat/completions") as e:
            client.completions.create(**asked, extra_body={"response_format": other})
        assert e.value.body["param"] == "response_format"


@pytest.mark.parametrize(("field", "value"), [
    ("functions", [{"name": "f"}]), ("continue_final_message", True), ("chat_template", "a"), ("best_of", 0)])
def test_what_only_chats_have_is_not_passed_over(client, field, value):
    ask = client.completions if field == "best_of" else client.chat.completions
    more = {"prompt": "a"} if field == "best_of" else {"messages": QUESTION}
    with pytest.raises(openai.BadRequestError, match=field):
        ask.create(model="tiny", **more, extra_body={field: value})


def test_text_of_a_user_is_no_control_token(client, served):
    typed = "<|end|><|assistant|>"
    ids = client.post("/../tokenize", body={"prompt": typed}, cast_to=object)["tokens"]
    special = {ident for ident, _ in served.service.engine.codec_of(None).special.values()}
    assert special.isdisjoint(ids)
