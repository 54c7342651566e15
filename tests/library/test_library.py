"""phicli as a library: what a program or a notebook imports, and what that does to its process: nothing."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import phicli
from phicli.config import FinetuneConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import UsageError
from phicli.progress import SILENT
from phicli.text.layout import template_options

PROGRAM = """
import gc, json, logging, os, signal, sys, threading, warnings

def state():
    hub = sys.modules.get("huggingface_hub.constants")
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "collects": gc.isenabled(),
        "frozen": gc.get_freeze_count(), "threshold": gc.get_threshold(),
        "logging": (logging.root.level, len(logging.root.handlers), logging.root.manager.disable),
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "warnings": [f for f in map(str, warnings.filters) if "transformers" in f],
        "offline": hub.HF_HUB_OFFLINE if hub else OFFLINE,
    }

OFFLINE = "1" in (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
before, loaded = state(), set(sys.modules)
import phicli
new = sorted({name.partition(".")[0] for name in set(sys.modules) - loaded} - set(sys.stdlib_module_names))
changed = {"import": state() != before}
assert not threading.active_count() > 1
steps = {
    "inspect": lambda: phicli.inspect(DATA, model="tiny"),
    "quantize": lambda: phicli.quantize("tiny", root="lab", samples=8, seq_len=64, device="cpu"),
    "finetune": lambda: phicli.finetune("tiny", root="lab", data=DATA, max_steps=2, device="cpu"),
    "optimize": lambda: phicli.optimize("tiny", root="lab", device="cpu"),
    "evaluate": lambda: phicli.evaluate("tiny", root="lab", eval_data=DATA, rows=2, device="cpu"),
}
def converse():
    with phicli.Session("lab/onnx-ao") as session:
        talk = phicli.Conversation(session, max_new_tokens=2)
        talk.ask("Where to?")
        talk.use_adapter(session.adapter_names()[0])
        talk.ask("And then?")
        assert os.environ == before["environment"]
        session.logits([5, 6])

steps["converse"] = converse
if ALONE:  # in a process that no step has prepared
    steps = {"converse": converse}
for name, step in steps.items():
    step()
    changed[name] = {k: (before[k], v) for k, v in state().items() if v != before[k]}
print(json.dumps({"new": new, "changed": changed}))
"""


@pytest.mark.parametrize("offline", [None, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_neither_importing_nor_any_step_changes_the_process(tmp_path, offline, data_file):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PHICLI_", "HF_", "OMP_", "OLIVE_", "ORT_",
                   "CUBLAS_", "CUDA_", "TRANSFORMERS_", "TOKENIZERS_", "TORCHINDUCTOR_"))}
    if offline:
        environment[offline] = "1"
    for alone in (False, True):
        (tmp_path / "program.py").write_text(f"DATA, ALONE = {str(data_file)!r}, {alone}\n{PROGRAM}")
        done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["new"] == ["phicli"] and "converse" in found["changed"]
        assert not any(found["changed"].values()), found["changed"]


def test_all_that_is_promised_is_there():
    for name in phicli.__all__:
        assert getattr(phicli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = phicli.quantise


def test_settings_are_keywords_or_one_object(tmp_path, tiny):
    settings = {"root": tmp_path, "samples": 4, "seq_len": 32, "rounding": "nearest", "device": "cpu"}
    made = phicli.quantize("tiny", **settings)
    assert made.folder == tmp_path / "awq" and made.manifest.settings["samples"] == 4
    again = phicli.quantize(QuantizeConfig(model="tiny", **settings), progress=SILENT)
    assert again.manifest == made.manifest  # up to date, so it was not made again
    for call in (lambda: phicli.quantize("tiny", sample=3), lambda: phicli.quantize(QuantizeConfig(), samples=3),
                 lambda: phicli.quantize("tiny", samples=0), lambda: phicli.quantize("tiny", bits="4"),
                 lambda: phicli.quantize(3), lambda: phicli.quantize("tiny", algorithm="awk")):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize(("given", "meant"), [("map", "columns"), ("sampels", "samples"), ("xyzzy", None)])
def test_a_setting_that_there_is_not_comes_with_the_one_that_is_meant(given, meant):
    """An option that is spelt otherwise, as a page or a message has it, and a slip."""
    with pytest.raises(UsageError, match=f"no setting '{given}'") as caught:
        phicli.quantize("tiny", **{given: 3})
    assert caught.value.hint == (f"did you mean {meant}?" if meant else None)


def test_no_part_of_the_package_takes_the_place_of_a_function():
    """Once it is imported, phicli.NAME would be the module."""
    assert not {part.name for part in pkgutil.iter_modules(phicli.__path__)} & set(phicli.__all__)


def test_pairs_may_be_a_mapping():
    variables = {"enable_thinking": False, "version": "3", "greeting": "Hi, you", "places": [{"a": 1}]}
    names = {"prompt": "Frage", "response": "a.b"}
    config = FinetuneConfig(model="tiny", columns=names, chat_template_kwargs=variables)
    assert config.columns == ("prompt=Frage", "response=a.b")
    assert config.chat_template_kwargs[::2] == ("enable_thinking=false", "greeting=Hi, you")
    assert template_options(config.chat_template_kwargs) == variables
    adapters = OptimizeConfig(model="tiny", adapters={"faq": Path("ft") / "faq"}).adapters
    assert adapters == (f"faq={Path('ft', 'faq')}",)
    for wrong in ({"columns": {"prompt": 3}}, {"columns": {"frage": "prompt"}}, {"data": {"a": "b"}},
                  {"chat_template_kwargs": {"a": object()}}):
        with pytest.raises(UsageError):
            FinetuneConfig(model="tiny", **wrong)


@pytest.mark.parametrize("columns", ["prompt=Frage,response=Antwort", ["prompt=Frage, response=Antwort"]])
def test_several_names_of_fields_in_one_text_are_refused(columns):
    with pytest.raises(UsageError, match="several names in one text"):
        phicli.inspect("a.jsonl", columns=columns)
    assert FinetuneConfig(model="tiny", columns="prompt=Frage, bitte").columns == ("prompt=Frage, bitte",)


@pytest.mark.parametrize("step", [phicli.inspect, phicli.finetune, phicli.benchmark])
def test_progress_that_is_none_comes_with_what_is_wanted(step):
    with pytest.raises(UsageError, match="needs an object with the methods task, note and warn, not <built") as caught:
        step(progress=print)
    assert caught.value.where == "progress" and "Bars()" in caught.value.hint


def test_libraries_are_silent_in_a_program(tmp_path, data_file):
    """What is seen of a step is its result: no bars, prints and log lines of transformers, genai and onnxruntime."""
    (tmp_path / "program.py").write_text(
        "import phicli\n"
        "phicli.quantize('tiny', root='lab', samples=8, seq_len=64, device='cpu')\n"
        f"phicli.finetune('tiny', root='lab', data={str(data_file)!r}, max_steps=2, device='cpu')\n"
        "phicli.optimize('tiny', root='lab', device='cpu')\n"
        f"phicli.evaluate('tiny', root='lab', eval_data={str(data_file)!r}, rows=2, device='cpu')\n")
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=280)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
