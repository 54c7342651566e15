"""`phicli doctor` on this machine as it is, and with things broken that can be broken here."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from onnx_checkpoints import nearest_awq

from phicli.artifacts.stages import Manifest, write_manifest
from phicli.config.layers import Settings
from phicli.config.steps import FinetuneConfig
from phicli.doctor import CHECKS, Light, accounts, software
from phicli.doctor.gpu import why_not_cuda
from phicli.doctor.needs import longest_row
from phicli.doctor.probes import CUDA, Outcome
from phicli.hardware.driver import gpu_count
from phicli.text import TextCodec

no_gpu = pytest.mark.skipif(gpu_count() > 0, reason="needs a machine without a GPU")


def lights(done):
    return {c["check"]: c for c in json.loads(done.out)["checks"]}


def distribution(folder, name, version):
    """A package that is installed as far as its metadata go."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_report_for_people_names_every_check_and_the_cures(cli, tmp_path):
    done = cli("doctor", "--model", "tiny", "--root", tmp_path, "--device", "cpu")
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    for name in CHECKS:
        assert any(line.startswith(("green", "yellow")) and f" {name}: " in line for line in lines), name
    assert "\x1b" not in done.out and "5.51 million parameters" in done.out
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("What tiny needs (finetune: 8 rows of ")):]
    assert max(map(len, table)) <= 80 and [line.split()[1] for line in table if line.startswith("│")] == [
        "quantize", "finetune", "optimize", "evaluate", "chat"]
    assert "        try: phicli azure use" in done.out  # nobody has chosen a workspace in a test
    assert lines[-1].startswith("ready for the lab with tiny; with less than there could be: ")
    told = [line for line in lines if line.startswith("green")]
    assert not [line for line in told if re.search(r"rror|ailed|failure|unsupported", line)], told
    assert done.err.splitlines()[-1] == f"next: phicli run --model tiny --root {tmp_path} --device cpu"


def test_document_and_what_each_step_needs(cli, tmp_path):
    done = cli("doctor", "--root", tmp_path, "--device", "cpu", "--json")
    document = json.loads(done.out)
    assert document["model"] == "microsoft/Phi-3.5-mini-instruct" and document["light"] in ("yellow", "red")
    found = lights(done)
    assert list(found) == list(CHECKS)
    wanted = found["memory"]["figures"]["needs"]
    assert list(wanted) == ["quantize", "finetune", "optimize", "evaluate", "chat"]
    assert 1e9 < wanted["quantize"] < 20e9
    takes, room = found["memory"]["figures"]["takes_where_free"]["finetune"]  # weights unpacked, 4 bytes each
    assert takes - wanted["finetune"] > 14e9 and room > 4 * 14e9
    assert f"({takes / 1e9:.1f} GB where {room / 1e9:.1f} GB are free)" in found["memory"]["found"]
    assert found["onnxruntime"]["figures"]["used"] == ["CPUExecutionProvider"]
    assert 7e9 < found["model"]["figures"]["bytes"] < 8e9
    needs = document["needs"]
    assert needs["before"] == {"download": found["model"]["figures"]["bytes"]} and list(needs["steps"]) == list(wanted)
    assert {step: one["memory"] for step, one in needs["steps"].items()} == wanted
    assert needs["steps"]["finetune"]["gpu_of_gb"] == 12 and "finetune" not in needs["gpus"]["8"]
    assert needs["gpus"]["80"] == list(wanted) and "chat" in needs["gpus"]["6"]


@no_gpu
def test_a_gpu_that_is_asked_for_and_not_there_is_red(cli, tmp_path):
    done = cli("doctor", "--model", "tiny", "--root", tmp_path, "--device", "cuda", "--json")
    assert done.code == 4
    found = lights(done)
    assert {name for name, c in found.items() if c["light"] == "red"} == {"GPU", "torch", "onnxruntime CUDA",
                                                                          "GPU memory"}
    assert "falls back to the CPU: " in found["onnxruntime CUDA"]["found"] and found["onnxruntime CUDA"]["cure"]


@pytest.mark.gpu
def test_a_gpu_that_is_there_is_used_by_torch_and_onnxruntime(cli, tmp_path):
    done = cli("doctor", "--model", "tiny", "--root", tmp_path, "--json")
    found = lights(done)
    assert done.code == 0, done.out
    assert found["onnxruntime CUDA"]["figures"]["used"][0] == CUDA
    assert "cublas" in found["onnxruntime CUDA"]["figures"]["libraries"]
    assert found["torch"]["figures"]["gpus"][0]["right"]


def test_rows_are_as_long_as_finetune_finds_them(data_file, tiny):
    config, codec = Settings().resolve(FinetuneConfig), TextCodec(tiny)
    rows = [json.loads(line) for line in data_file.read_text().splitlines()]
    longest = max(len(codec.encode_chat([{"role": "user", "content": row["prompt"]},
                                         {"role": "assistant", "content": row["response"]}])) for row in rows)
    assert longest / 1.3 < longest_row(config) < longest * 1.3


def test_a_package_of_the_wrong_version_and_one_that_crashes(cli, tmp_path, monkeypatch):
    distribution(tmp_path, "peft", "0.1")
    broken = tmp_path / "onnxruntime_genai"
    broken.mkdir()
    (broken / "__init__.py").write_text("import os; os.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = cli("doctor", "--model", "tiny", "--root", tmp_path, "--device", "cpu", "--json")
    found = lights(done)
    assert done.code == 4
    assert found["packages"]["found"] == "peft 0.1 (needs >=0.21)"
    assert found["packages"]["cure"] == "pip install 'peft>=0.21'"
    assert found["onnxruntime-genai"]["light"] == "red" and "signal 6" in found["onnxruntime-genai"]["found"]
    assert found["onnxruntime"]["light"] == "green"


def test_versions_other_than_tested_and_twins_are_yellow(tmp_path, monkeypatch):
    assert software.tested_versions()["olive-ai"].count(".") == 2
    distribution(tmp_path, "peft", "9.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = software.packages(None)
    assert found.light == Light.YELLOW and "peft 9.0 (tested with " in found.found
    assert found.cure.endswith(f"peft=={software.tested_versions()['peft']}")
    distribution(tmp_path, "onnxruntime", "1.31.1")
    distribution(tmp_path, "onnxruntime-gpu", "1.31.1")
    found = software.packages(None)
    assert found.light == Light.YELLOW and "overwrite each other" in found.found


@pytest.mark.parametrize(("said", "available", "reason"), [
    ("[E:onnxruntime] FAIL : Failed to load library /x/libonnxruntime_providers_cuda.so with error: libcudnn.so.9: "
     "cannot open shared object file\n[W:] Failed to create CUDAExecutionProvider. Require cuDNN 9.*",
     [CUDA], "libcudnn.so.9: cannot open shared object file"),
    ("CUDA failure 803: system has unsupported display driver / cuda driver combination ; GPU=0", [CUDA],
     "CUDA failure 803: system has unsupported display driver / cuda driver combination ; GPU=0"),
    ("", ["CPUExecutionProvider"], "this onnxruntime is built without CUDA"),
    ("", [CUDA], "no reason given"),
])
def test_the_reason_why_a_session_is_not_on_cuda(said, available, reason):
    document = {"available": available, "used": ["CPUExecutionProvider"], "right": True}
    assert why_not_cuda(Outcome(document, "", said)) == reason


def test_a_damaged_model_and_a_root_that_cannot_be_written(cli, tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    done = cli("doctor", "--model", tmp_path / "model", "--root", "/proc/phicli", "--device", "cpu", "--json")
    found = lights(done)
    assert done.code == 4
    assert found["model"]["light"] == "red" and "model.safetensors" in found["model"]["found"]
    assert found["write access"]["light"] == "red" and "/proc" in found["write access"]["found"]


def test_of_a_folder_that_is_no_model_it_says_what_is_missing_and_judges_nothing_by_its_weights(cli, tmp_path, tiny):
    (tmp_path / "model").mkdir()
    shutil.copy(tiny / "model.safetensors", tmp_path / "model")
    done = cli("doctor", "--model", tmp_path / "model", "--root", tmp_path / "root", "--device", "cpu", "--json")
    found = lights(done)
    assert done.code == 4 and json.loads(done.out)["needs"] is None
    assert "no config.json, tokenizer.json: not a" in found["model"]["found"]
    for check in ("memory", "disk"):
        assert found[check]["light"] == "yellow" and "what the model needs is not known" in found[check]["found"]


def test_a_model_that_cannot_be_had_is_red(tmp_path, tiny):
    """Offline by the user's will, whatever is known of the model; and where the hub does not answer, if it is asked."""
    def looked_at(model, *options, offline="0"):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9",
                       "HF_HUB_OFFLINE": offline}
        done = subprocess.run([sys.executable, "-m", "phicli", "doctor", "--model", model, "--root", tmp_path / "root",
                               "--device", "cpu", "--json", *options], text=True, env=environment, capture_output=True)
        found = {c["check"]: c for c in json.loads(done.stdout)["checks"]}["model"]
        assert (done.returncode == 4, "next: " in done.stderr) == (found["light"] == "red", found["light"] == "green")
        return found["light"], found["found"], found["cure"]

    published, other = "microsoft/Phi-3.5-mini-instruct", "owner/served"
    for model in (published, other):
        light, found, cure = looked_at(model, offline="1")
        assert light == "red" and "HF_HUB_OFFLINE keeps it from being fetched" in found
        assert cure == f"online: hf download {model}"
    assert looked_at(other)[0] == "red" and looked_at(published)[1].startswith(
        f"{published}, fetched from huggingface.co when first used, not asked for (--online): 3.82 billion")
    light, found, cure = looked_at(published, "--online")
    assert light == "red" and found.startswith(f"{published}: huggingface.co: ") and "--model tiny" in cure


def test_a_quantized_model_is_red_and_its_original_is_named(cli, tmp_path, tiny):
    folder = nearest_awq(tiny, tmp_path / "model")
    for named, original in ((False, "--model with its original"), (True, "phicli quantize --model tiny")):
        if named:
            write_manifest(folder, Manifest("quantize", {}, {}, origins={"model": {"path": str(tiny)}}))
        done = cli("doctor", "--model", folder, "--root", tmp_path / "root", "--device", "cpu", "--json")
        found = lights(done)["model"]
        assert (done.code, found["light"]) == (4, "red") and "is quantized already (awq)" in found["found"]
        assert found["found"].endswith("only finetune does, as --base") and found["cure"] == original
    refused = cli("quantize", "--model", folder, "--root", tmp_path / "root")
    assert refused.code == 3 and "  try: phicli quantize --model tiny\n" in refused.err
    assert f"   or: phicli finetune --model {folder} --root {tmp_path / 'root'} --base {folder}\n" in refused.err


@pytest.mark.parametrize(("model", "light", "cure"), [
    ("azureml:foo", "red", "azureml:N:V"),
    ("azureml://registries/r", "red", "azureml:N:V"),
    ("azureml:foo:3", "red", "phicli azure use"),  # which workspace's?
    ("azureml://registries/r/models/foo/versions/3", "green", None),
])
def test_references_of_azure_are_looked_at_without_asking_anybody(cli, tmp_path, monkeypatch, model, light, cure):
    monkeypatch.chdir(tmp_path)
    found = lights(cli("doctor", "--model", model, "--device", "cpu", "--json"))["model"]
    assert found["light"] == light and (cure or "") in (found["cure"] or "")


def test_a_full_disk_is_red(tmp_path):
    def mounted(command):
        script = f"mount -t tmpfs -o size=64k none {tmp_path} && exec {command}"
        return subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)

    if not shutil.which("unshare") or mounted("true").returncode:
        pytest.skip("file systems cannot be mounted here")
    done = mounted(f"{sys.executable} -m phicli doctor --model tiny --root {tmp_path} --device cpu --json")
    found = {c["check"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.returncode == 4 and found["disk"]["light"] == "red" and found["disk"]["cure"]


def test_sign_in_is_told_from_files_and_variables(tmp_path, monkeypatch):
    for name in (*accounts.TOKENS, *accounts.AZURE_VARIABLES, "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    assert accounts.token_place() is None and accounts.azure_way() is None
    (tmp_path / "token").write_text("hf_something\n")
    assert accounts.token_place() == str(tmp_path / "token")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert accounts.token_place() == "$HF_TOKEN"
    profile = {"subscriptions": [{"isDefault": True, "user": {"name": "ann@example.org"}}]}
    (tmp_path / "azureProfile.json").write_text(json.dumps(profile), encoding="utf-8-sig")
    (tmp_path / "az").write_text("#!/bin/sh\n")
    (tmp_path / "az").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accounts.azure_way() == "the Azure CLI (ann@example.org)"
    (tmp_path / "azureProfile.json").write_text("[]")
    assert accounts.azure_way() is None


def test_errors_of_something_missing_point_to_the_doctor(cli, tmp_path):
    missing = cli("chat", "--root", tmp_path / "none", "--prompt", "hello")
    assert missing.code == 4 and missing.err.rstrip().endswith(f"  see: phicli doctor --root {tmp_path}/none")
    wrong = cli("inspect", tmp_path / "none.jsonl")
    assert wrong.code == 3 and "doctor" not in wrong.err


def test_wrong_options(cli, tmp_path):
    assert cli("doctor", "--device", "npu").code == 2
    assert cli("doctor", "--model", tmp_path / "none").code == 4  # a result like any other
