"""`phicli chat`: talk with the optimized model, with or without an adapter."""

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phicli.artifacts.names import ONNX_FOLDER
from phicli.cli import console, options, process
from phicli.cli.question import question_of
from phicli.cli.terminal import unseen_keys
from phicli.config.bases import OfModel
from phicli.config.commands import ChatConfig
from phicli.config.layers import Settings
from phicli.errors import Missing, UsageError
from phicli.printable import printable

if TYPE_CHECKING:
    from phicli.cli.chat_store import ChatStore, Kept
    from phicli.cli.talks import Talks
    from phicli.inference.answer import Answer
    from phicli.inference.conversation import Conversation

Show = Callable[[str, Callable[[], bool]], None]  # answers a message and shows the answer, until the function says True


def chat(
    config: ChatConfig,
    question: Annotated[str | None, typer.Argument(
        help="Answer this and end; what is piped in is added to it", show_default=False)] = None,
    no_adapter: Annotated[bool, typer.Option("--no-adapter", help="None, even if the settings name one")] = False,
    prompt: Annotated[str | None, typer.Option(
        "--prompt", "-p", help="The same for programs: greedy, stdin is left alone, nothing is kept")] = None,
    go_on: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answers with and without the adapter")] = False,
    flags: options.Flags = {},  # noqa: B006 (never changed)
    json: options.Json = False,
) -> None:
    """Chat with the optimized model: one QUESTION, or one on stdin, else a conversation.

    Examples:
      phicli chat --model tiny --adapter travel
      phicli chat --model tiny "Where is it warm in March?"
    More: docs/chat.md
    """
    _check_together(config, question, no_adapter, prompt, go_on, compare, flags)
    text = question_of(question, prompt)
    if json and text is None:
        raise UsageError("--json needs a question or a prompt on stdin")
    by_hand = prompt is None and (question is not None or text is None)
    config = config.but(system=config.system and console.typed(config.system),
                        stop=tuple(map(console.typed, config.stop)), adapter=None if no_adapter else config.adapter)
    with unseen_keys() if by_hand else contextlib.nullcontext():
        store, kept = _kept(config, go_on, keep=config.log and not compare and (by_hand or go_on))
        if kept:
            config = config.but(system=config.system if "system" in flags else kept.system,
                                adapter=config.adapter if "adapter" in flags or no_adapter else kept.adapter)
        with _opened(config, compare, sample=text is None, only=by_hand and not no_adapter and kept is None) as talks:
            if kept:
                talks.resume(kept.turns, config.system)
            show = _compare_on(talks, config.raw) if compare else _stream_on(talks.last, config.raw)
            if text is None:
                _converse(talks, store, show, go_on=kept is not None, keep=config.log)
            else:
                _answer_once(talks, text, show, compare, json)
                _keep(store, talks.last, text)


def _check_together(config: ChatConfig, question: str | None, no_adapter: bool, prompt: str | None, go_on: bool,
                    compare: bool, flags: options.Flags) -> None:
    if no_adapter and "adapter" in flags:
        raise UsageError("--adapter and --no-adapter exclude each other")
    if question is not None and prompt is not None:
        raise UsageError("a question and --prompt exclude each other")
    if go_on and compare:
        raise UsageError("--continue and --compare exclude each other")
    if go_on and not config.log:
        raise UsageError("--continue needs what is kept, and the setting log, or --no-log, says to keep nothing")


def _folder(config: ChatConfig) -> Path:
    return Path(config.path or config.root_folder / ONNX_FOLDER)


def _kept(config: ChatConfig, go_on: bool, keep: bool) -> "tuple[ChatStore, Kept | None]":
    """Where conversations are kept, and the one to continue."""
    from phicli.cli.chat_store import ChatStore
    from phicli.inference.model_folder import adapters_beside
    from phicli.inference.session import Session

    folder = _folder(config)
    if not folder.is_dir() and not config.path:
        raise no_model(config, "chat")
    if not folder.is_dir():
        Session(folder)  # says what is missing, before anything is kept or logged
    store = ChatStore(folder, console.warn, keep)
    kept = store.last() if go_on else None
    if go_on and store.keeps and not kept:
        console.note("no conversation with this model was kept; this one is the first")
    if kept and kept.adapter not in (None, *adapters_beside(folder)):
        console.warn(f"the adapter {kept.adapter} is gone; the conversation goes on without one")
        kept = replace(kept, adapter=None)
    return store, kept


def _opened(config: ChatConfig, compare: bool, sample: bool, only: bool) -> "Talks":
    """The model, loaded, and the conversations on it."""
    from phicli.cli.talks import Talks
    from phicli.kernels.build import why_slow
    from phicli.text.layout import MERGED_SYSTEM

    with console.task_log("chat", config.root_folder) as progress:
        talks = Talks(_folder(config), config, compare, sample, only)
        if any(talk.merges_system for talk in talks.all):
            progress.note(MERGED_SYSTEM)
        if trouble := why_slow():
            progress.note(f"slower than it need be: {trouble}; phicli doctor says what helps")
        if talks.unfit:
            progress.warn(f"the only adapter cannot be used, so none is: {talks.unfit}")
        if talks.by_itself and not sample:
            progress.note(f"adapter: {talks.by_itself}, the only one; --no-adapter leaves it out")
        return talks


def no_model(config: OfModel, command: str) -> Missing:
    """What to type where the model has not been made: the models that have, and the steps that make this one."""
    from phicli.steps.inventory import Kept, as_options, kept_models

    settings = Settings()
    here = [as_options(settings, one) for one in kept_models(settings) if one.chats]
    begun = any(made.step == "quantize" for made in Kept("", config.root_folder, None).made)
    own = shlex.join(["phicli", "optimize" if begun else "run", *config.as_options])
    others = list(dict.fromkeys(shlex.join(["phicli", command, *options]) for options in here))
    return Missing(f"no optimized model here yet{'; others are there' if others else ''}",
                   where=config.root_folder / ONNX_FOLDER, hint=[*others, own][0], also=[*others, own][1:])


def _stream_on(talk: "Conversation", raw: bool) -> Show:
    def show(question: str, stopped: Callable[[], bool]) -> None:
        from phicli.cli.answers import Answering, at_terminal

        def ended() -> bool:
            return stopped() or process.reader_gone()

        if at_terminal() and not raw:
            with Answering() as answering:
                found = talk.ask(question, answering.write, ended)
        else:
            try:
                found = talk.ask(question, _write, ended)
            except KeyboardInterrupt:
                console.result("")
                raise
            console.result("")
        _remark(found)

    return show


def _compare_on(talks: "Talks", raw: bool) -> Show:
    def show(question: str, stopped: Callable[[], bool]) -> None:
        from phicli.cli.answers import Comparing, at_terminal

        titles = [f"with {talk.adapter}" if talk.adapter else "no adapter" for talk in talks.all]
        if at_terminal():
            with Comparing(titles, raw) as comparing:
                answers = talks.ask_all(question, comparing.write, stopped)
        else:
            answers = talks.ask_all(question, lambda number, piece: None, stopped)
            console.result_table(titles, [[answer.text for answer in answers]])
        for found in answers:
            _remark(found, f"{found.adapter or 'no adapter'}: ")

    return show


def _converse(talks: "Talks", store: "ChatStore", show: Show, go_on: bool, keep: bool) -> None:
    from phicli.cli.interrupt import interruptible
    from phicli.cli.line_editor import line_reader
    from phicli.cli.repl import Repl
    from phicli.cli.slash import Slash

    def ask(question: str) -> None:
        with interruptible() as stopped:
            show(question, stopped)
        _keep(store, talks.last, question)

    def read() -> str:
        if process.reader_gone():
            raise EOFError
        return reader()

    slash = Slash(talks, store, ask, console.note)
    reader = line_reader(slash.words, keep)
    for line in talks.described():
        console.note(line)
    if go_on:
        slash.show_last()
    console.note("/help lists the commands, Ctrl-D leaves")
    Repl(slash, read, console.note, console.failure).run()


def _answer_once(talks: "Talks", text: str, show: Show, compare: bool, json: bool) -> None:
    if not json:
        show(text, lambda: False)
        return
    found = talks.ask_all(text, lambda number, piece: None, lambda: False)
    answers = [_document(_warned(answer)) for answer in found]
    console.result_json({"prompt": text, "answers": answers} if compare else answers[0])


def _keep(store: "ChatStore", talk: "Conversation", question: str) -> None:
    """Keep the turn, unless the answer was stopped before its first word."""
    if talk.last and talk.turns[-1:] == [(question, talk.last.text)]:
        store.add(question, talk.last.text, talk.system, talk.adapter)


def _remark(answer: "Answer", prefix: str = "") -> None:
    from phicli.cli.answers import summary

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


def _write(text: str) -> None:
    """A piece of an answer on stdout, at once."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
