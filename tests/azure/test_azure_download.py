import json
import os
import shutil

import pytest
from azure_files import contents
from azure_stub import Fault

from phicli.artifacts.stages import Manifest, write_manifest
from phicli.errors import BadInput
from phicli.hub.models import local_tokenizer, resolve_model

NAME = "ft-for-travel"


@pytest.fixture
def uploaded(cloud, cli, model):
    assert cli("upload", *cloud.target).code == 0
    cloud.proxy.reset()
    return cloud


def in_registry(cloud, folder, registry="azureml", name="Phi", version="4", prefix="phi/4"):
    """Put a folder's files where a registry has them."""
    for file, data in contents(folder).items():
        cloud.box.upload_blob(f"{prefix}/{file}", data, overwrite=True)
    cloud.azure.registry[registry, name, version] = (
        f"https://devstoreaccount1.blob.core.windows.net/azureml-blobstore/{prefix}")
    return f"azureml://registries/{registry}/models/{name}/versions/{version}"


def test_round_trip_through_the_cache(uploaded, start, cli, model):
    process = start("download", *uploaded.target)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    folder = model.parent / out.strip()
    assert contents(folder) == contents(model)
    assert str(folder).startswith(os.environ["XDG_CACHE_HOME"])
    uploaded.azure.log.clear()
    uploaded.proxy.reset()
    again = cli("download", "azureml:ft-for-travel:1", *uploaded.target, "--json")
    found = json.loads(again.out)
    assert (found["status"], found["path"], found["bytes_fetched"]) == ("already there", str(folder), 0)
    assert uploaded.azure.log == [] and uploaded.proxy.received == 0


def test_long_references_and_labels(uploaded, cli, model, tmp_path):
    workspace = (f"azureml://subscriptions/{uploaded.target[5]}/resourceGroups/travel-group"
                 f"/workspaces/travel-workspace/models/{NAME}")
    for number, reference in enumerate([f"{workspace}/versions/1", f"{workspace}/labels/latest"]):
        done = cli("download", reference, "--output", tmp_path / f"out{number}")
        assert done.code == 0 and done.out == f"{tmp_path / f'out{number}'}\n", done.err
        assert contents(tmp_path / f"out{number}") == contents(model)


def test_from_a_registry(cloud, cli, model):
    in_registry(cloud, model, version="3")
    reference = in_registry(cloud, model, version="4")
    assert cli("download", reference).code == 0
    done = cli("download", reference.replace("versions/4", "labels/latest"))
    assert done.code == 0 and done.out.endswith("registries/azureml/Phi/4\n") and "already there" in done.err
    assert contents(model.parent / done.out.strip()) == contents(model)


def test_the_manifest_comes_along_and_is_checked(cloud, cli, model):
    write_manifest(model, Manifest("optimize", {"base": "f1"}, {}))
    assert cli("upload", *cloud.target).code == 0
    done = cli("download", "azureml:ft-for-travel:1", *cloud.target)
    assert done.code == 0 and contents(model.parent / done.out.strip()) == contents(model)
    data = (model / "model.onnx.data").read_bytes()
    (model / "model.onnx.data").write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    refused = cli("download", in_registry(cloud, model))
    assert refused.code == 5 and "model.onnx.data has other content than the step wrote" in refused.err


def test_line_cut_twice_resumes_and_fetches_little_again(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("PHICLI_AZURE_CONNECTIONS", "1")
    (model / "model.onnx.data").write_bytes(os.urandom(48_000_000))
    reference = in_registry(cloud, model, name="Big", prefix="big/1")
    size = sum(map(len, contents(model).values()))
    received = 0
    for share in (0.4, 0.8):
        cloud.proxy.reset()
        cloud.proxy.cut_after = int(share * size) - received
        cut = cli("download", reference)
        assert cut.code == 5, cut.err
        received += cloud.proxy.received
    cloud.proxy.reset()
    done = cli("download", reference)
    assert done.code == 0, done.err
    received += cloud.proxy.received
    assert size < received < 1.15 * size
    assert contents(model.parent / done.out.strip()) == contents(model)


def test_damaged_copy_is_found_and_not_kept(uploaded, cli, tmp_path):
    prefix = uploaded.azure.models[NAME, "1"]["properties"]["modelUri"].partition("/paths/")[2]
    blob = uploaded.box.get_blob_client(f"{prefix}/model.onnx")
    sha256 = blob.get_blob_properties().metadata["sha256"]
    blob.upload_blob(os.urandom(700_001), overwrite=True, metadata={"sha256": sha256})
    done = cli("download", *uploaded.target, "--output", tmp_path / "out")
    assert done.code == 5 and "model.onnx: not the content that was uploaded" in done.err
    assert not (tmp_path / "out").exists()


def test_cache_that_lost_a_file_is_fetched_again(uploaded, cli, model):
    folder = model.parent / cli("download", *uploaded.target).out.strip()
    (folder / "model.onnx").unlink()
    assert cli("download", *uploaded.target).code == 0
    assert contents(folder) == contents(model)


def test_a_folder_with_something_else_stays_as_it_is(uploaded, cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = cli("download", *uploaded.target, "--output", tmp_path / "mine")
    assert done.code == 3 and "holds something else" in done.err
    assert contents(tmp_path / "mine") == {"letter.txt": b"dear"}


def test_file_name_that_leads_out_is_refused(cloud, cli, model):
    reference = in_registry(cloud, model, name="Evil", prefix="evil/1")
    cloud.box.upload_blob("evil/1/c:evil.txt", b"x", overwrite=True)
    done = cli("download", reference)
    assert done.code == 3 and "leads out of the model's folder" in done.err
    assert not list(model.parents[2].glob("cache/**/*.txt"))


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("azureml://registries/azureml/models/Phi", 3, "not a reference to a model"),
        ("azureml://registries/azureml/models/../versions/1", 3, "not a reference to a model"),
        ("azureml:Phi@newest", 3, "no label that models have"),
        ("azureml://registries/nobody/models/Phi/versions/1", 4, "registry 'nobody': not found"),
        (f"azureml:{NAME}:99", 4, f"model '{NAME}' in workspace 'travel-workspace': not found"),
    ],
)
def test_what_is_not_there(uploaded, cli, reference, code, message):
    done = cli("download", reference, *uploaded.target)
    assert (done.code, done.out) == (code, "") and message in done.err, done.err


@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 5), (500, 5), (503, 5)])
@pytest.mark.parametrize("where", ["/discovery", "GET .*/models/Phi", "/datarefs/"])
def test_faults_of_a_registry(cloud, cli, model, where, status, code):
    reference = in_registry(cloud, model)
    cloud.azure.faults = [Fault(where, status)]
    done = cli("download", reference)
    assert (done.code, done.out) == (code, ""), done.err
    assert not list(model.parents[2].glob("cache/**/model.onnx"))


def test_a_registry_model_serves_as_a_model(cloud, tiny, tmp_path):
    """As `--model azureml://…` does: fetched, found inside MLflow's folders, checked; later runs use the cache."""
    shutil.copytree(tiny, tmp_path / "package" / "mlflow_model" / "data" / "model")
    reference = in_registry(cloud, tmp_path / "package", name="Phi-tiny", prefix="tiny/1")
    assert local_tokenizer(reference) is None
    folder = resolve_model(reference)
    assert contents(folder) == contents(tiny)
    cloud.azure.log.clear()
    assert resolve_model(reference) == folder == local_tokenizer(reference)
    assert cloud.azure.log == []
    with pytest.raises(BadInput):
        resolve_model("azureml://nonsense")
