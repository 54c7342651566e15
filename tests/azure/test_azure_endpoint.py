"""`phicli deploy` to a managed online endpoint: the real SDK against the stub of its control plane."""

import json

import pytest

from phicli.azure.endpoint import divided

MACHINE = ("--instance-type", "Standard_DS3_v2", "--yes")


@pytest.fixture
def deploy(cloud, cli, model):
    fixed = ("--model", "phi", "--root", model.parent, "--name", "travel", *cloud.target)
    return lambda *more: cli("deploy", *fixed, *more)


def test_an_endpoint_from_the_first_machine_to_the_last(deploy, cloud):
    done = deploy(*MACHINE, "--most-instances", "3", "--json")
    assert done.code == 0 and "billed: 1 x Standard_DS3_v2, up to 3 under load" in done.err, done.err
    assert json.loads(done.out) == {
        "endpoint": "travel", "deployment": "blue", "traffic": {"blue": 100}, "answer": cloud.azure.said,
        "scoring_uri": "https://travel.westeurope.inference.ml.azure.com/v1/chat/completions"}
    assert cloud.azure.asked["messages"] == [{"role": "user", "content": "Where should I go in spring?"}]
    sent = cloud.azure.deployments["travel", "blue"]
    assert sent["sku"] == {"name": "Default", "capacity": 1}
    assert sent["properties"]["model"].endswith("/models/travel-model/versions/1")
    environment = next(iter(cloud.azure.environments.values()))["properties"]
    routes = environment["inferenceConfig"]
    assert routes["livenessRoute"] == routes["readinessRoute"] == {"port": 8000, "path": "/health"}
    context = environment["build"]["contextUri"].partition("/azureml-blobstore/")[2].rstrip("/")
    names = {blob.name.removeprefix(f"{context}/") for blob in cloud.box.list_blobs(name_starts_with=f"{context}/")}
    assert {"Dockerfile", "phicli.zip", "requirements.txt", "serve.sh"} <= names
    rules = cloud.azure.scaling["travel-blue"]["properties"]["profiles"][0]
    assert rules["capacity"] == {"minimum": "1", "maximum": "3", "default": "1"} and len(rules["rules"]) == 2
    assert {name.partition("/")[0] for name in cloud.stored("travel-model", "1")} == {
        "adapters", "empty.txt", "genai_config.json", "model.onnx", "model.onnx.data"}

    second = deploy(*MACHINE, "--deployment", "green", "--traffic", "20", "--json")
    assert json.loads(second.out)["traffic"] == {"blue": 80, "green": 20}, second.err
    assert cloud.azure.endpoints["travel"]["properties"]["traffic"] == {"blue": 80, "green": 20}

    cloud.azure.said = " "
    silent = deploy(*MACHINE, "--deployment", "green", "--traffic", "90")
    assert silent.code == 5 and "green gives no answer" in silent.err
    assert cloud.azure.endpoints["travel"]["properties"]["traffic"] == {"blue": 80, "green": 20}

    assert deploy("--delete").out == "travel\n" and cloud.azure.endpoints == {}
    assert deploy("--delete").code == 4


def test_nothing_that_costs_is_created_without_a_yes(deploy, cloud):
    for options, code in (((), 2), (MACHINE[:2], 2), ((*MACHINE, "--dry-run"), 0)):
        done = deploy(*options)
        assert done.code == code, done.err
        again = [line for line in done.err.splitlines() if line.startswith("  try: ")]
        assert all(line.startswith("  try: phicli deploy ") and "--name travel" in line for line in again), done.err
        assert bool(again) == bool(code)
        assert code == 0 or again[0].endswith(" --yes" if options else " --instance-type Standard_DS3_v2"), done.err
        assert "--workspace-name" in done.err
    assert cloud.azure.log == []


@pytest.mark.parametrize(("there", "share", "then"), [
    ({}, 10, {"new": 100}),
    ({"old": 100}, 10, {"old": 90, "new": 10}),
    ({"a": 50, "b": 25, "new": 25}, 0, {"a": 67, "b": 33, "new": 0}),
])
def test_traffic_adds_up(there, share, then):
    assert divided(there, "new", share) == then
