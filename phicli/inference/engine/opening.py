"""An onnxruntime session on the graph that a batch runs."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.export.adapters import qkv_sizes
from phicli.export.graph_file import read_model, settle_data
from phicli.export.resident import installed
from phicli.export.slots import LAYOUT_KEY
from phicli.export.token_cache import ATTENTION
from phicli.hardware.devices import EXECUTION_PROVIDERS
from phicli.inference.attending import attend
from phicli.inference.engine.adapters import Adapters
from phicli.inference.engine.graph import CacheInput, caches, serve, unfit
from phicli.inference.genai_model import FATAL, check_sizes, choose_provider
from phicli.inference.joined import join
from phicli.inference.long_rope import border_of
from phicli.inference.ops import ops_of
from phicli.inference.products import rows_library

PROVIDERS = ("cpu", "cuda")


class Unfit(Exception):
    """Why a model cannot run in batches."""


@dataclass(frozen=True)
class Served:
    """A model that runs in batches: an onnxruntime.InferenceSession, and its inputs for keys and values.

    context: most tokens of a row. names: of the adapters that it was built with. adapters: what they consist of, which
    may change while it runs; None where the graph holds them itself. captures: whether runs become CUDA graphs. exact:
    whether a row's products are the same whatever rows are beside it. alters: whether those of several tokens of a row
    round otherwise than one by one.
    """

    session: Any
    caches: list[CacheInput]
    provider: str
    context: int
    names: list[str]
    adapters: Adapters | None
    captures: bool
    exact: bool
    alters: bool


def open_served(settings: Mapping[str, Any], path: Path, device: str, kernels: str, context: int | None,
                more: Mapping[str, str]) -> Served:
    """Open an ONNX file; the arguments are those of `open_graph`. context: wanted; None for the model's own,
    with LongRoPE up to the border, as rows of one run have the same factors. more: entries of the session's
    configuration.

    Raises:
        Unfit: a model for one row at a time. Else as `open_graph`.
    """
    import onnxruntime

    model = read_model(path)
    check_sizes(settings, model.graph, path)
    properties = {p.key: p.value for p in model.metadata_props}
    if why := unfit(model.graph, properties, settings):
        raise Unfit(why)
    most: int = settings["model"]["context_length"]
    border = border_of(model)
    if border and context and context > border:
        raise Unfit(f"rows of more than {border} tokens have other rotary factors than shorter ones")
    own = deepcopy(dict(settings))
    provider = choose_provider(own, device)
    if provider not in PROVIDERS:
        raise Unfit(f"it is for {provider}")
    data = settle_data(model, path)
    library, joins, exact = ops_of(model, own, provider, kernels)
    names, adapters = installed(properties, path) if LAYOUT_KEY in properties else [], None
    if library:
        del model.functions[:]  # which know no adapters that come and go
        adapters = Adapters(model.graph, data, len(names), qkv_sizes(path.parent))
    try:
        serve(model.graph, provider != "cpu", adapters.current.inputs if adapters else ())
    except (ValueError, StopIteration) as e:
        raise Unfit(str(e) or "its graph ends in something else than a product with the vocabulary") from None
    if joins:
        join(model)
    size = settings["model"]["decoder"]["head_size"]
    of_rows = caches(model.graph, size)
    steady = any(node.op_type in ATTENTION.values() for node in model.graph.node) or (exact and attend(model, size))
    library = rows_library(model, provider, kernels) or library
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    given = own["model"]["decoder"]["session_options"]
    options.intra_op_num_threads = given.get("intra_op_num_threads", 0)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
    for name, value in (given | more).items():
        if "." in name:
            options.add_session_config_entry(name, value)
    if library:
        options.register_custom_ops_library(str(library))
    of_provider = {name: value for entry in given["provider_options"]
                   for name, value in entry.get(provider, {}).items()}
    session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                           providers=[(EXECUTION_PROVIDERS[provider], of_provider)])
    return Served(session, of_rows, provider, min(context or most, border or most, most), names, adapters,
                  of_provider.get("enable_cuda_graph") == "1", exact, provider == "cpu" and not steady)
