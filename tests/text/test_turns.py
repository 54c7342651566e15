"""What of a conversation is learnt, under chat templates in the style of real models.

The judge is transformers: the same templates with `{% generation %}` around what the model says, rendered by it.
"""

import json

import pytest
from chat_templates import EOS, MARKED, MARKS, PLAIN_MARKS, unmarked
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from phicli.errors import BadInput
from phicli.text import Conversation, TextCodec

ARGUMENTS = {"city": 'Ky"oto\n\\', "n": 3, "deep": {"a": [1, 2.5, None, True], "日本": "é🙂"}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "find_hotels", "arguments": ARGUMENTS}}
TOOL = {"type": "function", "function": {"name": "find_hotels", "description": 'Finds "hotels" in 日本', "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def result(text):
    return {"role": "tool", "content": text, "name": "find_hotels", "tool_call_id": "call00001"}


CONVERSATIONS = {
    "one turn": ([user("Where to go?"), assistant("To Kyoto.")], ()),
    "characters": ([user("日本 🙂 ก็ e\u0301"), assistant("\u200d👨‍👩‍👧 ﬁ é नि <b> & \"x\" \\ {{ y }}")], ()),
    "system": ([system("Be brief."), user("Where?"), assistant("There."), user("ok"), assistant("Bye.")], ()),
    "turns": ([user("a"), assistant("b"), user("a"), assistant("b"), user("a"), assistant("b")], ()),
    "blanks": ([user("  Hi \n"), assistant("  Hello \n"), user(" x "), assistant("\tThere \n")], ()),
    "empty": ([user("Hi"), assistant(""), user("Where?"), assistant("There.")], ()),
    "empty at last": ([user("Hi"), assistant("Hello."), user(""), assistant("")], ()),
    "thoughts": ([user("Hi"), assistant("Hello.", reasoning_content="one"), user("Where?"),
                  assistant("There.", reasoning_content="two\nthree")], ()),
    "call": ([system("Be brief."), user("Hotels?"), assistant("", tool_calls=[CALL]), result('{"hotels": ["A", 1]}'),
              assistant("Hotel A.")], (TOOL,)),
    "talk and calls": ([user("Hi"), assistant("Hello."), user("Hotels?"), assistant("I look.", tool_calls=[CALL]),
                        result("A & B"), assistant("A."), user("thx"), assistant("np")], (TOOL, TOOL)),
}


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """A model's folder with a template, and one with the same template marked; by name."""
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in MARKS])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in PLAIN_MARKS])
    made = {}
    for number, (name, template) in enumerate(MARKED.items()):
        pair = []
        for kind, source in (("plain", unmarked(template)), ("marked", template)):
            folder = tmp_path_factory.mktemp(f"{kind}{number}")
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps({
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>",
                "eos_token": EOS.get(name, "<|endoftext|>")}), encoding="utf-8")
            (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
            pair.append(folder)
        made[name] = tuple(pair)
    return made


@pytest.fixture(scope="module")
def models(folders):
    """Our codec of a template, that of the marked one, and transformers' tokenizer of the marked one; by name."""
    from transformers import AutoTokenizer

    return Models({name: (TextCodec(plain), TextCodec(marked), AutoTokenizer.from_pretrained(marked))
                   for name, (plain, marked) in folders.items()})


class Models(dict):
    def __repr__(self):
        return "models"  # a failure is short


def judged(tokenizer, messages, tools, **options):
    """Ids and mask as transformers has them: a token counts that begins in a marked part."""
    from transformers.utils.chat_template_utils import render_jinja_template

    kept = list(tools) or None
    ids = tokenizer.apply_chat_template(messages, tools=kept, tokenize=True, return_dict=False, **options)
    texts, parts = render_jinja_template([messages], tools=kept, chat_template=tokenizer.chat_template,
                                         return_assistant_tokens_mask=True, add_generation_prompt=False,
                                         **tokenizer.special_tokens_map | options)
    encoded = tokenizer(texts[0], add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    return ids, [any(begin <= at < end for begin, end in parts[0]) for at, _ in encoded["offset_mapping"]]


def shown(codec, encoded):
    """The text with what counts in brackets, for a failure that can be read."""
    out = ""
    for at, (ident, counts) in enumerate(zip(encoded[0], encoded[1], strict=True)):
        before = bool(at) and encoded[1][at - 1]
        out += ("⟦" if counts and not before else "⟧" if before and not counts else "")
        out += codec.tokenizer.decode([ident], skip_special_tokens=False)
    return out


def compare(model, messages, tools=()):
    plain, marked, tokenizer = model
    try:
        wanted = judged(tokenizer, messages, tools)
    except Exception as e:  # the template refuses the messages
        if messages[0]["role"] == "system" and plain.layout.refuses_system:
            return
        with pytest.raises(BadInput):
            plain.encode_conversation(Conversation.of(*messages, tools=tools))
        assert "template" in type(e).__name__.lower() or "undefined" in type(e).__name__.lower(), e
        return
    text = plain.render_chat(messages, tools=tools)
    if any("tool_calls" in m and m["tool_calls"][0]["function"]["name"] not in text for m in messages):
        with pytest.raises(BadInput, match="does not show the call"):
            plain.encode_conversation(Conversation.of(*messages, tools=tools))
        return
    for codec in (plain, marked):
        found = codec.encode_conversation(Conversation.of(*messages, tools=tools))
        assert shown(codec, (found.ids, found.mask)) == shown(codec, wanted)
        assert found.ids == wanted[0]
    prompt = tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=True, return_dict=False,
                                           add_generation_prompt=True)
    assert plain.encode_chat(messages, tools=tools) == prompt


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", MARKED)
def test_ids_and_what_counts_are_those_of_transformers(models, name, conversation):
    compare(models[name], *CONVERSATIONS[conversation])


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "llama3.1", "mistral v7", "phi3.5", "command r7b"])
def test_the_parts_that_count_are_the_answers_with_their_end(models, name):
    plain, marked, _ = models[name]
    messages, _ = CONVERSATIONS["turns"]
    for codec in (plain, marked):
        found = codec.encode_conversation(Conversation(tuple(messages), (False, True, False, False, False, True)))
        text = shown(codec, (found.ids, found.mask))
        parts = [part.split("⟧")[0] for part in text.split("⟦")[1:]]
        wanted = {"command r7b": "<|START_RESPONSE|>b<|END_RESPONSE|>"}.get(name, "b") + codec.turns.end
        assert parts == [wanted, wanted]  # not the turn in the middle


def test_transformers_own_mask_of_a_marked_template(models):
    _, marked, tokenizer = models["qwen2.5"]
    for messages, tools in CONVERSATIONS.values():
        own = tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=True, return_dict=True,
                                            return_assistant_tokens_mask=True)
        found = marked.encode_conversation(Conversation.of(*messages, tools=tools))
        assert found.mask == [bool(counts) for counts in own["assistant_masks"]]


def test_the_end_is_learnt_that_a_marked_part_leaves_out(folders, tmp_path):
    for path in folders["chatml"][1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    template = MARKED["chatml"].replace("m.content + '<|im_end|>' }}{%- endgeneration %}",
                                        "m.content }}{%- endgeneration %}{{- '<|im_end|>' }}")
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    codec = TextCodec(tmp_path)
    found = codec.encode_conversation(Conversation.of(user("a"), assistant("b"), user("c"), assistant("d")))
    assert codec.tokenizer.decode([found.ids[at] for at in found.targets],
                                  skip_special_tokens=False) == "b<|im_end|>d<|im_end|>"


@pytest.mark.parametrize(("options", "wanted"), [
    ({}, ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]),  # the model itself closes what it opened
    ({"enable_thinking": False}, ["b<|im_end|>", "d<|im_end|>"]),  # its prompt has it
])
def test_a_thought_counts_where_it_is_no_part_of_the_prompt(folders, options, wanted):
    codec = TextCodec(folders["qwen3"][0], options=options)
    found = codec.encode_conversation(Conversation.of(user("a"), assistant("b"), user("c"), assistant("d")))
    text = shown(codec, (found.ids, found.mask))
    assert [part.split("⟧")[0] for part in text.split("⟦")[1:]] == wanted


CHARACTERS = st.characters(exclude_categories=["Cs", "Co"], exclude_characters="<>[]")
TEXTS = st.text(CHARACTERS, max_size=30) | st.sampled_from(
    ["", " ", "\n\n", " a\n", "日本", "🙂‍", "é é", "| end |", "{{ x }}", "assistant\n", '{"a": "b"}', "'\\"])


@st.composite
def conversations(draw):
    messages = [system(draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(TEXTS)))
        if draw(st.integers(0, 3)) == 0:
            values = TEXTS | st.integers(-5, 5) | st.lists(TEXTS, max_size=2)
            arguments = draw(st.dictionaries(TEXTS.filter(bool), values, max_size=3))
            call = {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
            messages += [assistant("", tool_calls=[call]), result(draw(TEXTS))]
        messages.append(assistant(draw(TEXTS.filter(str.strip))))
    return messages


@pytest.mark.parametrize("name", MARKED)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(messages=conversations(), with_tools=st.booleans())
def test_whatever_a_conversation_says(models, name, messages, with_tools):
    asked = all(message["content"] for message in messages if message["role"] == "user")
    assume(asked or name != "mistral v3")  # its system message goes into the last question: an empty one has no place
    compare(models[name], messages, (TOOL,) if with_tools else ())
