"""`phicli chat`: talk with the optimized model, with or without an adapter."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phicli.artifacts.names import ONNX_FOLDER
from phicli.cli import console, options, process
from phicli.cli.printable import printable
from phicli.config.steps import ChatConfig
from phicli.errors import BadInput, UsageError

if TYPE_CHECKING:
    from phicli.cli.talks import Talks
    from phicli.inference.answer import Answer
    from phicli.inference.conversation import Conversation

LONGEST = 1 << 20  # bytes of a prompt on stdin


def chat(
    config: ChatConfig,
    no_adapter: Annotated[bool, typer.Option("--no-adapter", help="None, even if the settings name one")] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and end")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answers with and without the adapter")] = False,
    flags: options.Flags = {},  # noqa: B006 (never changed)
    json: options.Json = False,
) -> None:
    """Chat with the optimized model: one question with --prompt or on stdin, else a conversation.

    Examples:
      phicli chat --model tiny --adapter travel
      phicli chat --model tiny --prompt "Where is it warm in March?"
    More: docs/chat.md
    """
    if no_adapter and "adapter" in flags:
        raise UsageError("--adapter and --no-adapter exclude each other")
    question = _question(prompt if prompt is None else console.typed(prompt))
    if json and question is None:
        raise UsageError("--json needs --prompt or a prompt on stdin")
    config = config.but(system=config.system and console.typed(config.system),
                        stop=tuple(map(console.typed, config.stop)), adapter=None if no_adapter else config.adapter)
    with _opened(Path(config.path or config.root_folder / ONNX_FOLDER), config, compare, question is None) as talks:
        answer = _compare_on(talks.all) if compare else _stream_on(talks.last)
        if question is None:
            _converse(talks, answer)
        elif json:
            answers = [_document(_warned(talk.ask(question))) for talk in talks.all]
            console.result_json({"prompt": question, "answers": answers} if compare else answers[0])
        else:
            answer(question, lambda: False)


def _question(prompt: str | None) -> str | None:
    """The one question to answer, or None for a conversation at the terminal."""
    if prompt is None:
        if sys.stdin is not None and sys.stdin.isatty():
            return None
        try:
            read = sys.stdin.buffer.read(LONGEST + 1) if sys.stdin else b""
            if len(read) > LONGEST:
                raise BadInput(f"more than {LONGEST >> 20} MB, which no model's context holds", where="stdin")
            prompt = read.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise BadInput(f"not UTF-8: {e}", where="stdin") from None
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="phicli chat --prompt TEXT, or text on stdin")
    return prompt


def _opened(folder: Path, config: ChatConfig, compare: bool, sample: bool) -> "Talks":
    """The model, loaded, and the conversations on it."""
    from phicli.cli.talks import Talks
    from phicli.inference.session import Session
    from phicli.kernels.build import why_slow
    from phicli.text.layout import MERGED_SYSTEM

    if not folder.is_dir():
        Session(folder)  # says what is missing, before a log is begun
    with console.task_log("chat", config.root_folder) as progress:
        talks = Talks(folder, config, compare, sample)
        if any(talk.merges_system for talk in talks.all):
            progress.note(MERGED_SYSTEM)
        if trouble := why_slow():
            progress.note(f"slower than it need be: {trouble}; phicli doctor says what helps")
        return talks


def _stream_on(talk: "Conversation") -> Callable[[str, Callable[[], bool]], None]:
    def answer(question: str, stopped: Callable[[], bool]) -> None:
        try:
            found = talk.ask(question, _write, lambda: stopped() or process.reader_gone())
        except KeyboardInterrupt:
            console.result("")
            raise
        console.result("")
        _remark(found)

    return answer


def _compare_on(talks: "Sequence[Conversation]") -> Callable[[str, Callable[[], bool]], None]:
    def answer(question: str, stopped: Callable[[], bool]) -> None:
        answers = []
        for talk in talks:
            answers.append(talk.ask(question, stopped=stopped))
            console.note(f"{_title(talk)}: done")
        console.result_table([_title(talk) for talk in talks], [[a.text for a in answers]])
        for found in answers:
            _remark(found, f"{found.adapter or 'no adapter'}: ")

    return answer


def _converse(talks: "Talks", answer: Callable[[str, Callable[[], bool]], None]) -> None:
    from phicli.cli.line_editor import line_reader
    from phicli.cli.repl import Repl

    def read() -> str:
        if process.reader_gone():
            raise EOFError
        return reader()

    repl = Repl(talks.all, answer, talks.use_adapter, read, console.note, console.failure)
    reader = line_reader(repl.words)
    console.note(f"sampling: {talks.last.sampling}")
    console.note(f"adapter: {talks.last.adapter or 'none'}; /help lists the commands, Ctrl-D leaves")
    repl.run()


def _remark(answer: "Answer", prefix: str = "") -> None:
    from phicli.cli.repl import summary

    if answer.dropped_turns:
        console.warn(f"the context is full: the oldest {answer.dropped_turns} turns were left out")
    console.note(prefix + summary(_warned(answer)))


def _warned(answer: "Answer") -> "Answer":
    if answer.finish_reason == "repetition":
        console.warn("the model loops; try --temperature 0.7 or --repetition-penalty 1.1")
    return answer


def _document(answer: "Answer") -> dict[str, Any]:
    found = asdict(answer)
    return {"answer": found.pop("text"), **found, "prefill_tokens": answer.prefill_tokens,
            "prefill_tokens_per_second": answer.prefill_rate, "decode_tokens_per_second": answer.decode_rate}


def _title(talk: "Conversation") -> str:
    return f"with {talk.adapter}" if talk.adapter else "no adapter"


def _write(text: str) -> None:
    """A piece of an answer on stdout, at once."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
