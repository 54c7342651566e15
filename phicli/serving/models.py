"""Names in requests: the model itself and each adapter. Adapters come and go."""

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phicli.errors import Missing, UsageError
from phicli.inference.engine import Engine, NameTaken
from phicli.inference.model_folder import no_adapter
from phicli.serving.faults import Fault

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Models:
    """Who can be asked.

    Args:
        base: name of the model without an adapter. only: adapters to begin with; none: all that the engine has.
        root: the folder that adapters may be added from.

    Raises:
        BadInput: no such adapter. UsageError: one that is called like the base.
    """

    def __init__(self, engine: Engine, base: str, only: Sequence[str], root: Path):
        self.engine, self.base, self.root = engine, base, root
        known = engine.adapter_names()
        if missing := [name for name in only if name not in known]:
            raise no_adapter(engine.model.folder, missing[0], known)
        self._hidden = set(known) - set(only or known)  # that the engine has and that are not served
        self._changing = threading.Lock()
        if base in set(known) - self._hidden:
            raise UsageError("an adapter has that name too", where="--name", hint="phicli serve --name ANOTHER")
        self._created = int(time.time())

    def names(self) -> list[str]:
        return [self.base, *(name for name in self.engine.adapter_names() if name not in self._hidden)]

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a name means, None for the base, which is also meant where there is no name.

        Raises:
            Fault: 404, with the names there are.
        """
        if name is None or name == self.base:
            return None
        if name not in (known := self.names()):
            raise Fault(404, f"no model '{name[:80]}'; there are: {', '.join(known)}", param="model",
                        code="model_not_found")
        return name

    def add(self, name: str, path: str) -> None:
        """Serve another adapter: a PEFT folder under the root.

        Raises:
            Fault: 400 (name, place, adapter), 409 (the name is taken), 501 (the model takes none).
        """
        if not NAME.fullmatch(name):
            raise Fault(400, "a name has up to 64 letters, digits, '.', '_' and '-'", param="name")
        if name in self.names():
            raise taken(name)
        place = (self.root / path).resolve()
        if not place.is_relative_to(self.root.resolve()):
            raise Fault(400, "adapters are added from the folder --adapter-root only", param="path")
        if not place.exists():
            raise Fault(400, "no such adapter in the folder --adapter-root", param="path")
        with self._changing:
            if name in self._hidden:  # another one of that name
                self.engine.remove_adapter(name)
                self._hidden.discard(name)
        try:
            self.engine.add_adapter(name, place)
        except NameTaken:  # by a request at the same time
            raise taken(name) from None
        except Missing as e:
            raise Fault(501, e.message, param="path") from None

    def remove(self, name: str) -> None:
        """Rows that use it go on to their end. Raises Fault: 404, or 400 for the base."""
        if self.adapter_of(name) is None:
            raise Fault(400, "the base model cannot be removed", param="name")
        self.engine.remove_adapter(name)

    def document(self, name: str) -> dict[str, Any]:
        """A model as OpenAI and Anthropic have it, all fields of both. Raises Fault: 404."""
        adapter = self.adapter_of(name)
        return {"id": name, "object": "model", "created": self._created, "owned_by": "phicli", "root": self.base,
                "parent": self.base if adapter else None, "max_model_len": self.engine.context,
                "type": "model", "display_name": name, "lifecycle": "active",
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created))}


def taken(name: str) -> Fault:
    return Fault(409, f"there is a model '{name}' already", param="name")
