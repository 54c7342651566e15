"""What rows of each format say, whatever their fields are called."""

import json
import re

import pytest

from phicli.dataset.contents import FORMATS, RowParser
from phicli.dataset.defects import Defect
from phicli.dataset.understood import prompt_hash, row_hash
from phicli.text import Conversation

SYSTEM, USER, ASSISTANT = ({"role": role, "content": text} for role, text in (
    ("system", "Be brief."), ("user", "Where?"), ("assistant", "There.")))
ONE = Conversation.of(USER, ASSISTANT)
WITH_SYSTEM = Conversation.of(SYSTEM, USER, ASSISTANT)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLS = "function_call"
CALL = {"type": "function", "function": {"name": "look", "arguments": {"place": "Kyoto"}}}
CALLING = Conversation.of(USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                          {"role": "tool", "content": "sunny"}, ASSISTANT, tools=(TOOL,))


def turns(*messages):
    return [dict(message) for message in messages]


KNOWN = {
    "openai": ({"messages": turns(SYSTEM, USER, ASSISTANT)}, "messages", WITH_SYSTEM),
    "developer": ({"messages": [{"role": "developer", "content": "Be brief."}, *turns(USER, ASSISTANT)]}, "messages",
                  WITH_SYSTEM),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in ("Whe", "re?")]},
                            ASSISTANT]}, "messages", ONE),
    "weights": ({"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}, "messages",
                Conversation((USER, ASSISTANT, USER, ASSISTANT), (False, False, False, True))),
    "a weight of null": ({"messages": [USER, {**ASSISTANT, "weight": None}]}, "messages", ONE),
    "capitals": ({"Question": "Where?", "Answer ": "There."}, "prompt-response", ONE),
    "roles in capitals": ({"messages": [{**USER, "role": "User"}, {**ASSISTANT, "role": "ASSISTANT"}]}, "messages",
                          ONE),
    "messages in capitals": ({"Messages": [{"Role": "User", "Content": "Where?"},
                                           {"Role": "Assistant", "Content": "There.", "Weight": 1}]}, "messages", ONE),
    "messages as text": ({"id": "1", "messages": json.dumps([USER, ASSISTANT])}, "messages", ONE),  # as in a table
    "sharegpt as text": ({"conversations": json.dumps([{"from": "human", "value": "Where?"},
                                                       {"from": "gpt", "value": "There."}])}, "sharegpt", ONE),
    "trl with tools": ({"prompt": turns(USER), "completion": turns(ASSISTANT), "tools": [TOOL]}, "prompt-response",
                       Conversation.of(USER, ASSISTANT, tools=(TOOL,))),
    "calls as text": ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "look", "arguments": '{"place": "Kyoto"}'}}]},
        {"role": "tool", "content": "sunny"}, ASSISTANT], "tools": json.dumps([TOOL])}, "messages", CALLING),
    "old functions": ({"messages": [USER, {"role": "assistant", "content": None, "function_call": {
        "name": "look", "arguments": '{"place": "Kyoto"}'}}, {"role": "function", "content": "sunny"}, ASSISTANT],
        "functions": [TOOL["function"]]}, "messages", CALLING),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]},
                 "sharegpt", ONE),
    "sharegpt with tools": ({"conversations": [
        {"from": "human", "value": "Where?"}, {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "sunny"}, {"from": "gpt", "value": "There."}], "tools": json.dumps([TOOL])},
        "sharegpt", CALLING),
    "sharegpt with system": ({"system": "Be brief.", "conversations": [
        {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]}, "sharegpt", WITH_SYSTEM),
    "alpaca": ({"instruction": "Where?", "output": "There."}, "alpaca", ONE),
    "alpaca, input null": ({"instruction": "Where?", "input": None, "output": "There."}, "alpaca", ONE),
    "alpaca, input": ({"instruction": "Where", "input": "is it?", "output": "There."}, "alpaca",
                      Conversation.of({"role": "user", "content": "Where\n\nis it?"}, ASSISTANT)),
    "alpaca, history": ({"instruction": "Where?", "output": "There.", "history": [["a", "b"]]}, "alpaca",
                        Conversation.of({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, USER,
                                        ASSISTANT)),
    "trl, an answer in the prompt": ({"prompt": turns(USER, ASSISTANT, USER), "completion": turns(ASSISTANT)},
                                     "prompt-response", Conversation((USER, ASSISTANT, USER, ASSISTANT),
                                                                     (False, False, False, True))),
    "dolly": ({"instruction": "Where?", "context": "", "response": "There.", "category": "qa"}, "alpaca", ONE),
    "trl": ({"prompt": turns(USER), "completion": turns(ASSISTANT)}, "prompt-response", ONE),
    "text": ({"text": "All of it."}, "text", "All of it."),
    **{f"{a}/{b}": ({a: "Where?", b: "There."}, "prompt-response", ONE)
       for a, b in (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"),
                    ("input", "output"), ("problem", "solution"), ("user", "assistant"), ("inputs", "targets"))},
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_row_is_understood_by_its_fields(name):
    fields, format, content = KNOWN[name]
    found = RowParser().read(fields)
    assert (found.format, found.content) == (format, content)
    assert RowParser(format).read(fields).content == content


def test_fields_may_be_named():
    fields = {"id": 1, "frage": "Where?", "a": {"antwort": "There."}}
    found = RowParser(columns=["prompt=frage", "response=a.antwort"]).read(fields)
    assert found.content == ONE and {"frage", "a"} <= found.used and "id" not in found.used
    chat = RowParser(columns=["messages=x"]).read({"x": turns(USER, ASSISTANT), "text": "other"})
    assert chat.content == ONE
    preferred = RowParser(columns=["response=chosen"]).read({"prompt": "Where?", "chosen": "There.", "rejected": "No."})
    assert preferred.content == ONE
    with pytest.raises(Defect, match=r"no field 'a\.b'"):
        RowParser(columns=["prompt=a.b"]).read(fields)


@pytest.mark.parametrize("fields", [
    {"prompt": "Where?", "chosen": "There.", "rejected": "No."},
    {"prompt": turns(USER), "chosen": turns(ASSISTANT), "rejected": turns(SYSTEM)},
    {"chosen": turns(USER, ASSISTANT), "rejected": turns(USER, SYSTEM)},
    {"conversations": [{"from": "human", "value": "Where?"}], "chosen": {"from": "gpt", "value": "There."},
     "rejected": {"from": "gpt", "value": "No."}},
    {"input": {"messages": turns(USER)}, "preferred_output": turns(ASSISTANT), "non_preferred_output": []},
])
def test_what_takes_the_preferred_answers_is_said_and_does(fields):
    with pytest.raises(Defect, match="takes the preferred ones") as caught:
        RowParser().read(fields)
    columns = re.findall(r"--map (\S+)", caught.value.message)
    assert RowParser(columns=columns).read(fields).content == ONE


@pytest.mark.parametrize("fields", [
    {"messages": turns(SYSTEM, USER, ASSISTANT)}, {"prompt": turns(SYSTEM, USER), "completion": turns(ASSISTANT)},
    {"conversations": [{"From": "System", "Value": "Be brief."}, {"from": "human", "value": "Where?"},
                       {"from": "gpt", "value": "There."}]},
    {"conversations": json.dumps(turns({**SYSTEM, "role": "developer"}, USER, ASSISTANT))},
])
def test_of_two_system_messages_the_one_in_the_messages_is_taken(fields):
    found = RowParser().read({"system": "Be long.", **fields})
    assert found.content == WITH_SYSTEM and "system" not in found.used
    assert "system" in RowParser().read({"system": "", **fields}).used


@pytest.mark.parametrize("answers", [
    {"text": ["There.", "Not there."], "answer_start": [5, 8]}, ["There."], [{"answer_id": 1, "text": "There."}],
    {"text": "There."},
])
def test_the_first_of_several_answers_is_taken_as_it_is_said(answers):
    fields = {"id": "1", "question": "Where?", "answers": answers}
    with pytest.raises(Defect, match="the first of 'answers': --map") as caught:
        RowParser().read(fields)
    parser = RowParser(columns=re.findall(r"--map (\S+);", caught.value.message))
    assert parser.read(fields).content == ONE
    if "answer_start" in answers:  # SQuAD 2.0 has questions without an answer
        none = {**fields, "answers": {"text": [], "answer_start": []}}
        with pytest.raises(Defect, match=r"--map response=answers\.text\.0;"):
            RowParser().read(none)
        with pytest.raises(Defect, match=r"no field 'answers\.text\.0', which --map names"):
            parser.read(none)


@pytest.mark.parametrize(("fields", "answer", "alone"), [
    ({"prompt": "Where?", "text": "There."}, "response=text", "There."),
    ({"document": "Where?", "target": "There."}, "prompt=document", "Where?"),
    ({"question": "Where?", "the text": "", "content": "There."}, "response=content", "There."),
])
def test_a_text_beside_a_question_or_an_answer_is_what_is_said(fields, answer, alone):
    with pytest.raises(Defect, match=f"--map {answer} "):
        RowParser().read(fields)
    assert RowParser(columns=[answer]).read(fields).content == ONE
    assert RowParser("text").read(fields).content == alone
    named = next(name for name in fields if fields[name] == alone)
    assert RowParser(columns=[f"text={named}"]).read(fields).content == alone


def test_a_text_beside_what_is_no_text_is_learnt_alone():
    for other in ({"target": 0}, {"user": None}, {"input": ""}, {"role": "engineer"}, {"role": None}):
        assert RowParser().read({"text": "All of it.", **other}).content == "All of it."


def test_the_format_may_be_named():
    both = {"instruction": "Where?", "output": "There.", "text": "### Where? There."}
    assert RowParser().read(both).content == ONE and RowParser("text").read(both).content == both["text"]
    with pytest.raises(Defect, match="'messages' is null"):
        RowParser("messages").read(both)
    assert set(FORMATS) >= {format for _, format, _ in KNOWN.values()}


@pytest.mark.parametrize(("fields", "code", "said"), [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", "preference training"),
    ({"frage": "a"}, "unknown_format", "frage"),
    ({"turns": turns(USER, ASSISTANT)}, "unknown_format", "'turns' is a list of messages: --map messages=turns"),
    ({"turns": [{"speaker": "user", "text": "a"}]}, "wrapped", r"\{messages: \[\.turns\[\] \| \{role: \.speaker"),
    ({"segments": [{"label": False, "text": "a"}]}, "unknown_format", "'segments' are parts of a text"),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "preference", "preference training"),
    ({"messages": [USER, {**ASSISTANT, "weight": "0"}]}, "bad_messages", "message 2: its weight is a string"),
    ({"prompt": "a"}, "missing_field", "response"),
    ({"completion": "a"}, "missing_field", "prompt"),
    ({"prompt": "a", "answers": {"spans": []}}, "missing_field", "means it; there are: prompt, answers"),
    ({"prompt": "a", "answers": [1]}, "missing_field", "means it; there are: prompt, answers"),
    ({"data": [{"prompt": "a", "response": "b"}]}, "wrapped", r"'data' is a list of 1 objects; .* jq -c '.data\[\]'"),
    ({"data": [{"title": "a", "paragraphs": []}], "version": "1.1"}, "wrapped", "SQuAD"),
    ({"prompt": ["a"], "response": ["b"]}, "wrapped", "'prompt' and 'response' are columns"),
    ({"prompt": {"0": "a"}, "response": {"0": "b"}}, "wrapped", "'prompt' and 'response' are columns"),
    ({"prompt|response": "a|b"}, "unknown_format", "no separator was recognised"),
    ({"prompt": "a", "completion": "b", "label": "False"}, "labelled_bad", "'label' is false"),  # as in a table
    ({"instruction": "a", "output": "b", "label": "x", "kto_tag": False}, "labelled_bad", "'kto_tag' is false"),
    ({"prompt": 5, "response": "a"}, "not_text", "'prompt' is a number"),
    ({"messages": []}, "bad_messages", "'messages' is empty"),
    ({"messages": str(turns(USER, ASSISTANT))}, "bad_messages", "'messages' is text, and no list in JSON"),
    ({"dialogue": "A: Hi", "summary": "B"}, "unknown_format", "--map prompt=dialogue --map response=summary"),
    ({"messages": [{"speaker": "a", "text": "b"}]}, "bad_messages", "message 1: it has no 'role' and no 'from', only: "
     "speaker, text"),
    ({"messages": ["a"]}, "bad_messages", "message 1: it is a string"),
    ({"messages": [{"role": "assistent", "content": "a"}]}, "bad_messages", "message 1: its role is 'assistent'"),
    ({"messages": [USER, {"role": "assistant", "content": 5}]}, "not_text", "message 2: 'content' is a number"),
    ({"messages": [USER, {"role": "assistant"}]}, "not_text", "message 2: 'content' is null"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]}, "bad_messages", "no text"),
    ({"messages": turns(USER, ASSISTANT), "images": ["a.png"]}, "media", "'images' has pictures beside the text"),
    ({"messages": turns({**USER, "images": ["aGk="]}, ASSISTANT)}, "media", "message 1: 'images' has pictures"),
    ({"instruction": "<video>Where?", "output": "There.", "videos": ["a.mp4"]}, "media", "'videos' has videos"),
    ({"prompt": "<audio>Where?", "response": "There.", "audios": "['a.wav']"}, "media", r"del\(\.\"audios\"\)' FILE"),
    ({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "There."}],
      "image": "coco/a.jpg"}, "media", "'image' has a picture"),
    ({"prompt": "a", "text": "b"}, "missing_field", "--map response=text if it is the answer, --format text if"),
    ({"answer": "a", "Content": "b"}, "missing_field", "no field 'prompt' beside 'answer', but 'Content': --map prom"),
    ({"role": "user", "content": "a"}, "bad_messages", r"perhaps the file .*'\{messages: map\(\{role: \.role"),
    ({"text": "All of it.", "Image": {"bytes": None, "path": "a.jpg"}}, "media", "'Image' has a picture"),
    ({"messages": turns(USER)}, "nothing_to_learn", "no message of an assistant"),
    ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "nothing_to_learn", "no message of an assistant"),
    ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}]}, "bad_messages", "has no name"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": CALLS, "value": "{"}]}, "bad_messages", "JSON"),
    ({"messages": turns(USER, ASSISTANT), "tools": 5}, "bad_messages", "'tools' is no list"),
    ({"messages": [USER, {"role": "assistant", "content": "half \ud83d"}]}, "lone_surrogate", "message 2"),
])
def test_what_is_wrong_is_said(fields, code, said):
    with pytest.raises(Defect, match=said) as caught:
        RowParser().read(fields)
    assert caught.value.code == code


@pytest.mark.parametrize("none", [None, [], "", "[]", [None], {"bytes": None, "path": None}, False, 3])
def test_a_field_without_a_picture_in_it_does_no_harm(none):
    messages = turns({**USER, "images": none}, ASSISTANT)
    assert RowParser().read({"messages": messages, "images": none, "image": none}).content == ONE


def test_a_picture_that_is_named_as_text_is_text():
    found = RowParser(columns=["prompt=image"]).read({"image": "Where?", "response": "There."})
    assert found.content == ONE


def test_rows_that_differ_in_what_is_learnt_or_called_are_not_the_same():
    plain = {"messages": turns(USER, ASSISTANT)}
    calls = [{"name": "look", "arguments": {"place": place}} for place in ("Kyoto", "Nara")]
    silent = {"role": "assistant", "content": None}
    called = [{"messages": [USER, {**silent, "tool_calls": [{"function": call}]}]} for call in calls]
    trl = [{"prompt": [{"role": "user", "content": f"Is it {i}?"}], "completion": turns(ASSISTANT)} for i in range(2)]
    twice = turns(USER, ASSISTANT, USER, ASSISTANT)
    weights = [{"messages": [*twice[:at], {**twice[at], "weight": 0}, *twice[at + 1 :]]} for at in (1, 3)]
    rows = [RowParser().read(row) for row in (plain, *called, *trl, *weights)]
    assert len({row_hash(row) for row in rows}) == len(rows)
    assert rows[1].texts == [("user", "Where?")] and rows[3].texts[0] == ("user", "Is it 0?")
    blanks = RowParser().read({"messages": turns({**USER, "content": " Where? "}, ASSISTANT)})
    assert row_hash(rows[0]) == row_hash(blanks)


def test_what_a_row_asks_is_not_its_greeting():
    def greeted(question):
        return {"messages": turns(SYSTEM, {"role": "assistant", "content": "Hello!"},
                                  {"role": "user", "content": question}, ASSISTANT)}

    keys = {prompt_hash(RowParser().read(greeted(question))) for question in ("a", "b")}
    assert len(keys) == 2
    again = [RowParser().read({"messages": turns(USER, {**ASSISTANT, "content": text})}) for text in "ab"]
    assert prompt_hash(again[0]) == prompt_hash(again[1])
