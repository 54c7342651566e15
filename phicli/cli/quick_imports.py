"""Libraries without what they import for others: half of the modules behind torch, transformers and Olive.

transformers imports torch's compiler, its sharded tensors and whatever is installed for images and sound, and reads all
of its own source, 45 MB, twice to know what it holds; Olive imports all its commands. Here such modules come when
something of them is used, which in most steps nothing is. Only phicli's own process is changed: a program that imports
phicli keeps Python's import.
"""

import builtins
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec, resolve_name
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

# By the package that imports: modules of which it gets stand-ins, as of all below them.
LATER = {
    "olive": ("olive.cli.api", "olive.engine.output", "onnxscript"),
    "onnx_ir": ("sympy",),
    "peft": ("transformers.distributed.tensor_parallel",),
    "torch": (),
    "transformers": (
        "librosa", "scipy", "sklearn", "soundfile", "soxr", "torchaudio", "torchvision",  # for images, sound, metrics
        "torch._dynamo", "torch.distributed._composable", "torch.distributed.checkpoint", "torch.distributed.fsdp",
        "torch.distributed.tensor", "transformers.distributed.expert_parallel",
        "transformers.distributed.sharding_utils", "transformers.distributed.tensor_parallel"),
}
# Decorators that import torch's compiler to tell it of a function; here nothing is compiled.
COMPILER = "torch._dynamo"
OPTIMIZER = "torch.optim.optimizer"  # imports it in each step, to tell it where a graph is to end
MARKS = {"torch._compile": ("_disable_dynamo",), "torch.compiler": ("allow_in_graph", "disable"),
         COMPILER: ("allow_in_graph", "assume_constant_result", "disable")}
_marking = {"torch._compile": True, "torch.compiler": True}  # whose decorators are still torch's
_import = builtins.__import__


class Later:
    """Something of a module that is imported when it is called, derived from or asked for an attribute."""

    def __init__(self, module: str, name: str):
        self.__dict__.update(_module=module, _name=name)

    def _real(self) -> Any:
        return attrgetter(self._name)(import_module(self._module))

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._real()(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name[:1].isupper() and self._module not in sys.modules:  # a class of a module, in an annotation
            return Later(self._module, f"{self._name}.{name}")
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real(), name, value)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, value: Any) -> bool:
        return self._module in sys.modules and isinstance(value, self._real())  # else nobody can have made one

    def __or__(self, other: Any) -> Any:  # in annotations
        return self

    __ror__ = __or__


class _StandIn(ModuleType):
    """A module of which nothing is used yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == COMPILER and name in MARKS[COMPILER]:
            return _leave_unmarked(Later(COMPILER, name))
        if self.__name__ == COMPILER and name == "graph_break":
            return lambda: None
        return Later(self.__name__, name)


def _stand_in(module: str) -> ModuleType:
    """For an import statement, and for whoever asks the package above."""
    found, (above, _, name) = _StandIn(module), module.rpartition(".")
    if above in sys.modules:
        sys.modules[above].__dict__.setdefault(name, found)
    return found


def install() -> None:
    """From here on, for this process."""
    builtins.__import__ = _import_less


def _import_less(name: str, globals: Mapping[str, Any] | None = None, locals: Mapping[str, Any] | None = None,
                 fromlist: Sequence[str] | None = (), level: int = 0) -> Any:
    importer = str(globals.get("__name__")) if globals else ""
    package = importer.partition(".")[0]
    if name == COMPILER and importer == OPTIMIZER and name not in sys.modules:
        return sys.modules[package]  # which has the stand-in
    if package not in LATER or not (fromlist or "." not in name):  # `import a.b` gives a
        return _import(name, globals, locals, fromlist or (), level)
    whole = resolve_name("." * level + name, globals["__package__"]) if level else name  # type: ignore[index]
    if (whole not in sys.modules and any(_is_in(whole, m) and not _is_in(importer, m) for m in LATER[package])
            and _is_there(whole)):
        return _stand_in(whole)
    found: Any = _import(name, globals, locals, fromlist or (), level)
    for module in [m for m in tuple(_marking) if hasattr(sys.modules.get(m), MARKS[m][-1])]:
        if _marking.pop(module, False):  # no other thread has
            _leave_out(module)
    if whole == "transformers.utils.import_utils" and importer == "transformers":
        found.create_import_structure_from_path = functools.cache(found.create_import_structure_from_path)
        found.fetch__all__ = _of_the_end(found.fetch__all__)
    if whole == "transformers.utils.auto_docstring" and importer == "transformers.utils":
        found.auto_docstring = _leave_undocumented  # it imports all that reads images to name it
    return found


def _of_the_end(fetch: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """transformers' reading of `__all__`, without what comes before: it looks at every line of its 45 MB."""

    @functools.wraps(fetch)
    def fetch_end(source: str) -> list[str]:
        return fetch(source[source.rfind("\n__all__") + 1:])

    return fetch_end


def _leave_undocumented(documented: Any = None, **_: Any) -> Any:
    """A decorator, with or without arguments, that writes no text of arguments."""
    return documented or (lambda documented: documented)


def _leave_out(module: str) -> None:
    """Replace the marks of a module."""
    for mark in MARKS[module]:
        setattr(sys.modules[module], mark, _leave_unmarked(getattr(sys.modules[module], mark)))
    _stand_in(COMPILER)


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _is_there(module: str) -> bool:
    """Whether there is a file for a module; its packages are not imported."""
    top, *rest = module.split(".")
    found = find_spec(top)
    if not found or not rest:
        return bool(found)
    place = Path((found.submodule_search_locations or [""])[0], *rest)
    return place.is_dir() or place.with_name(f"{place.name}.py").is_file()


def _leave_unmarked(mark: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator, with or without arguments, that gives the function back while torch's compiler is not there."""

    def unmarked(function: Any = None, *args: Any, **keywords: Any) -> Any:
        if COMPILER in sys.modules:
            return mark(function, *args, **keywords)
        return function or (lambda function: function)

    return unmarked
