"""A row of data as what a model is told and says, whatever format it came in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phicli.text.layout import ASSISTANT, USER, Message


@dataclass(frozen=True)
class Conversation:
    """Messages of two or more; which of them a model learns to say; the tools that it may call (JSON schemas)."""

    messages: tuple[Message, ...]
    trained: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, *messages: Message, tools: tuple[Mapping[str, Any], ...] = ()) -> "Conversation":
        """All that the assistant says in it is learnt."""
        return cls(messages, tuple(m["role"] == ASSISTANT for m in messages), tools)

    @property
    def asked(self) -> tuple[Message, ...]:
        """The messages before the first one that is learnt; a greeting before the first question is none."""
        begin = next((at for at, message in enumerate(self.messages) if message["role"] == USER), 0)
        learnt = next((at for at, learnt in enumerate(self.trained) if learnt and at > begin), None)
        return self.messages[: self.trained.index(True)] if learnt is None else self.messages[:learnt]
