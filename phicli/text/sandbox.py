"""Jinja's sandbox with an end to time and memory, for chat templates of strangers.

Every operation that can repeat or enlarge something is paid for out of an allowance before it is done: a step of a
loop, a call, a filter, a comparison, a concatenation, output. Its price is the size of what goes in; of what can
multiply (`"a" * 10**9`, `replace`, `center`), the product of all sizes and numbers.
"""

import functools
import json
import re
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from phicli.text.foreign import Alphabet

ALLOWANCE = 1 << 25  # characters and the like; a template of the usual kind takes some 10,000 for a conversation
A_CHARACTER, A_MESSAGE = 64, 1 << 15  # allowed in addition for each of them
A_STEP = 512
MULTIPLYING = {"batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust",
               "round", "slice", "sum", "to_bytes", "tojson", "translate", "zfill"}
NEEDLESS = ("filesizeformat", "forceescape", "groupby", "pprint", "random", "striptags", "urlencode", "urlize",
            "wordcount", "wordwrap", "xmlattr")
WIDE = re.compile(r"\d{5}|%[-+ #.\d]*\*|:[^}]*\{")  # in a format: a large width, or one that another value gives


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """What templates on the Hugging Face hub rely on, within bounds. For one rendering at a time: see `begin`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=_output, optimized=False,
                         extensions=["jinja2.ext.loopcontrols", _Generation])
        self.begin([], None, Alphabet(), ("", ""))
        for name in NEEDLESS:
            del self.filters[name]
        filters: dict[str, Any] = self.filters | {"tojson": self._to_json}
        self.filters = {name: self._paid(name, do) for name, do in filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._paid(name, do) for name, do in tests.items()}
        self.filters |= {"_each": self._each, "_seen": self.seen, "_text": lambda value: self.seen(str(value))}
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": self.globals["namespace"],
                        "raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form),
                        _Generation.MARK: lambda number: self.marks[number]}

    def begin(self, messages: list[Any], others: Any, alphabet: Alphabet, marks: tuple[str, str]) -> None:
        """Before each rendering: what will be rendered, what stands for foreign text in it, and what for generation."""
        self.messages, self.alphabet, self.marks = messages, alphabet, marks
        self.left = sys.maxsize
        self.left = ALLOWANCE + A_MESSAGE * len(messages) + A_CHARACTER * self._size([messages, others])

    def pay(self, price: int) -> None:
        """Raises TemplateError: nothing left."""
        self.left -= price
        if self.left < 0:
            raise TemplateError("it takes more time or memory than a conversation needs")

    def seen(self, value: Any) -> Any:
        """A value as a template may look at it, paid for by its size."""
        if isinstance(value, str):  # most are
            self.left -= len(value)
            if self.left < 0:
                self.pay(0)
            return self.alphabet.trace(value) if type(value) is str else value
        if value is None or value is True or value is False:
            self.pay(64)
            return value
        if isinstance(value, Iterator | KeysView | ValuesView | ItemsView) and not isinstance(value, LoopContext):
            value = list(self._each(value))
        self.pay(A_STEP if value is self.messages else self._size(value))  # templates ask for it again and again
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        left, right = self.seen(left), self.seen(right)
        if operator == "%" and isinstance(left, str):
            self._formats(left, right)
        elif operator == "**" or (operator == "*" and isinstance(left, int) and isinstance(right, int)):
            times = abs(int(right)) if operator == "**" else 2
            self.pay((max(int(left).bit_length(), int(right).bit_length()) * times) ** 2 >> 6)
        elif operator == "*":
            self._multiplies(left, right)
        return self.seen(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr != "encode" and super().is_safe_attribute(obj, attr, value)  # punycode takes quadratic time

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(self._holder(obj, attribute), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(self._holder(obj, argument), argument)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        args, kwargs = tuple(map(self.seen, args)), {name: self.seen(value) for name, value in kwargs.items()}
        self.pay(A_STEP)
        if getattr(obj, "__name__", "") in MULTIPLYING:
            owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
            self._multiplies(owner, *args, *kwargs.values())
        return self.seen(super().call(context, obj, *args, **kwargs))

    def concat(self, pieces: Iterable[str]) -> str:  # type: ignore[override]
        found = []
        for piece in pieces:
            self.pay(len(piece))
            found.append(piece)
        return "".join(found)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Watch().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def _paid(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(do)  # Jinja's marks come along
        def paid(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = tuple(map(self.seen, args)), {key: self.seen(value) for key, value in kwargs.items()}
            self.pay(A_STEP)
            if name == "format":
                self._formats(*args)
            elif name in MULTIPLYING:
                self._multiplies(*args, *kwargs.values(), *(args if name == "sum" else ()))
            return self.seen(do(*args, **kwargs))

        return paid

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.pay(A_STEP)
            yield value

    def _holder(self, obj: Any, attribute: Any) -> Any:
        """What an attribute or a part is taken from."""
        self.pay(A_STEP)
        if isinstance(obj, str) and attribute in ("format", "format_map"):
            self._formats(obj)
            return str.__str__(obj)
        return self.seen(obj) if isinstance(obj, str) else obj

    def _formats(self, form: str, *given: Any) -> None:
        if WIDE.search(form):
            raise TemplateError("a format with a width that is not small")
        self.pay(len(form) * (1 + sum(map(self._size, given))))

    def _multiplies(self, *values: Any) -> None:
        price = 1
        for value in values:
            price *= max(1, abs(value) if isinstance(value, int) else self._size(value))
        self.pay(price)

    def _size(self, value: Any) -> int:
        """Characters of a text, 64 for each thing in a collection and what is in that; at most what is left."""
        size, stack = 0, [value]
        while stack and size <= self.left:
            found = stack.pop()
            if isinstance(found, str):
                size += len(found)
                continue
            size += len(found) if isinstance(found, bytes) else 64
            if isinstance(found, int):
                size += found.bit_length() // 3
            elif isinstance(found, Namespace):
                stack.append(object.__getattribute__(found, "_Namespace__attrs"))
            elif isinstance(found, dict):
                stack += [*found.keys(), *found.values()]
            elif isinstance(found, list | tuple | set | frozenset | range):
                size += 64 * len(found)
                stack += found
        return size

    def _to_json(self, value: Any, ensure_ascii: bool = False, indent: int | None = None,
                 separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        return self.alphabet.in_json(json.dumps(value, ensure_ascii=False, indent=min(indent or 0, 16) or None,
                                                separators=separators, sort_keys=sort_keys), ensure_ascii)


class _Watch(NodeTransformer):
    """Puts what Jinja runs by itself, loops, slices, `~` and comparisons, through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_each")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        node.node = _filtered(node.node, "_seen")
        return _filtered(node, "_seen")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts: list[nodes.Expr] = [_filtered(part, "_text") for part in node.nodes]  # no Markup, which escapes
        return functools.reduce(lambda left, right: nodes.Add(left, right, lineno=node.lineno), parts)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_seen")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_seen")
        return node


class _Generation(Extension):
    """transformers' `{% generation %}`, which marks what the model says; it changes nothing of the text itself."""

    MARK = "_generation_mark"
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [self._mark(0, line), nodes.Scope(body, lineno=line), self._mark(1, line)]

    def _mark(self, number: int, line: int) -> nodes.Node:
        call = nodes.Call(nodes.Name(self.MARK, "load"), [nodes.Const(number)], [], None, None)
        return nodes.Output([call], lineno=line)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@pass_context
def _output(context: Any, value: Any) -> Any:
    return context.environment.seen(value)


def _refuse(message: str) -> None:
    raise TemplateError(str.__str__(message))
