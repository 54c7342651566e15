"""Projections and their LoRA as one op each, of lora_matmul_op.c, in a graph that is about to run on a CPU.

The model's folder keeps the ops of `fused`, which run elsewhere too. A token that took ten nodes in a layer takes four.
"""

from typing import Any

DOMAIN = "phicli.cpu"
MOST = 3  # projections of an op


def join(model: Any) -> None:
    """Put the joined ops into a ModelProto, wherever LoraDown and its LoraUp or LoraGatedUp stand behind MatMulNBits.

    The latter are to be such as `matmul_fits` says.
    """
    from onnx import helper

    graph = model.graph
    made = {node.output[0]: node for node in graph.node if node.op_type == "MatMulNBits"}
    readers: dict[str, list[Any]] = {value.name: [value] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    at: dict[str, Any] = {}  # the first output of a group -> the op that takes its place
    gone: set[str] = set()
    for down in [node for node in graph.node if node.op_type == "LoraDown"]:
        ups = readers.get(down.output[0], [])
        bases = [made.get(name) for up in ups for name in _bases(up)]
        if not all(base is not None and _fits(base, bases[0], down) and len(readers[base.output[0]]) == 1
                   for base in bases) or not _alike(ups, len(bases)):
            continue
        joined = _joined(down, ups, bases)
        outputs = {name for node in (down, *ups, *bases) for name in node.output}
        at[next(node.output[0] for node in graph.node if node.output[0] in outputs)] = joined
        gone |= outputs
    if not at:
        return
    nodes = [at.get(node.output[0], node) for node in graph.node
             if node.output[0] in at or node.output[0] not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _fits(base: Any, first: Any, down: Any) -> bool:
    """Whether a projection reads what `down` reads, in the same blocks as the first one, and adds nothing."""
    own, other = ({a.name: a.i for a in node.attribute if a.name != "N"} for node in (base, first))
    return base.input[0] == down.input[1] and own == other and not any(base.input[4:])


def _bases(up: Any) -> list[str]:
    return list(up.input[2:5:2] if up.op_type == "LoraGatedUp" else up.input[2:3])


def _alike(ups: list[Any], projections: int) -> bool:
    kinds = {up.op_type for up in ups}
    return (kinds == {"LoraUp"} and projections <= MOST) or (kinds == {"LoraGatedUp"} and len(ups) == 1)


def _joined(down: Any, ups: list[Any], bases: list[Any]) -> Any:
    from onnx import helper

    def lists(node: Any, *names: str) -> list[int]:
        return [number for name in names for a in node.attribute if a.name == name for number in a.ints]

    sizes = {a.name: a.i for a in bases[0].attribute}
    own: dict[str, Any] = {name: sizes[name] for name in ("K", "bits", "block_size")}
    own |= {a.name: a.i for a in down.attribute if a.name == "row"}
    own |= {"N": [a.i for base in bases for a in base.attribute if a.name == "N"], "ranks": lists(down, "ranks")}
    if ends := [end for up in ups for end in lists(up, "ends", "ends2")]:
        own["ends"] = ends
    inputs = [*down.input[:3], down.input[3] if len(down.input) > 3 else ""]
    of_lora = (name for up in ups for name in up.input[3:6:2])
    for base, b in zip(bases, of_lora, strict=True):
        inputs += [*base.input[1:3], base.input[3] if len(base.input) > 3 else "", b]
    kind = "LoraGatedMatMulNBits" if ups[0].op_type == "LoraGatedUp" else "LoraMatMulNBits"
    return helper.make_node(kind, inputs, [up.output[0] for up in ups], f"{down.name}/joined", domain=DOMAIN, **own)
