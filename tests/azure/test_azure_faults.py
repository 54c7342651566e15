"""Every request of an upload answered wrongly: the documented exit code, one line, nothing half-done, no secret."""

import os
import re
import time

import pytest
from azure_servers import SECRET
from azure_stub import LEAK, Fault

REQUESTS = {
    "workspace": r"GET .*/workspaces/travel-workspace$",
    "versions": r"GET .*/models/ft-for-travel/versions$",
    "datastore": r"GET .*/datastores$",
    "secrets": r"POST .*/listSecrets$",
    "look": r"HEAD storage/",
    "blocks there": r"GET storage/.*comp=blocklist",
    "block": r"PUT storage/.*comp=block&",
    "commit": r"PUT storage/.*comp=blocklist",
    "register": r"PUT .*/models/ft-for-travel/versions/1$",
}
NORMAL_404 = {"versions", "look", "blocks there"}  # "none yet" is what these ask
ANSWERS = {
    "401": (Fault("", 401, "InvalidAuthenticationToken"), 4, "az login"),
    "403": (Fault("", 403, "AuthorizationFailed"), 5, "az role assignment create"),
    "404": (Fault("", 404, "ResourceNotFound"), 4, "phicli azure"),
    "409": (Fault("", 409, "Conflict"), 5, "same command again"),
    "500": (Fault("", 500, "InternalServerError"), 5, "in a while"),
    "503": (Fault("", 503, "ServerBusy", {"Retry-After": "1"}), 5, "in a while"),
    "time-out": (Fault("", 500, "Late", delay=1.5), 5, "check the network"),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("request_", REQUESTS)
def test_fault_at_every_request(cloud, cli, model, monkeypatch, request_, answer):
    fault, code, hint = ANSWERS[answer]
    monkeypatch.setenv("PHICLI_AZURE_TIMEOUT", "0.7" if answer == "time-out" else "20")
    (model / "model.onnx.data").write_bytes(os.urandom(300_000))
    cloud.open_front()
    cloud.azure.faults = [Fault(REQUESTS[request_], fault.status, fault.code, fault.headers, fault.delay)]
    begun = time.monotonic()
    done = cli("upload", *cloud.target)
    assert time.monotonic() - begun < 15
    assert [r for r in cloud.azure.log if re.search(REQUESTS[request_], r)], "the request was never sent"
    if answer == "404" and request_ in NORMAL_404:
        assert done.code == 0, done.err
        return
    assert (done.code, done.out) == (code, ""), done.err
    error, _, rest = done.err[done.err.index("error: "):].partition("\n")
    assert hint in rest.splitlines()[0], done.err
    assert "Traceback" not in done.err and len(error) < 250
    assert cloud.azure.models == {}


def test_short_failures_are_waited_out(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("PHICLI_AZURE_RETRIES", "2")
    cloud.open_front()
    cloud.azure.faults = [Fault(REQUESTS["workspace"], 503, headers={"Retry-After": "1"}, times=1),
                          Fault(REQUESTS["block"], 503, "ServerBusy", times=1),
                          Fault(REQUESTS["register"], 500, times=1)]
    assert cli("upload", *cloud.target).code == 0
    assert list(cloud.azure.models) == [("ft-for-travel", "1")]


def test_lost_answer_to_a_registration_that_was_done(cloud, cli, model):
    cloud.azure.faults = [Fault(REQUESTS["register"], 500, after=True)]
    done = cli("upload", *cloud.target)
    assert done.code == 0 and done.out.endswith("/versions/1\n"), done.err


def test_nobody_signed_in(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("AZ_LOGGED_OUT", "1")
    begun = time.monotonic()
    done = cli("upload", *cloud.target)
    assert done.code == 4 and "error: not signed in to Azure\n  try: az login\n" in done.err
    assert time.monotonic() - begun < 15 and cloud.azure.log == []


def test_no_azure_cli(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done = cli("upload", *cloud.target)
    assert done.code == 4 and "the Azure CLI is not installed" in done.err


def test_nearest_workspace_is_named(cloud, cli, model):
    done = cli("upload", "--workspace-name", "travel-workspce", *cloud.target[2:])
    assert done.code == 4 and "no workspace 'travel-workspce' in resource group 'travel-group'" in done.err
    assert "phicli azure use --workspace-name travel-workspace --resource-group travel-group" in done.err


def test_unknown_subscription(cloud, cli, model):
    done = cli("upload", *cloud.target[:-1], "99999999-2222-3333-4444-555555555555")
    assert done.code == 4 and "SubscriptionNotFound" in done.err


def test_no_way_to_azure(cloud, cli, model, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    done = cli("upload", *cloud.target)
    assert done.code == 5 and "no answer from Azure" in done.err and "check the network" in done.err


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (Fault(REQUESTS["register"], 400), "refused (400 Injected): (Injected) injected, ?sig=***&x=1"),
        (Fault(REQUESTS["block"], 500, delay=1.5), "no answer from Azure"),
        (None, "Tunnel connection failed"),
    ],
)
def test_no_secret_in_messages_tracebacks_or_logs(cloud, cli, model, monkeypatch, fault, shown):
    monkeypatch.setenv("PHICLI_AZURE_TIMEOUT", "0.7")
    cloud.open_front()
    if fault:
        cloud.azure.faults = [fault]
    else:
        cloud.proxy.cut_after = 0
    done = cli("--traceback", "upload", *cloud.target)
    logs = "".join(p.read_text() for p in model.parent.glob("logs/*.log"))
    assert done.code == 5 and "Traceback" in done.err and shown in done.err, done.err
    for text in (done.err, logs):
        assert SECRET not in text and LEAK not in text and not re.search(r"sig=[^*]", text)
