import json
import os
import re
import signal
import threading
import time

import pytest
from azure_files import contents

from phicli import UsageError, WorkspaceConfig, upload
from phicli.artifacts.stages import Manifest, fingerprint, write_manifest

NAME = "ft-for-travel"


def test_upload_stores_and_registers_everything(cloud, start, model):
    """The real command line in a process of its own; ignore files have no say."""
    process = start("upload", *cloud.target)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == (f"azureml://subscriptions/{cloud.target[5]}/resourceGroups/travel-group/workspaces/travel-workspace"
                   f"/models/{NAME}/versions/1\n")
    assert cloud.stored(NAME, "1") == contents(model)
    assert "not uploaded, since it is hidden: .amlignore" in err


def test_a_link_inside_counts_as_its_file(cloud, cli, model):
    (model / "copy.onnx").symlink_to("model.onnx")
    assert cli("upload", *cloud.target).code == 0
    assert cloud.stored(NAME, "1") == contents(model) and "copy.onnx" in contents(model)


def test_same_content_is_already_there(cloud, cli, model):
    assert cli("upload", *cloud.target).code == 0
    cloud.proxy.reset()
    cloud.azure.log.clear()
    again = cli("upload", *cloud.target)
    assert again.code == 0 and "already there" in again.err and again.out.endswith("/versions/1\n")
    assert cloud.proxy.sent == 0 and not [r for r in cloud.azure.log if r.startswith("PUT")]
    assert cli("upload", *cloud.target, "--version", 1).code == 0
    assert list(cloud.azure.models) == [(NAME, "1")]


def test_other_content_under_the_same_version(cloud, cli, model):
    assert cli("upload", *cloud.target, "--version", 7).code == 0
    before = cloud.stored(NAME, "7")
    (model / "genai_config.json").write_text('{"other": 1}')
    refused = cli("upload", *cloud.target, "--version", 7)
    assert refused.code == 3 and "--version 8" in refused.err and refused.out == ""
    assert cloud.stored(NAME, "7") == before and list(cloud.azure.models) == [(NAME, "7")]
    assert cli("upload", *cloud.target).out.endswith("/versions/8\n")


def test_dry_run_writes_nothing(cloud, cli, model):
    shown = cli("upload", *cloud.target, "--dry-run", "--json")
    document = json.loads(shown.out)
    assert shown.code == 0 and document["status"] == "dry run" and document["version"] == "1"
    assert document["bytes_sent"] == document["bytes"] == sum(map(len, contents(model).values()))
    assert document["files"]["model.onnx.data"] == 5_000_000 and document["left_out"] == [".amlignore", ".gitignore"]
    assert cloud.azure.models == {} and not [r for r in cloud.azure.log if r.startswith("PUT")]
    prefix = document["destination"].partition("/")[2]
    assert list(cloud.box.list_blobs(name_starts_with=prefix, include=["uncommittedblobs"])) == []
    table = cli("upload", *cloud.target, "--dry-run")
    assert "model.onnx.data" in table.out and "6000003" in table.out and "would send 6.0 MB" in table.err
    proposed = cli("upload", "--path", model, "--tag", "team=a b", *cloud.target, "--dry-run").err
    assert f"--path {model} --tag 'team=a b'" in proposed.splitlines()[-1], proposed


def test_manifest_and_evaluation_become_tags_and_properties(cloud, cli, model):
    quantized = model.parent / "awq"
    quantized.mkdir()
    write_manifest(quantized, Manifest("quantize", {}, {"algorithm": "awq", "bits": 4}))
    settings = {"device": "cpu", "max_rank": 64, "data": "/home/x/y"}
    (quantized / "model.safetensors").write_bytes(b"weights")
    write_manifest(model, Manifest("optimize", {"base": fingerprint(quantized)}, settings,
                                   quality={"kl": 0.00012345678, "layers": [0.1] * 32}))
    (model.parent / "evaluation.json").write_text(json.dumps(
        {"model": "tiny", "rows": 40, "stages": [{"stage": "ONNX + travel", "perplexity": 4.5, "kl": None}]}))
    done = cli("upload", *cloud.target, "--tag", "team=travel", "--tag", "note=a=b", "--description", "Rome")
    assert done.code == 0, done.err
    made = cloud.azure.models[NAME, "1"]["properties"]
    assert made["tags"] == {"base_model": "microsoft/Phi-3.5-mini-instruct", "algorithm": "awq", "adapters": "travel",
                            "team": "travel", "note": "a=b"}
    assert made["description"] == "Rome"
    found = made["properties"]
    assert found["phicli.settings.device"] == "cpu" and found["phicli.quality.kl"] == "0.000123457"
    assert found["evaluation.ONNX_travel.perplexity"] == "4.5" and found["evaluation.rows"] == "40"
    assert re.fullmatch("[0-9a-f]{64}", found["phicli.digest"])
    assert "phicli.settings.data" not in found and "phicli.quality.layers" not in found


def test_line_cut_twice_resumes_and_sends_little_again(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("PHICLI_AZURE_CONNECTIONS", "4")
    (model / "model.onnx.data").write_bytes(os.urandom(24_000_000))
    size = sum(map(len, contents(model).values()))
    sent = 0
    for share in (0.4, 0.8):
        cloud.proxy.reset()
        cloud.proxy.cut_after = int(share * size) - sent
        cut = cli("upload", *cloud.target)
        assert cut.code == 5 and "what was sent stays sent" in cut.err, cut.err
        assert cloud.azure.models == {}
        sent += cloud.proxy.sent
    cloud.proxy.reset()
    assert cli("upload", *cloud.target).code == 0
    sent += cloud.proxy.sent
    assert size < sent < 1.1 * size
    assert cloud.stored(NAME, "1") == contents(model)


def test_signature_is_renewed_before_it_ends(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("PHICLI_AZURE_CONNECTIONS", "1")
    cloud.azure.sas_seconds, cloud.proxy.delay = 1.0, 0.01
    done = cli("upload", *cloud.target)
    assert done.code == 0, done.err
    assert sum("listSecrets" in r for r in cloud.azure.log) >= 3
    assert cloud.stored(NAME, "1") == contents(model)


def test_refused_signature_is_renewed_once(cloud, cli, model):
    cloud.azure.bad_sas = 1
    assert cli("upload", *cloud.target).code == 0
    cloud.azure.bad_sas = 1 << 30
    (model / "genai_config.json").write_text("{ }")
    cloud.azure.log.clear()
    refused = cli("upload", *cloud.target)
    assert refused.code == 5 and "not allowed (403" in refused.err and list(cloud.azure.models) == [(NAME, "1")]
    assert sum("listSecrets" in r for r in cloud.azure.log) <= 3


@pytest.mark.parametrize("secret", ["key", "none"])
def test_other_ways_into_the_storage(cloud, cli, model, secret):
    """An account key, and a datastore without a secret, which the user's own login opens."""
    cloud.azure.secret = secret
    done = cli("upload", *cloud.target)
    assert done.code == 0, done.err
    assert cloud.stored(NAME, "1") == contents(model)


def test_interrupt_ends_at_once_and_the_next_upload_goes_on(cloud, start, model, cli):
    cloud.proxy.delay = 0.2
    process = start("upload", *cloud.target)
    deadline = time.monotonic() + 30
    while cloud.proxy.sent < 1_500_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - begun < 2 and process.returncode == 130
    assert cloud.azure.models == {}
    before = cloud.proxy.sent
    cloud.proxy.delay = 0.0
    assert cli("upload", *cloud.target).code == 0
    assert cloud.proxy.sent - before < 5_500_000
    assert cloud.stored(NAME, "1") == contents(model)


def test_two_at_once_one_version(cloud, start, model, tmp_path):
    """Both ask for version 1 with other content, and both reach the registration: one wins, the other says so."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"other")
    cloud.azure.barrier = threading.Barrier(2)
    both = [start("upload", *cloud.target, "--version", 1, "--path", path) for path in (model, other)]
    errors = {p.communicate(timeout=60)[1]: p.returncode for p in both}
    assert sorted(errors.values()) == [0, 3], errors
    loser = next(text for text, code in errors.items() if code == 3)
    assert "version 1 of 'ft-for-travel' is there, with other content" in loser and "--version 2" in loser
    winner = contents(model if both[0].returncode == 0 else other)
    assert cloud.stored(NAME, "1") == winner


def test_the_loser_of_a_free_number_takes_the_next(cloud, cli, model):
    """Another upload takes version 1 between the look and the registration."""
    cloud.azure.faults = []
    original, done = cloud.azure.register, []

    def register(name, version, properties):
        if not done:
            done.append(original(name, version, {**properties, "modelUri": "azureml://other", "properties": {}}))
        return original(name, version, properties)

    cloud.azure.register = register
    try:
        assert cli("upload", *cloud.target).out.endswith("/versions/2\n")
    finally:
        del cloud.azure.register
    assert cloud.stored(NAME, "2") == contents(model)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--path", "nowhere"], 3, "no such folder"),
        (["--path", "empty"], 3, "no files in it"),
        (["--name", "a/b"], 3, "cannot be a model's name"),
        (["--version", "1 2"], 3, "cannot be a model's version"),
        (["--tag", "novalue"], 2, "is no KEY=VALUE"),
    ],
)
def test_wrong_input_is_told_before_anything_is_asked(cloud, cli, model, arguments, code, message):
    (model.parents[2] / "empty").mkdir()
    done = cli("upload", *cloud.target, *arguments)
    assert done.code == code and message in done.err and done.out == ""
    assert cloud.azure.log == []


def test_upload_from_a_program(cloud, model):
    """The library sends what the command sends, finds it there again, and wants a whole workspace."""
    names = dict(zip(("workspace_name", "resource_group", "subscription"), cloud.target[1::2], strict=True))
    workspace = WorkspaceConfig(**names)
    sent = upload("phi", path=str(model), workspace=workspace, tags={"team": "travel"})
    assert cloud.stored(NAME, sent.version) == contents(model) and sent.tags["team"] == "travel"
    assert upload("phi", path=str(model), workspace=workspace).status == "already there"
    with pytest.raises(UsageError, match="subscription not set"):
        upload("phi", path=str(model), workspace=workspace.but(subscription=None))
