"""A model on OpenVINO's CPU plugin, through the commands; skipped without the package."""

import json
from pathlib import Path

import numpy as np
import pytest

from phicli import Conversation, Engine, Session, optimize

pytest.importorskip("onnxruntime_ep_openvino")
IDS = list(range(40, 72))
INTEL = "GenuineIntel" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else True
on_intel = pytest.mark.skipif(not INTEL, reason="OpenVINO's package offers processors of Intel only")


@pytest.fixture(scope="module")
def made(two_graphs, tmp_path_factory):
    adapters = [f"{name}={two_graphs / name}" for name in ("cooking", "travel")]
    return optimize(root=tmp_path_factory.mktemp("openvino"), base=str(two_graphs / "awq"), device="cpu", head="float",
                    activations="fp32", provider="OpenVINOExecutionProvider", adapters=adapters).folder


@on_intel
def test_the_logits_are_those_of_the_cpu(made):
    with Session(made) as session, Session(made, "cpu") as usual:  # both in fp32
        assert (session.provider, usual.provider) == ("openvino", "cpu")
        for adapter in (None, "cooking", "travel"):
            found, wanted = session.logits(IDS, adapter), usual.logits(IDS, adapter)
            assert np.abs(found - wanted).max() < 1e-2 * np.abs(wanted).max()
            assert (found.argmax(-1) == wanted.argmax(-1)).all()


@on_intel
def test_answers_and_a_second_turn(made):
    answers = []
    for device in ("auto", "cpu"):
        with Session(made, device) as session:
            talk = Conversation(session, adapter="travel", max_new_tokens=12)
            answers.append([talk.ask(text).text for text in ("Where should I go?", "And then?")])
    assert answers[0] == answers[1] and all(answers[0])


@on_intel
def test_a_cpu_folder_runs_on_it_at_the_command(cli, two_graphs):
    done = cli("chat", "Where should I go?", "--path", two_graphs / "onnx-ao", "--adapter", "cooking",
               "--max-new-tokens", "8", "--json", "--provider", "openvino")
    assert done.code == 0 and json.loads(done.out)["answer"]
    with Session(two_graphs / "onnx-ao", "openvino") as session, Session(two_graphs / "onnx-ao") as usual:
        assert (session.provider, usual.provider) == ("openvino", "cpu")
        found, wanted = session.logits(IDS, "cooking"), usual.logits(IDS, "cooking")
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()  # bf16, where the processor has it


@on_intel
def test_the_engine_takes_its_rows_one_by_one(two_graphs):
    with Engine(two_graphs / "onnx-ao", "openvino") as engine:
        assert engine.why_alone == "it is for openvino"


def test_a_model_for_intels_gpu_is_built_and_says_that_there_is_none(cli, two_graphs, tmp_path):
    if [*Path("/dev").glob("dri/render*")]:
        pytest.skip("there may be one")
    done = cli("optimize", "--root", tmp_path, "--base", two_graphs / "awq", "--provider", "openvino",
               "--device", "gpu", "--adapter", f"travel={two_graphs / 'travel'}")
    assert done.code == 0
    chat = cli("chat", "Hello", "--path", tmp_path / "onnx-ao")
    assert chat.code == 4 and "finds no device" in chat.err and "--device cpu" in chat.err


@pytest.mark.skipif(INTEL, reason="a processor of Intel")
def test_on_another_processor_it_says_that_it_finds_no_device(cli, two_graphs):
    chat = cli("chat", "Hello", "--path", two_graphs / "onnx-ao", "--provider", "openvino")
    assert chat.code == 4 and "openvino finds no device" in chat.err and "--device cpu" in chat.err
