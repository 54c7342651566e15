"""External data of a model while it is built: each tensor goes to disk once, as it comes, and stays where it is.

genai's builder keeps all tensors until it saves, serializes them for onnxruntime's quantizer and copies them once more
into the file. Here those that the quantizer does not want leave memory after each layer.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phicli.workflow.patching import replaced

LARGE = 1 << 16  # bytes


class ExternalData:
    """A file that initializers are appended to; `finish` gives it its name. Removed if that does not come about."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.file = scratch.open("wb")

    def take(self, graph: Any, keep: Callable[[Any], bool] = lambda value: False) -> None:
        """Write the initializers of an onnx_ir graph that are in memory and put references in their place.

        keep: tells of an initializer's onnx_ir Value that it is to stay in memory.
        """
        from onnx_ir import ExternalTensor

        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not isinstance(tensor, ExternalTensor) and tensor.nbytes and not keep(value):
                offset = self.file.tell()
                tensor.tofile(self.file)
                value.const_value = self._reference(tensor, self.scratch, offset, self.file.tell() - offset)

    def finish(self, model: Any, path: Path) -> None:
        """Write what an onnx_ir model still has in memory, and make `path` the file that it refers to.

        Also large constants of nodes, as LongRoPE's tables are: a copy of the graph then has none of its own.
        """
        from onnx_ir import AttrTensor

        values = [value for graph in model.graphs() for value in graph.initializers.values()]
        for graph in model.graphs():
            self.take(graph)
            for node in graph:
                if node.op_type == "Constant" and (tensor := node.attributes["value"].value).nbytes > LARGE:
                    offset = self.file.tell()
                    tensor.tofile(self.file)
                    moved = self._reference(tensor, path, offset, self.file.tell() - offset)
                    node.attributes["value"] = AttrTensor("value", moved)
        self.file.close()
        self.scratch.replace(path)
        for value in values:
            if (tensor := value.const_value) is not None and tensor.nbytes:
                value.const_value = self._reference(tensor, path, tensor.offset, tensor.length)

    @staticmethod
    def _reference(tensor: Any, path: Path, offset: int, length: int) -> Any:
        from onnx_ir import ExternalTensor

        return ExternalTensor(path.name, offset, length, tensor.dtype, shape=tensor.shape, name=tensor.name,
                              base_dir=path.parent)


@contextlib.contextmanager
def streamed_saving(folder: Path) -> Iterator[ExternalData]:
    """While the block runs, `onnx_ir.save` leaves alone what the `ExternalData` that is given has taken.

    folder: where the model will be saved.
    """
    import onnx_ir

    data = ExternalData(folder / ".weights.part")

    def save(model: Any, path: str, *args: Any, external_data: str | None = None, **options: Any) -> None:
        # genai's builder adds the commit of whatever git repository it is installed within
        model.producer_version = (model.producer_version or "").partition("+")[0]
        if external_data is None or not data.file.tell():
            original(model, path, *args, external_data=external_data, **options)
        else:
            data.finish(model, Path(path).with_name(external_data))
            original(model, path)

    try:
        with replaced(onnx_ir, "save", save) as original:
            yield data
    finally:
        data.file.close()
        data.scratch.unlink(missing_ok=True)
