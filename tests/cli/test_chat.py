"""`phicli chat` through the real main(), and at a real terminal."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

import onnxruntime_genai as og
import pytest

from phicli import optimize
from phicli.cli.talks import Talks
from phicli.config import ChatConfig
from phicli.errors import BadInput, Missing
from phicli.inference import session as sessions
from phicli.inference.conversation import Conversation
from phicli.inference.session import Session

QUESTION = "What is the capital of France?"


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """typed(bytes): stdin is a pipe with these."""

    def feed(data):
        (tmp_path / "stdin").write_bytes(data)
        monkeypatch.setattr(sys, "stdin", (tmp_path / "stdin").open(encoding="utf-8"))

    return feed


def test_answers_on_stdout_and_all_else_on_stderr(cli, optimized):
    plain = cli("chat", "--root", optimized, "--prompt", QUESTION)
    assert plain.code == 0 and plain.out.strip()
    assert "tok/s" in plain.err and "first token after" in plain.err and "\x1b" not in plain.err + plain.out
    adapted = cli("chat", "--path", optimized / "onnx-ao", "-a", "travel", "-p", QUESTION)
    assert adapted.code == 0 and adapted.out != plain.out
    assert cli("chat", "--root", optimized, "-p", QUESTION).out == plain.out


def test_json_document(cli, optimized):
    done = cli("chat", "--root", optimized, "-p", QUESTION, "--adapter", "travel", "--max-new-tokens", "3", "--json")
    document = json.loads(done.out)
    codec = Session(optimized / "onnx-ao").codec
    assert document["prompt_tokens"] == len(codec.encode_chat([{"role": "user", "content": QUESTION}]))
    assert document["adapter"] == "travel" and document["answer_tokens"] <= 3
    assert document["finish_reason"] in ("length", "stop") and isinstance(document["answer"], str)
    assert 0 < document["prefill_seconds"] <= document["first_token_seconds"]


def test_prompt_on_stdin(cli, optimized, typed):
    asked = cli("chat", "--root", optimized, "-p", QUESTION).out
    typed(QUESTION.encode() + b"\n")
    assert cli("chat", "--root", optimized).out == asked
    typed(b"\xff\xfe\xfa")
    assert cli("chat", "--root", optimized).code == 3
    typed(b"")
    assert cli("chat", "--root", optimized).code == 2


def test_a_question_as_an_argument_with_what_is_piped_in(cli, optimized, typed, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli("chat", QUESTION, "--root", optimized).out == cli("chat", "-p", QUESTION, "--root", optimized).out
    for flags, prompt in ((("Sum up:",), "Sum up:\n\na\nb"), (("-p", "Sum up:"), "Sum up:"), ((), "a\nb")):
        typed(b"a\nb\n")
        done = cli("chat", *flags, "--root", optimized, "--compare", "-a", "travel", "--max-new-tokens", "1", "--json")
        assert json.loads(done.out)["prompt"] == prompt
    assert cli("chat", "x", "-p", "y", "--root", optimized).code == 2 == cli("chat", "x", "y").code


def test_the_only_adapter_answers_people_and_not_programs(cli, optimized, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = shutil.copytree(optimized / "onnx-ao", tmp_path / "onnx-ao")
    (folder / "adapters" / "cooking.onnx_adapter").unlink()

    def adapter(*flags):
        done = cli("chat", "--path", folder, "--max-new-tokens", "2", "--json", *flags)
        return json.loads(done.out)["adapter"], "the only one; --no-adapter" in done.err

    assert adapter(QUESTION) == ("travel", True)
    assert adapter("-p", QUESTION) == adapter(QUESTION, "--no-adapter") == (None, False)
    with Talks(folder, ChatConfig(), only=True) as talks:
        assert talks.last.adapter == "travel" and "adapter:  travel (on)" in talks.described()
    (folder / "adapters" / "travel.onnx_adapter").write_bytes(b"no adapter")
    done = cli("chat", "--path", folder, "--max-new-tokens", "2", QUESTION)
    assert done.code == 0 and done.out and "the only adapter cannot be used, so none is" in done.err


@pytest.mark.parametrize(("root", "together"), [("two_graphs", True), ("optimized", False)])
def test_compared_answers_come_in_turns_and_are_those_of_each_alone(root, together, request):
    folder = request.getfixturevalue(root) / "onnx-ao"
    with Talks(folder, ChatConfig(max_new_tokens=12), compare=True) as talks, Session(folder) as session:
        pieces = []
        assert talks.session.shares_runs == together
        answers = [talks.ask_all(text, lambda *piece: pieces.append(piece), lambda: False)
                   for text in (QUESTION, "Why?")]
        turns = [n for n, _ in pieces]
        assert turns.index(2) < len(turns) - 1 - turns[::-1].index(0)  # the third began before the first was done
        for number, name in enumerate((None, "cooking", "travel")):
            alone = Conversation(session, adapter=name, max_new_tokens=12)
            for text, found in zip((QUESTION, "Why?"), answers, strict=True):
                assert alone.ask(text).text == found[number].text
                assert (alone.last.answer_tokens, alone.last.finish_reason) == (
                    found[number].answer_tokens, found[number].finish_reason)
                assert 0 <= found[number].cached_tokens - alone.last.cached_tokens <= 1  # the token that ended it
        ends = iter((False,) * 9)
        stopped = talks.ask_all("And?", lambda *piece: None, lambda: next(ends, True))
        assert [answer.finish_reason for answer in stopped] == ["interrupted"] * 3
        if together:
            assert talks.session.engine.stats().running <= 3
            talks.session.context = 40  # as a border of LongRoPE, which rows of one batch cannot cross
            longer = talks.ask_all("And then?", lambda *piece: None, lambda: False)
            assert not talks.session.shares_runs and [answer.dropped_turns for answer in longer] == [0] * 3


def test_compare(cli, optimized):
    done = cli("chat", "--root", optimized, "-p", QUESTION, "--compare", "--json")
    answers = json.loads(done.out)["answers"]
    assert [a["adapter"] for a in answers] == [None, "cooking", "travel"]
    table = cli("chat", "--root", optimized, "-p", QUESTION, "--compare", "--adapter", "travel")
    assert table.code == 0 and "no adapter" in table.out and "with travel" in table.out and "cooking" not in table.out


@pytest.fixture
def opened(monkeypatch):
    """Each graph that was opened, by name, and each model of genai, as they are made."""
    graphs, models, open_graph, model = [], [], sessions.open_graph, og.Model
    monkeypatch.setattr(sessions, "open_graph", lambda settings, path, *more: (
        graphs.append(path.name), open_graph(settings, path, *more))[1])
    monkeypatch.setattr(og, "Model", lambda config: (models.append(1), model(config))[1])
    return graphs, models


def test_the_graph_is_chosen_by_what_is_asked_and_loaded_once(cli, two_graphs, opened):
    def chat(*flags):
        done = cli("chat", "--root", two_graphs, "-p", "Where should I eat in Rome?", "--json", *flags)
        document = json.loads(done.out)
        return [a["answer"] for a in document["answers"]] if "answers" in document else document["answer"]

    plain, travel, both = chat(), chat("-a", "travel"), chat("--compare", "-a", "travel")
    three = chat("--compare")
    assert both == [plain, travel] and three[0] == plain and three[2] == travel and len({*three}) == 3
    assert opened == (["base.onnx", "model.onnx"], [1] * 2)  # and compared on an engine


def test_an_adapter_chosen_later_gets_another_session_and_the_turns_stay(two_graphs, opened, monkeypatch):
    folder = two_graphs / "onnx-ao"
    with Talks(folder, ChatConfig(max_new_tokens=8)) as talks:
        first, base = talks.last.ask(QUESTION), talks.session
        with pytest.raises(BadInput, match="there are: cooking, travel"):
            talks.use_adapter("paris")
        assert talks.session is base and opened[0] == ["base.onnx"]
        talks.use_adapter("travel")
        assert base.closed and talks.last.session is talks.session
        assert talks.last.ask("Why?").adapter == "travel" and talks.last.turns[0] == (QUESTION, first.text)
        for name in (None, "cooking", None):
            talks.use_adapter(name)
        talks.last.reset()
        assert talks.last.ask(QUESTION).text == first.text
        assert opened[0] == ["base.onnx", "model.onnx"]
    assert talks.session.closed


def test_an_adapter_added_during_a_chat_can_be_chosen_in_it(two_graphs, tmp_path, opened):
    root = shutil.copytree(two_graphs, tmp_path / "root")
    with Talks(root / "onnx-ao", ChatConfig(adapter="travel", max_new_tokens=8), compare=True) as talks:
        asked = [talk.ask(QUESTION) for talk in talks.all]
        optimize(root=root, base=str(root / "awq"), adapters=[f"late={root / 'cooking'}"], device="cpu",
                 activations="fp32", head="float", adapter_layout="fused")
        talks.use_adapter("late")
        assert opened[0] == [] and not talks.session.outdated
        assert [talk.ask("Why?").adapter for talk in talks.all] == [None, "late"]
        assert [talk.turns[0] for talk in talks.all] == [(QUESTION, answer.text) for answer in asked]


def test_where_the_graph_with_adapters_cannot_be_loaded_the_chat_goes_on_without(two_graphs, monkeypatch):
    real = sessions.open_graph

    def refuse(settings, path, *more):
        if path.name == "model.onnx":
            raise Missing("not enough memory")
        return real(settings, path, *more)

    monkeypatch.setattr(sessions, "open_graph", refuse)
    with Talks(two_graphs / "onnx-ao", ChatConfig(max_new_tokens=8)) as talks:
        first = talks.last.ask(QUESTION)
        with pytest.raises(Missing):
            talks.use_adapter("travel")
        assert talks.last.adapter is None and talks.last.turns == [(QUESTION, first.text)]
        talks.last.reset()
        assert talks.last.ask(QUESTION).text == first.text


def test_seed_and_temperature(cli, optimized):
    def answer(*flags):
        return cli("chat", "--root", optimized, "-p", QUESTION, "--temperature", "2", "--top-p", "1", *flags).out

    assert answer("--seed", "1") == answer("--seed", "1") != answer("--seed", "2")
    greedy = cli("chat", "--root", optimized, "-p", QUESTION).out
    assert answer("--top-k", "1", "--seed", "5") == greedy


def test_a_prompt_is_greedy_and_a_conversation_samples_as_the_model_asks(cli, optimized, tmp_path):
    folder = shutil.copytree(optimized / "onnx-ao", tmp_path / "onnx-ao")
    settings = json.loads((folder / "genai_config.json").read_text())
    settings["search"] |= {"do_sample": True, "temperature": 1.6, "top_p": 1.0, "top_k": 9}
    (folder / "genai_config.json").write_text(json.dumps(settings))

    def conversation(**given):
        with Talks(folder, ChatConfig(**given), sample=True) as talks:
            return str(talks.last.sampling), talks.last.ask(QUESTION).text

    greedy = cli("chat", "--root", optimized, "-p", QUESTION).out
    assert cli("chat", "--path", folder, "-p", QUESTION).out == greedy
    sampled = conversation()
    assert sampled[0] == "temperature 1.6, top-p 1, top-k 9, seed 0" and sampled == conversation()
    assert len({greedy.strip(), sampled[1], *(conversation(seed=seed)[1] for seed in range(1, 5))}) > 3
    assert conversation(temperature=0) == ("greedy", greedy.strip())
    assert cli("chat", "--path", folder, "-p", QUESTION, "--temperature", "1.6").out.strip() == sampled[1]


def test_stop_texts_keep_their_commas_and_blanks_and_are_not_printed(cli, optimized, monkeypatch, tmp_path):
    def answer(*flags):
        return cli("chat", "--root", optimized, "-p", QUESTION, *flags).out.removesuffix("\n")

    whole = answer()
    first, second, *_ = whole.split()
    assert answer("--stop", f"{first} {second}, no", "--stop", f" {second}") == first
    monkeypatch.setenv("PHICLI_CHAT_STOP", f" {second}")
    assert answer() == first and answer("--stop", "nowhere in it") == whole
    (tmp_path / "phicli.toml").write_text(f'[chat]\nstop = ["a, b", "{first} "]\n')
    monkeypatch.delenv("PHICLI_CHAT_STOP")
    monkeypatch.setenv("PHICLI_CONFIG", str(tmp_path / "phicli.toml"))
    assert answer() == ""


def test_settings_name_the_adapter_and_a_flag_drops_it(cli, optimized, monkeypatch):
    plain = cli("chat", "--root", optimized, "-p", QUESTION).out
    monkeypatch.setenv("PHICLI_ADAPTER", "travel")
    assert cli("chat", "--root", optimized, "-p", QUESTION).out != plain
    assert cli("chat", "--root", optimized, "-p", QUESTION, "--no-adapter").out == plain


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["-p", ""], 2, "the prompt is empty"),
    (["-p", "x", "--top-p", "1.5"], 2, "at most 1"),
    (["-p", "x", "--temperature", "-1"], 2, "at least 0"),
    (["-p", "x", "--min-p", "1.5"], 2, "at most 1"),
    (["-p", "x", "--repetition-penalty", "0"], 2, "over 0"),
    (["-p", "x", "--top-k", "-1"], 2, "at least 0"),
    (["-p", "x", "--stop", ""], 2, "--stop: is empty"),
    (["-p", "x", "--adapter", "travel", "--no-adapter"], 2, "exclude each other"),
    (["-p", "x", "--adapter", "paris"], 3, "there are: cooking, travel"),
    (["-p", "x " * 3000], 3, "the model's context is 2048"),
])
def test_wrong_input(cli, optimized, flags, code, message):
    done = cli("chat", "--root", optimized, *flags)
    assert (done.code, done.out) == (code, "") and message in done.err and "Traceback" not in done.err


def test_no_model_yet(cli, tmp_path):
    done = cli("chat", "--root", tmp_path / "none", "-p", "x")
    assert done.code == 4 and "phicli run --model" in done.err and not (tmp_path / "none").exists()


def test_chat_starts_without_torch_or_transformers(optimized):
    code = ("import sys; from phicli.cli.main import main; code = main(sys.argv[1:]);"
            "print(code, sorted({'torch', 'transformers', 'olive', 'peft'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, "chat", "--root", str(optimized), "-p", "x", "-a", "travel"],
                          capture_output=True, text=True)
    assert done.stdout.endswith("0 []\n"), done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_at_a_terminal(optimized, tmp_path):
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    command = [sys.executable, "-m", "phicli", "chat", "--root", str(optimized), "--max-new-tokens", "10"]
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment,
                             start_new_session=True)
    os.close(follower)

    def until(text, seconds=60):
        seen, end = "", time.monotonic() + seconds
        while text not in seen:
            ready, _, _ = select.select([leader], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"'{text}' not in {seen!r}"
            seen += os.read(leader, 65536).decode(errors="replace")
            if "\x1b[6n" in seen:  # prompt_toolkit asks a terminal where its cursor is
                os.write(leader, b"\x1b[1;1R")
                seen = seen.replace("\x1b[6n", "")
        return seen

    try:
        assert "sampling: temperature 0.7, top-p 0.95, top-k 50, seed 0" in until("Ctrl-D leaves")
        os.write(leader, "Où aller, 東京?\r".encode())
        until("\x1b[?2004l\x1b[?25l")  # the answer is being drawn
        os.write(leader, b"/ADAPTER travel\r")
        assert "/ADAPTER" not in until("first token after")  # typed ahead, it is not mixed with the answer
        until("adapter: travel (on)")
        os.write(leader, b"\x12O\xc3\xb9")  # Ctrl-R: the question again
        until("I-search")
        time.sleep(0.3)
        os.write(leader, b"\r")
        time.sleep(0.3)
        os.write(leader, b"\r")
        until("first token after")
        os.write(leader, b'"""a\rb"""\r')
        until("first token after")
        os.write(leader, b"/sta\t")
        until("ts")  # of /stats; only what is new may be drawn
        os.write(leader, b"\r")
        until("turns: 3")
        time.sleep(0.5)
        os.write(leader, b"\x04")
        assert child.wait(20) == 0
    finally:
        child.kill()
        os.close(leader)
    assert "Où aller, 東京?" in (tmp_path / "phicli" / "chat_history").read_text()
