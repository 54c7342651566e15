"""Making a model of onnxruntime-genai out of settings, a graph and a library, without it reading a model's folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG
from phicli.errors import BadInput
from phicli.export.genai_config import GENAI_NAMES
from phicli.export.graph_file import REBUILD, read_model, settle_data
from phicli.hardware.devices import usable_cores
from phicli.inference.attending import attend
from phicli.inference.devices import select_provider, within_devices
from phicli.inference.joined import join
from phicli.inference.long_rope import open_border
from phicli.inference.ops import ops_of

GRAPH = "model.onnx"
FATAL = 4  # of onnxruntime's levels of severity


def open_graph(settings: Mapping[str, Any], path: Path, device: str = "auto", kernels: str = "auto") -> tuple[Any, str]:
    """An onnxruntime_genai.Model of an ONNX file, and the provider that it runs on.

    Args:
        settings: as `read_config` gives them. device: "auto" (what it was built for), or a provider.
        kernels: see `ops_of`.

    Raises:
        Missing: a provider wanted and not there. BadInput: sizes that differ, weights outside the folder.
        RuntimeError, OSError: other faults, in the words of genai and the system.
    """
    graph = read_model(path)
    check_sizes(settings, graph.graph, path)
    data = settle_data(graph, path)
    own = deepcopy(dict(settings))
    open_border(graph, own)
    provider = choose_provider(own, device)
    library, joins, products = ops_of(graph, own, provider, kernels)
    if joins:
        join(graph)
    if products:
        attend(graph, own["model"]["decoder"]["head_size"])
    with within_devices(provider):
        return _load(own, graph, data, library), provider


def choose_provider(settings: dict[str, Any], device: str) -> str:
    """As `select_provider`, with the threads that a CPU's session is to have in the settings."""
    provider = select_provider(settings, device)
    options = settings["model"]["decoder"]["session_options"]
    threads = min(options.pop("intra_op_num_threads", 0) or usable_cores(), usable_cores())
    if provider in ("cpu", "openvino"):  # onnxruntime by itself takes one of two virtual cores
        options["intra_op_num_threads"] = threads
    return provider


def _load(settings: dict[str, Any], graph: Any, data: Path, library: Path | None) -> Any:
    """An onnxruntime_genai.Model; the weights' names are relative to `data`.

    genai takes settings and libraries from a folder; it gets a private one, which is gone when the model is loaded.
    """
    import onnxruntime_genai as og

    with _private_folder(data, library) as name:
        folder = Path(name).resolve()
        settings["model"]["decoder"]["filename"] = GRAPH
        options = settings["model"]["decoder"]["session_options"]
        options["session.load_model_format"] = "ONNX"
        options["log_severity_level"] = FATAL  # else onnxruntime prints names of the graph's nodes as they are
        # genai puts its folder before this one, so that an absolute path would not do
        options["session.model_external_initializers_file_folder_path"] = os.path.relpath(data, folder)
        if library:
            options["custom_ops_library"] = str(_linked(library, folder))
        options["provider_options"] = [{GENAI_NAMES.get(name, name): given for name, given in entry.items()}
                                       for entry in options["provider_options"]]
        text = json.dumps(settings, ensure_ascii=False)  # genai reads no \\u of two halves
        (folder / GENAI_CONFIG).write_text(text, encoding="utf-8", errors="surrogateescape")
        config, content = og.Config(str(folder)), graph.SerializeToString()
        config.add_model_data(GRAPH, content)
        return og.Model(config)


def check_sizes(settings: Mapping[str, Any], graph: Any, where: Path) -> None:
    """Compare the sizes that genai reserves memory by with those of a GraphProto.

    Raises:
        BadInput: they differ.
    """
    model, decoder = settings["model"], settings["model"]["decoder"]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*graph.input, *graph.output)}
    names = decoder.get("inputs", {}), decoder.get("outputs", {})
    wanted = {names[1].get("logits", "logits"): {-1: ("vocab_size", model["vocab_size"])}}
    for name in ("past_key_names", "past_value_names"):
        if "%d" in (pattern := names[0].get(name, "")):
            for layer in range(decoder["num_hidden_layers"]):
                wanted[pattern.replace("%d", str(layer))] = {
                    1: ("num_key_value_heads", decoder["num_key_value_heads"]), -1: ("head_size", decoder["head_size"])}
    for name, sizes in wanted.items():
        for axis, (setting, need) in sizes.items():
            have = shapes[name][axis] if len(shapes.get(name, ())) > 1 else 0
            if have not in (0, need):  # 0: the graph leaves it open
                raise BadInput(f"{setting} is {need}, where {name} of the graph has {have}", where=where,
                               hint=REBUILD)


def _private_folder(data: Path, library: Path | None) -> Any:
    """Beside the library, which then needs no copy; on the model's drive, where there are drives."""
    if library:
        try:
            return tempfile.TemporaryDirectory(prefix="genai-", dir=library.parent)
        except OSError:
            pass
    elsewhere = Path(tempfile.gettempdir()).anchor != data.anchor
    return tempfile.TemporaryDirectory(prefix="phicli-", dir=data if elsewhere else None)


def _linked(library: Path, folder: Path) -> Path:
    place = folder / library.name
    try:
        place.hardlink_to(library)
    except OSError:
        shutil.copyfile(library, place)
    return place
