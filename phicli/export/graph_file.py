"""Reading an ONNX file of a stranger: a regular file, and weights beside it, wherever links lead them, nowhere else."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import open_regular, read_bytes
from phicli.errors import BadInput

LARGEST = (1 << 31) - 1  # bytes; protobuf's own limit
ENDLESS = ("Loop", "Scan")  # ops that may run for ever, and cannot be interrupted; no model of phicli's has them
MOST_NODES = 1_000_000  # once functions are written out where they are called
REBUILD = "phicli optimize --force"


def read_model(path: Path) -> Any:
    """The ModelProto in an ONNX file, without its external data.

    Raises:
        FileNotFoundError: none there. BadInput: no regular file, too large or damaged.
    """
    import onnx
    from google.protobuf.message import DecodeError

    content = read_bytes(path, min(LARGEST, path.stat().st_size))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadInput(f"damaged model: {e}", where=path, hint=REBUILD) from None
    check_ends(model, path)
    return model


def check_ends(model: Any, path: Path) -> None:
    """Raise BadInput for a ModelProto that could run for ever: loops, or functions that call each other too often."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(nodes: Any, calls: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            if node.op_type in ENDLESS and node.domain in ("", "ai.onnx"):
                raise BadInput(f"the graph has a {node.op_type}, which may run for ever", where=path, hint=REBUILD)
            called = (node.domain, node.op_type)
            if called in functions and called not in counted:
                if called in calls:
                    raise BadInput("the graph has a function that calls itself", where=path, hint=REBUILD)
                counted[called] = count(functions[called].node, (*calls, called))
            graphs = [g for a in node.attribute for g in ([a.g] if a.HasField("g") else []) + list(a.graphs)]
            total += counted.get(called, 1) + sum(count(graph.node, calls) for graph in graphs)
            if total > MOST_NODES:
                raise BadInput(f"the graph has more than {MOST_NODES:,} nodes", where=path, hint=REBUILD)
        return total

    count(model.graph.node, ())


def settle_data(model: Any, path: Path) -> Path:
    """Check the files that a ModelProto's tensors lie in, and name them by where links lead.

    onnxruntime takes no weights from outside the model's folder, so the names become relative to what is returned.

    Args:
        path: the ONNX file.

    Returns:
        the folder that the weights' names are relative to.

    Raises:
        BadInput: a name that leaves the folder, or something else than a regular file there.
    """
    found: dict[str, tuple[Path, list[Any]]] = {}
    for tensor in _external(model):
        entries = [entry for entry in tensor.external_data if entry.key == "location"]
        name = entries[0].value if len(entries) == 1 else ""
        if name not in found:
            found[name] = (_data_file(name, path), [])
        found[name][1].append(entries[0])
    base = path.parent.resolve()
    if any(not file.is_relative_to(base) for file, _ in found.values()):
        base = Path(os.path.commonpath([file.parent for file, _ in found.values()]))
    for file, entries in found.values():
        for entry in entries:
            entry.value = file.relative_to(base).as_posix()
    return base


def _data_file(name: str, path: Path) -> Path:
    parts = name.split("/")
    # onnxruntime takes some names with * for addresses in memory
    if not name or ".." in parts or not parts[0] or any(sign in name for sign in "\\:*\0"):
        raise BadInput(f"weights outside the model's folder: {name[:200]!r}", where=path, hint=REBUILD)
    file = path.parent / name
    try:
        open_regular(file).close()
        return file.resolve(strict=True)
    except (OSError, RuntimeError):
        raise BadInput(f"the weights {name[:200]} are missing", where=path, hint=REBUILD) from None


def _external(model: Any) -> Iterator[Any]:
    """All TensorProtos that lie in files: of the graph, its subgraphs and functions."""
    from onnx import TensorProto

    graphs = [model.graph]
    holders = [function.node for function in model.functions]
    while graphs or holders:
        tensors: list[Any] = []
        if graphs:
            graph = graphs.pop()
            holders.append(graph.node)
            tensors += graph.initializer
            sparse = list(graph.sparse_initializer)
        else:
            sparse = []
            for attribute in (attribute for node in holders.pop() for attribute in node.attribute):
                tensors += [attribute.t, *attribute.tensors]
                sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
        tensors += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
        yield from (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
