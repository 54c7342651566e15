"""One setting, and the frozen dataclasses whose fields are settings: all that is to be known of one stands there."""

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from json import dumps, loads
from types import UnionType
from typing import Any, ClassVar, Self

from phicli.errors import BadInput, PhicliError, UsageError

_METADATA = "setting"
LARGEST = 2**31 - 1  # of whole numbers; libraries keep some of them in 32 bits


@dataclass(frozen=True)
class Setting:
    """What there is to know of a setting.

    key: its name in phicli.toml: `name` where several commands share it, `command.name` where one owns it; empty for
        what can be given for one run only.
    kind: bool, int, float, str or tuple (of strings; with commas in the environment).
    help: for people, one line. choices: all values there are. minimum, maximum: of a number.
    above, below: the number has to be larger, smaller than that.
    flags: how the option is spelt, where it is not `--name`. argument: given by its place, without a flag.
    verbatim: of a list: a flag or variable is one text as it is, in which a comma parts nothing; none is empty.
    path: a file or folder, or may be one: `~` at its beginning is the home folder, wherever it was given. A list of
        them that has a default names at least one.
    reference: of a path: it may be the name of something else too, such as a model of the hub's.
    panel: heading under which help lists it, for what few people change; empty for what is common.
    recorded: whether the result depends on it, so that a stage's manifest tells it; False for places and for what
        only changes how the result is come by.
    """

    key: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    argument: bool = False
    verbatim: bool = False
    path: bool = False
    reference: bool = False
    panel: str = ""
    recorded: bool = True

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return "PHICLI_" + self.key.upper().replace(".", "_")

    @property
    def shown_default(self) -> str | None:
        """The default in words; None where there is none, or where the help has it in its own words."""
        if not self.key or self.default in (None, ()) or "\n" in str(self.default) or "[default:" in self.help:
            return None
        if self.kind is bool and self.flags:
            return self.flags[0].split("/")[0 if self.default else -1].removeprefix("--")
        return ",".join(self.default) if isinstance(self.default, tuple) else str(self.default)

    def checked(self, value: Any, where: str, error: type[PhicliError] = UsageError) -> Any:
        """The value, a list as a tuple and an int as a float where a float is wanted; a mapping as texts NAME=VALUE
        where the option takes those.

        Raises:
            PhicliError: of the given class: another type, none of the choices, or out of range.
        """
        if value is None and self.default is None:
            return None
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self.kind is tuple and isinstance(value, Mapping) and str(self.metavar).startswith("NAME="):
            value = [_named(name, part, json=self.metavar == "NAME=VALUE") for name, part in value.items()]
        if self.kind is tuple and isinstance(value, str | list | tuple):
            parts = [value] if isinstance(value, str) else value
            texts = tuple(os.fspath(part) if isinstance(part, os.PathLike) else part for part in parts)
            if not all(isinstance(part, str) for part in texts):
                raise error("needs a list of texts", where=where)
            if (self.verbatim and not all(texts)) or (self.path and self.default and not texts):
                raise error("is empty", where=where)
            return tuple(map(expand, texts)) if self.path else texts
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
            value = float(value)
        if not isinstance(value, self.kind) or (self.kind is not bool and isinstance(value, bool)):
            wanted = "a list of texts" if self.kind is tuple else self.kind.__name__
            raise error(f"needs {wanted}, not {_short(value)}", where=where)
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(str(value), self.choices, 1)
            raise error(f"'{value}' is not one of {', '.join(self.choices)}", where=where,
                        hint=f"did you mean '{near[0]}'?" if near else None)
        if isinstance(value, str) and "\0" in value:
            raise error("has a NUL character in it", where=where)
        self._check_range(value, where, error)
        return expand(str(value)) if self.path else value

    def _check_range(self, value: Any, where: str, error: type[PhicliError]) -> None:
        if self.kind is float and not math.isfinite(value):
            raise error(f"must be a finite number, not {value}", where=where)
        if self.kind is int and abs(value) > LARGEST:
            raise error(f"must be at most {LARGEST}", where=where)
        if self.minimum is not None and not value >= self.minimum:
            raise error(f"must be at least {self.minimum}, not {value}", where=where)
        if self.maximum is not None and not value <= self.maximum:
            raise error(f"must be at most {self.maximum}, not {value}", where=where)
        if self.above is not None and not value > self.above:
            raise error(f"must be over {self.above}, not {value}", where=where)
        if self.below is not None and not value < self.below:
            raise error(f"must be below {self.below}, not {value}", where=where)


def expand(path: str) -> str:
    """The path with `~` and `~name` at its beginning as home folders. Raises BadInput: nobody has that name."""
    found = os.path.expanduser(path)  # noqa: PTH111 (a Path would lose "./" and "azureml://")
    if found.startswith("~"):
        raise BadInput("no such home folder", where=path, hint=f"a folder of that name: ./{path}")
    return found


def _named(name: Any, value: Any, json: bool) -> Any:
    """NAME=VALUE as an option takes it; a value that is no text, or with `json` no JSON, as it is, to be refused."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if json and not (isinstance(value, str) and _is_no_json(value)):
        try:
            value = dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return value
    return f"{name}={value}" if isinstance(value, str) else value


def _is_no_json(text: str) -> bool:
    try:
        loads(text)
    except (ValueError, RecursionError):
        return True
    return False


def _short(value: Any) -> str:
    """A value as a message can show it: not all of a long one, and only what a deep one is."""
    return repr(value)[:80] if isinstance(value, str | float | bool) else type(value).__name__


def flags_of(name: str, setting: Setting) -> tuple[str, ...]:
    """How the option of a setting is spelt."""
    return setting.flags or ("--" + name.replace("_", "-"),)


def spelt(name: str, setting: Setting, value: Any) -> list[str]:
    """A setting as arguments of a command line."""
    if setting.argument:
        return list(value) if isinstance(value, tuple) else [str(value)]
    spelling = flags_of(name, setting)[0]
    if setting.kind is bool:
        return [spelling.split("/")[0 if value else -1]]
    return [part for text in (value if isinstance(value, tuple) else (value,)) for part in (spelling, str(text))]


def setting(default: Any, help: str, *, key: str | None = None, shared: bool = False, once: bool = False,
            **more: Any) -> Any:
    """A field of a step's configuration that is a setting; the further arguments are those of `Setting`.

    shared: other commands have it too, so that its key has no command's name before it. once: given for one run only,
    by a flag or an argument. key: of another step's setting, which is meant here too.
    """
    known = {"default": default, "help": help, "key": "" if once else key, "shared": shared, **more}
    return field(default=default, metadata={_METADATA: known})


def again(config: "type[StepConfig]", name: str, **other: Any) -> Any:
    """A field that is another step's setting of the same name. other: what is another here, such as its flags."""
    known = next(f for f in fields(config) if f.name == name).metadata[_METADATA]
    return field(default=known["default"], metadata={
        _METADATA: {**known, "key": settings_of(config)[name].key, **other}})


def checked(config: "type[StepConfig]", name: str, value: Any) -> Any:
    """A value for one setting of a step. Raises UsageError as `Setting.checked` does; the message has the name."""
    return settings_of(config)[name].checked(value, where=name)


def settings_of(config: "type[StepConfig]") -> Mapping[str, Setting]:
    """Name of a field -> its setting, in the order in which the class has them."""
    return _settings_of(typing.cast(Any, config))


@cache
def _settings_of(config: Any) -> Mapping[str, Setting]:
    hints = typing.get_type_hints(config)
    found = {}
    for f in fields(config):
        known = dict(f.metadata[_METADATA])
        shared = known.pop("shared")
        if known["key"] is None:
            known["key"] = f.name if shared else f"{config.STEP}.{f.name}"
        found[f.name] = Setting(kind=_kind(hints[f.name]), **known)
    return found


def _kind(hint: Any) -> type:
    """`str | None` -> str, `tuple[str, ...]` -> tuple."""
    if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


@dataclass(frozen=True)
class StepConfig:
    """The settings of one step. Every field is a setting; each is checked when an object is made.

    Raises:
        UsageError: a value of another type, none of the choices, or out of range; the message names the setting.
    """

    STEP: ClassVar[str]

    def __post_init__(self) -> None:
        for name, found in settings_of(type(self)).items():
            value = found.checked(getattr(self, name), where=f"--{name.replace('_', '-')}")
            object.__setattr__(self, name, value)

    def recorded(self) -> dict[str, Any]:
        """The settings on which the result depends, as a manifest tells them."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in ((n, getattr(self, n)) for n, s in settings_of(type(self)).items() if s.recorded)}

    def but(self, **changes: Any) -> Self:
        """The same settings, some of them changed."""
        return dataclasses.replace(self, **changes)
