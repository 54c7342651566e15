"""Olive's ModelBuilder pass on genai 0.18, with LoRA slots put into the graph that it builds.

Olive 0.13 patches a module that genai 0.18 no longer has and hands the builder options that this version wants
normalized first. Both are put right here; all else stays Olive's and genai's.
"""

import contextlib
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes.olive_pass import PassConfigParam
from olive.passes.onnx import model_builder
from olive.passes.pass_config import BasePassConfig

from phicli.checkpoints.skeleton import check_tensors
from phicli.export import families, graph_inputs
from phicli.export.external_data import streamed_saving
from phicli.export.loading import float_projections, streamed_loading
from phicli.export.vocabulary import rounded_vocabulary
from phicli.hub.models import read_config
from phicli.progress import SILENT, Progress, Task
from phicli.workflow.wording import worded

BUILDER_PREFIX = "int4_"  # Olive's older names of what the builder now calls accuracy_level, block_size, …


class SlottedModelBuilder(model_builder.ModelBuilder):
    """ModelBuilder whose model takes LoRA adapters at run time.

    Usable in any Olive workflow: `{"type": "SlottedModelBuilder", "precision": "int4"}` once this module is imported.
    """

    progress: Progress = SILENT

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        config = super()._default_config(accelerator_spec)
        config["slots"] = PassConfigParam(
            type_=str, default_value="inputs", description="How adapters enter the graph: inputs, none"
        )
        for name in ("embeddings", "head"):
            config[name] = PassConfigParam(type_=str, default_value="int8", description="Precision: int4, int8, float")
        return config

    @staticmethod
    def maybe_patch_quant() -> None:
        """Nothing: genai 0.18 reads Olive's checkpoints by itself."""

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        settings: Any = config.model_copy(deep=True)
        folder, layout, settings.slots = Path(model.model_name_or_path), settings.slots, None
        vocabulary = rounded_vocabulary(settings.embeddings, settings.head)
        settings.embeddings = settings.head = None
        saved = Path(resolve_onnx_path(output_model_path)).parent
        saved.mkdir(parents=True, exist_ok=True)
        with (TemporaryDirectory(prefix="phicli-") as scratch, _scratch_as_cache(scratch),
              streamed_saving(saved) as data, streamed_loading(data), vocabulary,
              families.put_right() as family):
            about = read_config(folder)
            if "quantization_config" not in about:
                check_tensors(folder)
            with (worded("genai's builder cannot build this model", folder),
                  self.progress.task("build", about.get("num_hidden_layers"), "layers") as task, _watching(task)):
                settings.extra_options = self._builder_options(folder, settings, output_model_path, scratch)
                family.settle(settings.extra_options["hf_details"]["hf_config"])
                built = super()._run_for_config(model, settings, output_model_path)
        extra = (built.model_attributes or {}).get("additional_files", [])
        extra[:] = [path for path in extra if Path(path).exists()]  # weights were still in a file for a while
        if layout == graph_inputs.NAME:
            with self.progress.task("adapter slots", unit="slots") as task:
                task.advance(len(graph_inputs.add_slots(Path(built.model_path))))
        return built

    def _builder_options(self, folder: Path, settings: Any, output: str, cache: str) -> dict[str, Any]:
        """What `create_model` takes beside its arguments, made by the builder's own parser.

        The pass's settings that the parser has dealt with are set to None, so that they are not handed over twice.
        """
        from onnxruntime_genai.models.builder import parse_extra_options

        given = {"hf_token": "false", "hf_remote": "false", **families.OPTIONS}
        for key, value in settings.model_dump().items():
            if value is not None and key not in ("precision", "metadata_only", "search", "extra_options"):
                between = "/" if "op_types" in key else ","
                text = between.join(value) if isinstance(value, list) else str(getattr(value, "value", value))
                given[key.removeprefix(BUILDER_PREFIX)] = text
                setattr(settings, key, None)
        given |= {key: str(value) for key, value in (settings.extra_options or {}).items()}
        if read_config(folder).get("quantization_config"):  # what the quantizer left in float is to stay so
            excluded = [*filter(None, given.get("nodes_to_exclude", "").split(",")), *float_projections(folder)]
            if excluded:
                given["nodes_to_exclude"] = ",".join(excluded)
        provider = self.EP_MAP.get(self.accelerator_spec.execution_provider, "cpu")
        return parse_extra_options(str(folder), str(folder), output, str(settings.precision.value), provider, cache,
                                   [f"{key}={value}" for key, value in given.items()])


@contextlib.contextmanager
def _scratch_as_cache(folder: str) -> Iterator[None]:
    """Keep Olive's pass off the user's Hugging Face cache, where it leaves marks and removes files when it fails."""
    before, model_builder.HF_HUB_CACHE = model_builder.HF_HUB_CACHE, folder
    try:
        yield
    finally:
        model_builder.HF_HUB_CACHE = before


@contextlib.contextmanager
def _watching(task: Task) -> Iterator[None]:
    """Log what the builder prints, and read from it how far it is: layers on stdout, tensors written on stderr.

    What other threads print meanwhile goes where it would go.
    """
    log, builder = logging.getLogger(__name__), threading.get_ident()

    class Watched:
        def __init__(self, stream: TextIO):
            self.stream = stream

        def write(self, text: str) -> int:
            if threading.get_ident() != builder:
                return self.stream.write(text)
            if re.match(r"Reading layer \d+", text):
                task.advance(1)
            elif written := re.search(r"(\d+/\d+) \[", text):
                task.advance(0, written=f"{written[1]} tensors")
            if text.strip():
                log.info(text.strip())
            return len(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    streams: Any = Watched(sys.stdout), Watched(sys.stderr)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield
