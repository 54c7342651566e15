"""Images and manifests: checked by hadolint and by the schemas of Kubernetes; what the image installs is enough."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from safetensors.numpy import save_file

import phicli
from phicli.artifacts.stages import Manifest, write_manifest
from phicli.config import ServeConfig
from phicli.config.deploy import DeployConfig
from phicli.deployment.image import PACKAGES, RUNTIMES, build_context, collect_model, requirements
from phicli.deployment.manifests import inference_service, kubernetes, write_manifests
from phicli.errors import BadInput, Missing, UsageError
from phicli.serving.settings import base_name


@pytest.fixture
def root(tmp_path):
    (tmp_path / "onnx-ao" / "adapters").mkdir(parents=True)
    (tmp_path / "onnx-ao" / "genai_config.json").write_text("{}")
    (tmp_path / "onnx-ao" / ".hidden").write_text("not served")
    for name, about in (("travel", {"peft_type": "LORA", "r": 20, "lora_alpha": 40}),
                        ("lokr", {"peft_type": "LOKR", "r": 4})):
        (tmp_path / "ft" / name).mkdir(parents=True)
        (tmp_path / "ft" / name / "adapter_config.json").write_text(json.dumps(about))
    layer = "base_model.model.model.layers.0.self_attn.o_proj"
    matrices = {"A": np.ones((20, 8), np.float32), "B": np.ones((8, 20), np.float32)}
    save_file({f"{layer}.lora_{name}.weight": matrix for name, matrix in matrices.items()},
              tmp_path / "ft" / "travel" / "adapter_model.safetensors")
    (tmp_path / "awq").mkdir()
    (tmp_path / "awq" / "config.json").write_text('{"model_type": "phi3"}')
    write_manifest(tmp_path / "awq", Manifest("quantize", {}, {}))
    return tmp_path


@pytest.mark.parametrize(("engine", "processor"), [("phicli", "cpu"), ("phicli", "cuda"), ("vllm", "cuda")])
def test_a_folder_that_docker_builds(root, engine, processor):
    config = DeployConfig(model="m", root=str(root), engine=engine, processor=processor)
    folder = build_context(config, root / "out")
    checked = subprocess.run([Path(sys.executable).with_name("hadolint"), "--no-color", folder / "Dockerfile"],
                             capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert subprocess.run(["sh", "-n", folder / "serve.sh"]).returncode == 0
    ignored = (folder / ".dockerignore").read_text().split()
    copied = {name for line in (folder / "Dockerfile").read_text().splitlines() if line.startswith("COPY")
              for name in line.split()[1:-1]}
    assert ignored[0] == "*" and {name[1:] for name in ignored[1:]} == copied | {"Dockerfile"}
    assert all((folder / name).exists() for name in copied)
    served = {path.relative_to(folder / "model").as_posix() for path in (folder / "model").rglob("*") if path.is_file()}
    if engine == "phicli":
        assert served == {"genai_config.json"}
    else:
        assert served == {"base/config.json", "base/phicli.json", "adapters/travel/adapter_config.json",
                          "adapters/travel/adapter_model.safetensors"}


def started(folder: Path, model: Path, keys: str | None, tmp_path: Path) -> tuple[list[str], str, str]:
    """What a start script of vLLM's image runs, with a program in python's place: its arguments, the key, errors."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "python3").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ['VLLM_API_KEY']]))\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    place = tmp_path / "keys.txt"
    place.unlink(missing_ok=True)
    if keys is not None:
        place.write_text(keys)
    script = (folder / "serve.sh").read_text()
    script = script.replace("/run/secrets/api-key", str(place)).replace("/app/model", str(model))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    arguments, key = json.loads(done.stdout) if done.returncode == 0 else ([], "")
    return arguments, key, done.stderr


@pytest.mark.parametrize(("model", "name"), [("org/Model-1", "org/Model-1"), ("my models/a 'b'", "a 'b'")])
def test_the_model_has_the_name_that_serve_gives_it(root, tmp_path, monkeypatch, model, name):
    monkeypatch.chdir(tmp_path)
    if model.startswith("my"):
        (tmp_path / model).mkdir(parents=True)
    assert base_name(ServeConfig(model=model, root=str(root))) == name
    ours = build_context(DeployConfig(model=model, root=str(root)), root / "ours")
    last = (ours / "serve.sh").read_text().partition("\nexec ")[2].replace("\\\n", " ")
    words = shlex.split(last)
    assert words[words.index("--name") + 1] == name
    folder = build_context(DeployConfig(model=model, root=str(root), engine="vllm"), root / "out")
    arguments, _, errors = started(folder, folder / "model", "key", tmp_path)
    assert arguments[arguments.index("--served-model-name") + 1] == name, errors


def test_vllm_gets_the_key_and_every_adapter_whatever_its_name(root, tmp_path):
    (root / "ft" / "travel").rename(root / "ft" / "it's a=b, c")
    folder = build_context(DeployConfig(model="m", root=str(root), engine="vllm"), root / "out")
    arguments, key, _ = started(folder, folder / "model", "# remark\n\n  the key \t\n", tmp_path)
    assert key == "the key"
    modules = arguments[arguments.index("--lora-modules") + 1 :]
    assert [json.loads(module) for module in modules] == [
        {"name": "it's a=b, c", "path": str(folder / "model" / "adapters" / "it's a=b, c")}]
    assert arguments[arguments.index("--max-lora-rank") + 1] == "32"
    guard = arguments[arguments.index("--middleware") + 1]
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {guard.split('.')[0]} as found; print(found.Guard)"
    subprocess.run([sys.executable, "-I", "-c", code, folder], check=True)  # without phicli


@pytest.mark.parametrize("keys", [None, "", "\n# only a remark\n", "one\ntwo\n"],
                         ids=["none", "empty", "remark", "two"])
def test_vllm_does_not_start_without_one_key(root, tmp_path, keys):
    folder = build_context(DeployConfig(model="m", root=str(root), engine="vllm"), root / "out")
    arguments, _, errors = started(folder, folder / "model", keys, tmp_path)
    assert not arguments and "key" in errors and "keys.txt" in errors and "sed" not in errors


def test_the_image_has_what_answering_imports():
    """Of the packages that answering imports, each is installed into the image, or by one of those."""
    code = ("import sys, phicli.inference.session, phicli.inference.conversation, phicli.cli.main, onnxruntime_genai;"
            "print(*sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))")
    found = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert "onnxruntime_genai" in found and not found & {"torch", "transformers", "olive", "azure"}
    for processor in RUNTIMES:
        names = {Requirement(line).name for line in requirements(processor)}
        assert names == {*PACKAGES, *RUNTIMES[processor]}
    assert {"numpy", "onnx", "ml_dtypes", "typer"} & found <= {name.replace("-", "_") for name in PACKAGES}


@pytest.mark.parametrize("options", [{}, {"most_instances": 4}, {"engine": "vllm"}, {"processor": "cuda"}])
def test_manifests_are_what_kubernetes_takes(tmp_path, options):
    config = DeployConfig(model="m", root=str(tmp_path), to="kubernetes", name="travel", **options)
    file = write_manifests(config, tmp_path / "deploy.yaml")
    documents = list(yaml.safe_load_all(file.read_text()))
    assert documents == kubernetes(config)
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    kinds = [document["kind"] for document in documents]
    assert kinds == ["Deployment", "Service", *(["HorizontalPodAutoscaler"] if config.most_instances else [])]
    limits = documents[0]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == ({"nvidia.com/gpu": "1"} if {"vllm", "cuda"} & set(options.values()) else {})


def test_a_wrong_manifest_is_found(tmp_path):
    document = kubernetes(DeployConfig(model="m", root=str(tmp_path), to="kubernetes"))[0]
    document["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["every"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kserves_predictor_is_a_pod_with_a_number_of_replicas(tmp_path):
    document = inference_service(DeployConfig(model="m", root=str(tmp_path), to="kserve", most_instances=4))
    predictor = document["spec"]["predictor"]
    assert (predictor.pop("minReplicas"), predictor.pop("maxReplicas")) == (1, 4)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"], "spec": predictor}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_model_that_is_collected_again_has_nothing_of_the_one_before(root):
    """An adapter that was removed since would be registered, and served, with the next deployment."""
    (root / "onnx-ao" / "adapters" / "old.onnx_adapter").write_text("old")
    place = root / "deploy" / "azureml" / "model"
    collect_model(DeployConfig(model="m", root=str(root), engine="vllm"), place)
    assert (place / "base").is_dir()
    ours = DeployConfig(model="m", root=str(root))
    assert (collect_model(ours, place) / "adapters" / "old.onnx_adapter").is_file()
    (root / "onnx-ao" / "adapters" / "old.onnx_adapter").unlink()
    collect_model(ours, place)
    assert [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()] == ["genai_config.json"]


def test_what_is_not_ours_stays(root):
    config = DeployConfig(model="m", root=str(root))
    mine = root / "mine"
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"a\.txt"):
        build_context(config, mine)
    out = build_context(config, root / "out")
    assert build_context(config, out) == out  # its own, again
    (out / "notes").write_text("mine")
    with pytest.raises(BadInput, match="notes"):
        build_context(config, out)
    (mine / "a.txt").rename(mine / "Dockerfile")
    with pytest.raises(BadInput, match="no Dockerfile of"):
        build_context(config, mine)
    (file := root / "deploy.yaml").write_text("mine: 1")
    with pytest.raises(BadInput, match="no manifest of"):
        write_manifests(DeployConfig(model="m", root=str(root), to="kubernetes"), file)
    assert file.read_text() == "mine: 1"
    assert (mine / "Dockerfile").read_text() == (out / "notes").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"name": "Bad Name"}, {"name": "UPPER"}, {"namespace": "a b"}, {"name": "x" * 64},
                                   {"instances": 4, "most_instances": 2}, {"to": "azureml", "name": "a"},
                                   {"to": "azureml", "deployment": "Grün"},
                                   {"image": "a b"}, {"image": ""}, {"image": "-f"}, {"vllm_image": "a;b"}])
def test_names_and_numbers_that_no_cluster_takes(wrong):
    with pytest.raises(UsageError):
        DeployConfig(model="m", **{"to": "kubernetes", **wrong})


@pytest.mark.parametrize(("options", "idle"), [
    (("--engine", "vllm", "--processor", "cpu"), "--engine vllm: --processor"), (("--engine", "vllm"), None),
    (("--vllm-image", "mine"), "--engine phicli: --vllm-image"), (("--processor", "cuda"), None)])
def test_what_an_engine_does_not_take_is_named(cli, root, options, idle):
    done = cli("deploy", "--to", "kubernetes", "--root", root, "--model", "m", *options)
    assert done.code == 0 and ("of no effect" in done.err) == bool(idle)
    assert not idle or f"warning: of no effect with {idle}\n" in done.err


AZURES = ("--deployment", "green", "--traffic", "10", "--instance-type", "x", "--workspace-name", "w")
MANIFESTS = ("--instances", "2", "--namespace", "q")


@pytest.mark.parametrize(("to", "options", "idle"), [
    ("docker", (*AZURES, *MANIFESTS, "--name", "trip"),
     "--name, --deployment, --traffic, --instance-type, --workspace-name, --instances, --namespace"),
    ("docker", ("--image", "mine:1"), None),
    ("kubernetes", (*AZURES, *MANIFESTS, "--name", "trip"),
     "--deployment, --traffic, --instance-type, --workspace-name"),
    ("kserve", (*MANIFESTS, "--image", "mine:1", "--output", "a.yaml"), None),
    ("azureml", ("--instance-type", "x", "--image", "mine:1", "--namespace", "q"), "--image, --namespace")])
def test_what_a_target_does_not_take_is_named_and_not_carried_on(cli, root, tmp_path, monkeypatch, to, options, idle):
    monkeypatch.chdir(tmp_path)
    more = ("--dry-run",) if to == "azureml" else ()
    done = cli("deploy", "--to", to, "--root", root, "--model", "m", *options, *more)
    assert done.code == 0 and ("of no effect" in done.err) == bool(idle), done.err
    assert not idle or f"warning: of no effect with --to {to}: {idle}\n" in done.err
    following = [line for line in done.err.splitlines() if line.startswith("next: ")]
    if to == "docker":
        kept = " --name trip --instances 2 --namespace q" if idle else " --image mine:1"
        assert following == [f"next: phicli deploy --model m --root {root}{kept} --to kubernetes"]
    if to == "azureml":
        assert following == [f"next: phicli deploy --model m --root {root} --to azureml --instance-type x"]


@pytest.mark.parametrize(("engine", "hint"), [("phicli", "phicli run"), ("vllm", "phicli quantize")])
@pytest.mark.parametrize("to", [("kubernetes",), ("kserve",), ("docker",), ("azureml",),
                                ("azureml", "--instance-type", "x", "--dry-run")])
def test_no_model_is_said_before_a_price_is_or_a_file_is_written(cli, root, to, engine, hint):
    done = cli("deploy", "--root", root / "none", "--model", "tiny", "--engine", engine, "--to", *to)
    assert done.code == 4 and "billed" not in done.err and not (root / "none" / "deploy").exists()
    assert f"try: {hint} --model tiny --root {root / 'none'}\n" in done.err
    with pytest.raises(Missing, match=r"there|yet"):
        phicli.deploy("tiny", root=root / "none", engine=engine, to="kubernetes")


def test_a_quantized_model_is_only_to_be_optimized(cli, root):
    (root / "onnx-ao" / "genai_config.json").unlink()
    done = cli("deploy", "--root", root, "--model", "m", "--to", "kubernetes")
    assert done.code == 4 and f"try: phicli optimize --model m --root {root}\n" in done.err


@pytest.mark.parametrize(("to", "first"), [("docker", "docker build --tag mine:1 "), ("kubernetes", "kubectl "),
                                           ("kserve", "kubectl ")])
def test_what_was_written_as_json(cli, root, to, first):
    place = root / "a place"
    done = cli("deploy", "--to", to, "--root", root, "--model", "m", "--image", "mine:1", "--output", place, "--json")
    found = json.loads(done.out)
    assert (found["path"], found["to"], place.exists()) == (str(place), to, True)
    assert found["commands"][0].startswith(first)
    assert any(str(place) in shlex.split(line) for line in found["commands"])
    billed = cli("deploy", "--root", root, "--model", "m", "--instance-type", "Small", "--dry-run", "--json")
    assert json.loads(billed.out)["billed"].startswith("1 x Small")


def test_a_dry_run_writes_no_files(root):
    line = [sys.executable, "-m", "phicli", "deploy", "--to", "docker", "--root", root, "--model", "m", "--dry-run"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and "--to azureml" in done.stderr and not (root / "deploy").exists()
    assert f"  try: phicli deploy --model m --root {root} --to docker --output FOLDER\n" in done.stderr


@pytest.mark.parametrize(("options", "hint"), [
    (("--name", "trip", "--traffic", "10"), "--name trip --traffic 10 --instance-type Standard_DS3_v2"),
    (("--name", "trip", "--instance-type", "x", "--question", "What now?"),
     "--name trip --instance-type x --question 'What now?' --yes"),
    (("--to", "kubernetes", "--instances", "2", "--image", "-f"),
     "--to kubernetes --instances 2 --image phicli-serve:latest")])
def test_what_is_to_be_given_is_the_whole_command(cli, root, options, hint):
    done = cli("deploy", "--root", root, "--model", "m", *options)
    assert done.code == 2 and f"  try: phicli deploy --model m --root {root} {hint}\n" in done.err
