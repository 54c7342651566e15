"""Graphs, settings and calls of a second look: what a stranger found after the first faults were mended."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import phicli
from phicli.errors import BadInput, UsageError
from phicli.export.graph_file import read_model


@pytest.fixture
def model(optimized, tmp_path) -> Path:
    """A root's model folder, to be made hostile."""
    return shutil.copytree(optimized / "onnx-ao", tmp_path / "root" / "onnx-ao")


def edited(model: Path, change) -> Path:
    graph = onnx.load(model / "model.onnx", load_external_data=False)
    change(graph)
    onnx.save(graph, model / "model.onnx")
    return model


def looping(graph):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["x"], ["y"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    graph.graph.initializer.extend([numpy_helper.from_array(np.array(2**62), "count"),
                                    numpy_helper.from_array(np.array(True), "true"),
                                    numpy_helper.from_array(np.zeros(1, np.float32), "start")])
    graph.graph.node.append(helper.make_node("Loop", ["count", "true", "start"], ["end"], body=body))


def calling(graph):
    """2^30 nodes, once the functions are written out."""
    for level in range(30):
        called = "Abs" if level == 0 else f"f{level - 1}"
        domain = "" if level == 0 else "bomb"
        nodes = [helper.make_node(called, ["x"], ["t"], domain=domain), helper.make_node(called, ["t"], ["y"],
                                                                                          domain=domain)]
        graph.functions.append(helper.make_function("bomb", f"f{level}", ["x"], ["y"], nodes,
                                                    [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]))
    graph.opset_import.append(helper.make_opsetid("bomb", 1))
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "start"))
    graph.graph.node.append(helper.make_node("f29", ["start"], ["end"], domain="bomb"))


def calling_itself(graph):
    graph.functions.append(helper.make_function("bomb", "f", ["x"], ["y"], [helper.make_node(
        "f", ["x"], ["y"], domain="bomb")], [helper.make_opsetid("bomb", 1)]))
    graph.opset_import.append(helper.make_opsetid("bomb", 1))
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "start"))
    graph.graph.node.append(helper.make_node("f", ["start"], ["end"], domain="bomb"))


def hidden_loop(graph):
    """The loop stands in a branch of an If."""
    inner = onnx.ModelProto()
    looping(inner)
    branch = helper.make_graph(inner.graph.node, "branch", [], [helper.make_tensor_value_info(
        "end", TensorProto.FLOAT, None)], inner.graph.initializer)
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.graph.node.append(helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize("change", [looping, hidden_loop, calling, calling_itself])
def test_graphs_without_an_end(cli, model, change):
    """A graph with a loop, or with functions that call each other 2^30 times: refused in words, exit code 3."""
    edited(model, change)
    done = cli("chat", "--root", model.parent, "--prompt", "hello")
    assert done.code == 3 and "the graph has" in done.err


def test_a_graph_that_ends_is_read(model):
    assert read_model(model / "model.onnx").graph.node


def test_names_in_a_graph(cli, model, capfd):
    """Names of nodes that would command the terminal, in a graph that fails: onnxruntime's own lines, which repeat
    them, are not printed."""
    def change(graph):
        for node in graph.graph.node:
            node.name = "\x1b]0;PWNED\x07\x1b[2Jok: all fine" + node.name
        broken = next(n for n in graph.graph.node if n.op_type == "GroupQueryAttention")
        graph.graph.initializer.append(numpy_helper.from_array(np.array([-5], np.int32), "length"))
        broken.input[5] = "length"

    edited(model, change)
    done = cli("chat", "--root", model.parent, "--prompt", "hello")
    assert done.code == 3 and "\x1b" not in done.err + done.out and "[E:onnxruntime" not in done.err


def test_logits_that_are_no_numbers(cli, model):
    """A model whose logits are NaN: exit code 3, not an empty answer."""
    def change(graph):
        for node in graph.graph.node:
            for i, name in enumerate(node.output):
                if name == "logits":
                    node.output[i] = "numbers"
        graph.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
        graph.graph.node.append(helper.make_node("Mul", ["numbers", "nan"], ["logits"]))

    edited(model, change)
    done = cli("chat", "--root", model.parent, "--prompt", "hello")
    assert done.code == 3 and "not numbers" in done.err


@pytest.mark.parametrize("step", ["quantize", "finetune", "optimize"])
def test_a_users_file_in_a_stage(cli, tiny_awq, tmp_path, step, data_file):
    """A user's own file in the folder of a step's result: the step refuses to make it anew, exit code 3, and the file
    stays, with --force too."""
    root = tmp_path / "root"
    shutil.copytree(tiny_awq, root / "awq")
    commands = {
        "quantize": (root / "awq", ("--model", "tiny", "--samples", 4, "--seq-len", 32, "--force")),
        "finetune": (root / "ft" / "travel", ("--model", "tiny", "--data", data_file, "--max-steps", 1, "--lora-r", 2)),
        "optimize": (root / "onnx-ao", ("--model", "tiny", "--force"))}
    folder, options = commands[step]
    if step != "quantize":
        assert cli(step, "--root", root, "--device", "cpu", *options).code == 0
        options = (*options, "--force") if "--force" not in options else options
    (folder / "sub").mkdir()
    (folder / "sub" / "diary.txt").write_text("mine")
    done = cli(step, "--root", root, "--device", "cpu", *options)
    assert done.code == 3 and "sub/diary.txt" in done.err
    assert (folder / "sub" / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize(("text", "setting"), [('root = "a\\u0000b"', "root"), ("[quantize]\nskip = [1]", "skip")])
def test_settings_that_no_text_can_be(cli, tmp_path, text, setting):
    """A NUL in a path, a number in a list of texts: exit code 3 with the setting's name."""
    (tmp_path / "phicli.toml").write_text(text)
    done = cli("--config", tmp_path / "phicli.toml", "config")
    assert done.code == 3 and setting in done.err


def test_a_result_at_the_root(cli, tmp_path):
    """--output that is the root of all results: exit code 2, before any work."""
    done = cli("quantize", "--model", "tiny", "--root", tmp_path, "--output", tmp_path)
    assert done.code == 2 and "--output" in done.err and not list(tmp_path.iterdir())


def test_a_template_that_encodes(model):
    """A chat template that calls str.encode with a slow codec: refused, exit code 3."""
    (model / "chat_template.jinja").write_text("{{ ('\u4e2d' * 9000).encode('punycode')|length }}")
    with phicli.Session(model) as session, pytest.raises(BadInput, match="chat template"):
        phicli.Conversation(session).ask("hello")


def test_wrong_arguments_of_the_library(model):
    """Arguments of a program that no setting allows: UsageError with the name, not Python's own."""
    with phicli.Session(model) as session:
        for call in (lambda: phicli.Conversation(session, max_new_tokens=0),
                     lambda: phicli.Conversation(session, max_new_tokens="x"),
                     lambda: phicli.Conversation(session, system=5),
                     lambda: phicli.Sampling(temperature=float("nan")), lambda: phicli.Sampling(top_k=-5),
                     lambda: phicli.Sampling(seed=2**70), lambda: phicli.Session(model, kernels="x"),
                     lambda: phicli.Session(model, device="tpu"), lambda: phicli.Conversation(session).ask(5),
                     lambda: phicli.quantize("tiny", skip=[1]), lambda: phicli.quantize("tiny", root="a\0b")):
            with pytest.raises(UsageError):
                call()


def test_settings_of_a_graph_stay_ours(model):
    """Severity of logs is phicli's to say, whatever a model's settings ask for."""
    path = model / "genai_config.json"
    document = json.loads(path.read_text())
    document["model"]["decoder"]["session_options"]["log_severity_level"] = 0
    path.write_text(json.dumps(document))
    with phicli.Session(model) as session:
        assert phicli.Conversation(session, max_new_tokens=2).ask("hello").answer_tokens
