"""What a folder needs to run on onnxruntime's OpenVINO: the builder's graph of a CPU, with two changes.

OpenVINO takes all of it but attention, which onnxruntime's own op computes between its parts; the integers of the
checkpoint stay as they are. With attention of plain ops it takes all (`enable_causallm`), which was no faster on a CPU
and gives logits of the last token only.
"""

import json
from pathlib import Path

from phicli.artifacts.names import GENAI_CONFIG
from phicli.export.genai_config import GENAI_NAMES, OPENVINO_IN_FP32
from phicli.export.masked import FIRST, TABLE


def name_provider(folder: Path, hardware: str, activations: str) -> None:
    """Write into genai_config.json that OpenVINO runs the model, on "cpu" or "gpu"; activations: "fp32", or its own."""
    path = folder / GENAI_CONFIG
    document = json.loads(path.read_bytes())
    options = document["model"]["decoder"]["session_options"]
    given = {"device_type": hardware.upper()}
    if (hardware, activations) == ("cpu", "fp32"):
        given["load_config"] = OPENVINO_IN_FP32
    options["provider_options"] = [{GENAI_NAMES["openvino"]: given}]
    path.write_text(json.dumps(document, indent=4, ensure_ascii=False), encoding="utf-8")


def choose_adapters_outside(path: Path) -> None:
    """Let a node that OpenVINO leaves to onnxruntime read which adapter is meant, in a graph of the layout "resident".

    An input with a default, which this one is, makes OpenVINO's provider 1.8 fail where it takes a node that reads it.
    ai.onnx.ml is a domain of which it takes none.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path), load_external_data=False)
    mask = next((node for node in model.graph.node if node.input[:2] == [TABLE, FIRST]), None)
    if mask is None:
        return
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    columns = numpy_helper.to_array(tables[TABLE])[:, 0].T
    model.graph.initializer.append(numpy_helper.from_array(columns.copy(), "adapter_columns"))
    at = [*model.graph.node].index(mask)
    chosen = helper.make_node("ArrayFeatureExtractor", ["adapter_columns", FIRST], ["adapter_column"], "/lora/choice",
                              domain="ai.onnx.ml")
    turned = helper.make_node("Transpose", ["adapter_column"], [*mask.output], mask.name, perm=[1, 0])
    model.graph.node.remove(mask)
    for node in (turned, chosen):
        model.graph.node.insert(at, node)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, str(path))
