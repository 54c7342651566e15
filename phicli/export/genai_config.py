"""genai_config.json as strangers write it: what onnxruntime-genai gets is a document of ours, with known settings only.

genai finds more in such a file than a text model needs: libraries to load, further models, files to write, names that
it takes for formats of printf. So nothing of it is handed on but what is listed here and has a sound value.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phicli.artifacts.names import GENAI_CONFIG
from phicli.artifacts.reading import read_json
from phicli.config.commands import ChatConfig
from phicli.config.setting import checked
from phicli.errors import BadInput, Missing, UsageError

REBUILD = "phicli optimize --force"
LARGEST_FILE = 1 << 20  # bytes
# Models that are a decoder and nothing else, as genai 0.18 calls them.
TYPES = frozenset((
    "chatglm", "decoder", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gemma3_vl_text", "gemma4_text", "gpt2",
    "gptoss", "granite", "granitemoehybrid", "hunyuandensev1", "internlm2", "lfm2", "lfm2_audio_text", "lfm2_moe",
    "lfm2_vl_text", "llama", "mistral", "mistral3_text", "nemotron", "olmo", "phi", "phi3", "phi3small", "phimoe",
    "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_vl_text", "smollm3",
))
# What names code, further models or files to write: refused, as a model that needs one of them cannot be run without.
REFUSED = frozenset(("custom_ops_library", "enable_profiling", "encoder", "embedding", "vision", "speech", "pipeline",
                     "run_options", "shared_initializers"))
FILENAME = re.compile(r"\w[\w.-]{0,200}\.onnx", re.ASCII)
NAME = re.compile(r"[^%\x00-\x1f]{1,100}(%d[^%\x00-\x1f]{0,100})?")  # the layer's number is the only thing put in
OPTION = re.compile(r"[\w.;-]{1,100}", re.ASCII)

Check = Callable[[Any], bool]


def _integer(smallest: int, largest: int) -> Check:
    return lambda value: type(value) is int and smallest <= value <= largest


def _matching(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _one_of(*known: Any) -> Check:
    return lambda value: isinstance(value, str | bool) and value in known


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= LARGEST_LIST and all(map(check, value))


def _chat_setting(name: str) -> Check:
    """What the setting of chat takes."""
    def check(value: Any) -> bool:
        try:
            return checked(ChatConfig, name, value) is not None
        except UsageError:
            return False
    return check


LARGEST_LIST = 4096
_flag, _name, _option, _token = _one_of(True, False), _matching(NAME), _matching(OPTION), _integer(0, 1 << 24)
_id_or_ids: Check = lambda value: _token(value) or (bool(value) and _all(_token)(value))  # noqa: E731

MODEL: dict[str, Check] = {
    "type": _one_of(*TYPES), "vocab_size": _integer(1, 1 << 24), "context_length": _integer(1, 1 << 27),
    "eos_token_id": _id_or_ids,
}
DECODER: dict[str, Check] = {
    "filename": _matching(FILENAME), "head_size": _integer(1, 1 << 12), "hidden_size": _integer(1, 1 << 20),
    "num_attention_heads": _integer(1, 1 << 12), "num_key_value_heads": _integer(1, 1 << 12),
    "num_hidden_layers": _integer(1, LARGEST_LIST), "conv_cache_size": _integer(0, 1 << 12),
    "layer_types": _all(_name),
}
INPUTS = dict.fromkeys(("input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names",
                        "past_names", "past_key_scale_names", "past_value_scale_names", "past_conv_names",
                        "past_recurrent_names", "past_sequence_length", "current_sequence_length",
                        "total_sequence_length"), _name)
OUTPUTS = dict.fromkeys(("logits", "present_key_names", "present_value_names", "present_names",
                         "present_key_scale_names", "present_value_scale_names", "present_conv_names",
                         "present_recurrent_names"), _name)
WINDOW: dict[str, Check] = {
    "window_size": _integer(1, 1 << 27), "cache_slack": _integer(0, 1 << 27), "pad_value": _integer(-1, 1 << 24),
    "alignment": _one_of("left", "right"), "slide_key_value_cache": _flag, "slide_inputs": _flag,
    "layers": _all(_integer(0, LARGEST_LIST)),
}
SESSION: dict[str, Check] = {
    "intra_op_num_threads": _integer(0, 1024), "enable_cpu_mem_arena": _flag, "enable_mem_pattern": _flag,
    "graph_optimization_level": _one_of("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"),
    "ep.cuda.fpa_intb_gemm": _option, "optimization.disable_specified_optimizers": _option,
    "session.use_device_allocator_for_initializers": _option,
}
# By itself OpenVINO computes in bf16 where a CPU has that, and in int8 in groups of 32 activations.
OPENVINO_IN_FP32 = '{"CPU": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}'
PROVIDERS: dict[str, dict[str, Check]] = {
    "cpu": {}, "cuda": {"enable_cuda_graph": _option, "enable_skip_layer_norm_strict_mode": _option},
    "dml": {"enable_graph_capture": _option}, "webgpu": {"enableGraphCapture": _option, "validationMode": _option},
    "tensorrt": {"enable_cuda_graph": _option}, "openvino": {"device_type": _one_of("CPU", "GPU"),
                                                                    "load_config": _one_of(OPENVINO_IN_FP32)},
}
GENAI_NAMES = {"dml": "DML", "webgpu": "WebGPU", "tensorrt": "NvTensorRtRtx", "openvino": "OpenVINO"}  # in genai
_OWN_NAMES = {theirs.lower(): own for own, theirs in GENAI_NAMES.items()}
SEARCH: dict[str, Check] = {
    "past_present_share_buffer": _flag, "min_length": _integer(0, 1 << 27),
    "no_repeat_ngram_size": _integer(0, 1 << 20), "chunk_size": _integer(1, 1 << 27), "do_sample": _flag,
    **{name: _chat_setting(name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")},
}
NEEDED = ("type", "vocab_size", "context_length", "eos_token_id", "num_attention_heads", "num_key_value_heads",
          "head_size", "num_hidden_layers")


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a text model for genai: those of its genai_config.json that are known, each with a sound value.

    Raises:
        Missing: no such folder. BadInput: no such file, a damaged one, or one of something else than a text model; one
            that names code or files.
    """
    path = folder / GENAI_CONFIG
    if not folder.is_dir():
        raise Missing("no optimized model here yet", where=folder, hint="phicli optimize")
    try:
        document = read_json(path, LARGEST_FILE)
    except FileNotFoundError:
        raise BadInput("no genai_config.json: not a model that phicli optimize made", where=folder,
                       hint="phicli optimize") from None
    except BadInput as e:
        raise BadInput(e.message, where=path, hint=REBUILD) from None
    try:
        return _sound(document)
    except _Unsound as e:
        raise BadInput(str(e), where=path, hint=REBUILD) from None


class _Unsound(Exception):
    """What is wrong with a document, in words."""


def _sound(document: Any) -> dict[str, Any]:
    _refuse(document)
    given = _part(_part({"document": document}, "document"), "model")
    decoder, search = _part(given, "decoder"), _part(document, "search", {})
    model = _known(given, MODEL, "model")
    model["decoder"] = _known(decoder, DECODER, "model.decoder")
    for name, known in (("inputs", INPUTS), ("outputs", OUTPUTS), ("sliding_window", WINDOW)):
        if decoder.get(name) is not None:
            model["decoder"][name] = _known(_part(decoder, name), known, f"model.decoder.{name}")
    for name in NEEDED:
        if name not in model and name not in model["decoder"]:
            raise _Unsound(f"not what a text model needs: no '{name}'")
    model["decoder"].setdefault("filename", "model.onnx")
    ends = model["eos_token_id"] if isinstance(model["eos_token_id"], list) else [model["eos_token_id"]]
    if max(ends) >= model["vocab_size"]:
        raise _Unsound(f"model.eos_token_id {max(ends)} is beyond the vocabulary of {model['vocab_size']}")
    options = _part(decoder, "session_options", {})
    model["decoder"]["session_options"] = {**_known(options, SESSION, "model.decoder.session_options"),
                                           "provider_options": _providers(options)}
    return {"model": model, "search": {**_known(search, SEARCH, "search"), "max_length": model["context_length"]}}


def _refuse(document: Any) -> None:
    """Raise _Unsound if one of the names in REFUSED is there, at whatever depth."""
    left = [("", document)]
    while left:
        where, value = left.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in REFUSED and inner not in (None, [], {}):
                    raise _Unsound(f"'{where}{key}' names code, files or models beside the decoder, which are never "
                                   "used: phicli runs text models")
                left.append((f"{where}{key}."[-200:], inner))
        elif isinstance(value, list):
            left.extend((where, inner) for inner in value)


def _part(document: Mapping[str, Any], name: str, default: Any = None) -> dict[str, Any]:
    found = document.get(name, default)
    if not isinstance(found, dict):
        raise _Unsound(f"not what a text model needs: no '{name}'")
    return found


def _known(given: Mapping[str, Any], known: Mapping[str, Check], where: str) -> dict[str, Any]:
    """What is given of the known settings. null is as good as nothing."""
    found = {name: given[name] for name in known if given.get(name) is not None}
    for name, value in found.items():
        if not known[name](value):
            raise _Unsound(f"{where}.{name} cannot be {str(value)[:80]!r}")
    return found


def _providers(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whom the model was built for, in genai's form; none for a CPU."""
    entries = options.get("provider_options") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _Unsound("model.decoder.session_options.provider_options is no list of objects")
    found = {}
    for name, settings in (pair for entry in entries for pair in entry.items()):
        where = f"model.decoder.session_options.provider_options.{name[:80]}"
        own = _OWN_NAMES.get(name.lower(), name.lower())
        if own not in PROVIDERS or not isinstance(settings, dict):
            raise _Unsound(f"{where}: phicli runs models for {', '.join(PROVIDERS)}")
        found[own] = _known(settings, PROVIDERS[own], where)
    found.pop("cpu", None)
    return [{name: settings} for name, settings in found.items()]
