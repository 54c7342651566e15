"""Azure's control plane as the SDK sees it: workspaces, datastores, models, registries. The bytes lie in Azurite.

The answers are those that the source of azure-ai-ml 1.35 expects; they were never compared with the service itself.
"""

import datetime
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from azure_tls import serve_tls

ACCOUNT, CONTAINER, REGION = "devstoreaccount1", "azureml-blobstore", "westeurope"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's, public
SUBSCRIPTION, GROUP, WORKSPACE = "11111111-2222-3333-4444-555555555555", "travel-group", "travel-workspace"
PROVIDER = "Microsoft.MachineLearningServices"
MODELS = rf"/subscriptions/{SUBSCRIPTION}/resource[gG]roups/([^/]+)/providers/{PROVIDER}/workspaces/([^/]+)(/.*)?"
REGISTRY = r"/mferp/managementfrontend/.*/registries/([^/]+)/(models|datarefs)/([^/]+)(?:/versions/([^/]+))?"
CREATED = {"createdAt": "2025-01-01T00:00:00Z", "createdBy": "tester", "createdByType": "User",
           "lastModifiedAt": "2025-01-01T00:00:00Z"}
LEAK = "SIGNATURE-NOBODY-MAY-SEE"  # in every fault's message

Answer = tuple[int, object]


@dataclass
class Fault:
    """An answer in place of the right one, `times` times, to requests "METHOD path" that match."""

    match: str
    status: int
    code: str = "Injected"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    times: int = 1 << 30
    after: bool = False  # do the work first: the answer is lost, the deed is done


class Azure:
    """What the tests' Azure holds and does.

    secret: "sas" (signatures of `sas_seconds`), "key", or "none" (an identity's own rights).
    log: "METHOD path" of every request. barrier: where PUTs of model versions wait for each other.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.log: list[str] = []
        self.faults: list[Fault] = []
        self.models: dict[tuple[str, str], dict] = {}
        self.registry: dict[tuple[str, str, str], str] = {}  # (registry, name, version) -> address of its files
        self.secret, self.sas_seconds, self.bad_sas = "sas", 3600.0, 0
        self.jobs: dict[str, dict] = {}
        self.environments: dict[str, dict] = {}
        self.computes = {"cpus": "AmlCompute"}
        self.endpoints: dict[str, dict] = {}
        self.deployments: dict[tuple[str, str], dict] = {}
        self.scaling: dict[str, dict] = {}
        self.said = "Lisbon, before the heat."  # by whatever is deployed
        self.work: Callable[[dict], None] | None = None  # what becomes of a job that was put
        self.barrier: threading.Barrier | None = None
        self.lock = threading.Lock()

    def sas(self, permissions: str = "racwdl") -> str:
        self.bad_sas -= 1
        key = "AAAA" + KEY[4:] if self.bad_sas >= 0 else KEY
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.sas_seconds)
        return generate_container_sas(ACCOUNT, CONTAINER, account_key=key, expiry=end,
                                      permission=ContainerSasPermissions.from_string(permissions))

    def fault_for(self, request: str) -> Fault | None:
        """The fault that this request meets, if any, after its delay."""
        with self.lock:
            self.log.append(request)
            fault = next((f for f in self.faults if f.times > 0 and re.search(f.match, request)), None)
            if fault:
                fault.times -= 1
        if fault:
            time.sleep(fault.delay)
        return fault

    def answer(self, method: str, host: str, path: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        fault = self.fault_for(f"{method} {path}")
        if fault is None:
            return *self.route(method, host, path, body), {}
        if fault.after:
            self.route(method, host, path, body)
        return fault.status, {"error": {"code": fault.code, "message": f"injected, ?sig={LEAK}&x=1"}}, fault.headers

    def route(self, method: str, host: str, path: str, body: bytes) -> Answer:
        if host.endswith(".inference.ml.azure.com"):
            self.asked = json.loads(body)
            return 200, {"choices": [{"message": {"role": "assistant", "content": self.said}}]}
        if "/Microsoft.Insights/autoscalesettings/" in path:
            self.scaling[path.rpartition("/")[2]] = json.loads(body)
            return 201, json.loads(body)
        if "/registrymanagement/" in path:
            name = path.split("/")[4]
            if name not in {registry for registry, _, _ in self.registry}:
                return not_found(name)
            return 200, {"registryName": name, "resourceGroup": "registry-group", "subscriptionId": SUBSCRIPTION,
                         "primaryRegionResourceProviderUri": f"https://cert-{REGION}.experiments.azureml.net/"}
        if match := re.fullmatch(REGISTRY, path):
            return self.registry_answer(*match.groups())
        if path.endswith(f"/providers/{PROVIDER}/workspaces"):
            return 200, {"value": [workspace()]}
        match = re.fullmatch(MODELS, path)
        if not match:
            return 404, {"error": {"code": "SubscriptionNotFound", "message": f"nothing at {path}"}}
        group, name, rest = match.groups()
        if (group, name) != (GROUP, WORKSPACE):
            return 404, {"error": {"code": "ResourceNotFound", "message": f"The Resource '{name}' was not found."}}
        return self.workspace_answer(method, rest or "", body)

    def workspace_answer(self, method: str, path: str, body: bytes) -> Answer:
        parts = path.strip("/").split("/")
        if parts == [""]:
            return 200, workspace()
        if parts[0] == "datastores":
            if parts[-1] == "listSecrets":
                return 200, ({"secretsType": "AccountKey", "key": KEY} if self.secret == "key"
                             else {"secretsType": "Sas", "sasToken": self.sas()})
            store = datastore("None" if self.secret == "none" else "AccountKey")
            return 200, store if len(parts) > 1 else {"value": [store]}
        if parts[0] == "environments":
            if method == "PUT":
                self.environments["/".join(parts)] = {
                    "id": arm_id(*parts), "name": parts[-1], "systemData": CREATED, **json.loads(body)}
            there = self.environments.get("/".join(parts))
            return (200, there) if there else not_found(parts[1])
        if parts[0] == "computes":
            kind = self.computes.get(parts[1])
            return (200, {"id": arm_id(*parts), "name": parts[1], "location": REGION, "properties": {
                "computeType": kind, "provisioningState": "Succeeded",
                "properties": {"vmSize": "STANDARD_DS3_V2"}}}) if kind else not_found(parts[1])
        if parts[0] == "onlineEndpoints":
            return self.endpoint_answer(method, parts[1:], body)
        if parts[0] == "jobs":
            return self.job_answer(method, parts[1:], body)
        versions = [v for (n, v) in self.models if n == parts[1]]
        if len(parts) == 2:
            if not versions:
                return not_found(parts[1])
            return 200, {"id": arm_id("models", parts[1]), "name": parts[1],
                         "properties": {"latestVersion": versions[-1], "isArchived": False}}
        if len(parts) == 3:
            return 200, {"value": [self.models[parts[1], v] for v in reversed(versions)]}
        if method == "PUT":
            return self.register(parts[1], parts[3], json.loads(body)["properties"])
        there = self.models.get((parts[1], parts[3]))
        return (200, there) if there else not_found(parts[3])

    def endpoint_answer(self, method: str, parts: list[str], body: bytes) -> Answer:
        if not parts:
            return 200, {"value": list(self.endpoints.values())}
        name, store = parts[0], self.deployments if parts[1:2] == ["deployments"] else self.endpoints
        if parts[1:] == ["listKeys"]:
            return 200, {"primaryKey": "KEY", "secondaryKey": "KEY2"}
        if parts[1:] == ["deployments"]:
            return 200, {"value": [d for (e, _), d in self.deployments.items() if e == name]}
        key = (name, parts[2]) if parts[1:] else name
        if method == "PUT":
            made = {"id": arm_id("onlineEndpoints", *parts), "name": parts[-1], "systemData": CREATED,
                    "location": REGION, **json.loads(body)}
            made["properties"] |= {"provisioningState": "Succeeded"}
            if store is self.deployments:
                made["properties"].setdefault("scaleSettings", {"scaleType": "Default"})
            else:
                made["properties"]["scoringUri"] = (
                    f"https://{name}.{REGION}.inference.ml.azure.com/v1/chat/completions")
            store[key] = made
            return 201, made
        if method == "DELETE":
            return (200, {}) if store.pop(key, None) else not_found(name)
        return (200, store[key]) if key in store else not_found(name)

    def job_answer(self, method: str, parts: list[str], body: bytes) -> Answer:
        if not parts:
            return 200, {"value": list(reversed(self.jobs.values()))}
        if method == "PUT":
            job = {"id": arm_id("jobs", parts[0]), "name": parts[0], "systemData": CREATED, **json.loads(body)}
            job["properties"] |= {"status": "NotStarted", "services": {"Studio": {
                "endpoint": f"https://ml.azure.com/runs/{parts[0]}", "jobServiceType": "Studio"}}}
            self.jobs[parts[0]] = job
            if self.work:
                threading.Thread(target=self.work, args=(job,), daemon=True).start()
            return 201, job
        job = self.jobs.get(parts[0])
        if job and parts[1:] == ["cancel"]:
            job["properties"]["status"] = "Canceled"
        return (200, job) if job else not_found(parts[0])

    def register(self, name: str, version: str, properties: dict) -> Answer:
        if self.barrier:
            self.barrier.wait(30)
        with self.lock:
            there = self.models.get((name, version))
            if there and there["properties"]["modelUri"] != properties["modelUri"]:
                return 400, {"error": {"code": "UserError", "message": "Asset paths cannot be updated."}}
            self.models[name, version] = {
                "id": arm_id("models", name, "versions", version), "name": version, "systemData": CREATED,
                "properties": {"flavors": {}, **properties, "isArchived": False}}
        return 201, self.models[name, version]

    def registry_answer(self, registry: str, kind: str, name: str, version: str | None) -> Answer:
        versions = [v for (r, n, v) in self.registry if (r, n) == (registry, name)]
        if version is None and versions:
            return 200, {"name": name, "properties": {"latestVersion": versions[-1]}}
        address = self.registry.get((registry, name, version or ""))
        if not address:
            return not_found(name)
        if kind == "models":
            return 200, {"name": version, "properties": {"modelUri": address, "flavors": {}}}
        box = "/".join(address.split("/")[:4])
        return 200, {"blobReferenceForConsumption": {
            "blobUri": address, "credential": {"credentialType": "SAS", "sasUri": f"{box}?{self.sas('rl')}"}}}


def arm_id(*rest: str) -> str:
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
    return "/".join([f"{group}/providers/{PROVIDER}/workspaces/{WORKSPACE}", *rest])


def workspace() -> dict:
    beside = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
    return {"id": arm_id(), "name": WORKSPACE, "location": REGION, "type": f"{PROVIDER}/workspaces", "kind": "Default",
            "tags": {}, "systemData": CREATED, "identity": {"type": "SystemAssigned"},
            "properties": {"storageAccount": f"{beside}/Microsoft.Storage/storageAccounts/{ACCOUNT}",
                           "keyVault": f"{beside}/Microsoft.KeyVault/vaults/travel-vault", "friendlyName": WORKSPACE,
                           "workspaceId": "aaaaaaaa-0000-0000-0000-000000000001", "publicNetworkAccess": "Enabled"}}


def datastore(credentials: str) -> dict:
    return {"id": arm_id("datastores", "workspaceblobstore"), "name": "workspaceblobstore", "systemData": CREATED,
            "properties": {"datastoreType": "AzureBlob", "isDefault": True, "accountName": ACCOUNT,
                           "containerName": CONTAINER, "endpoint": "core.windows.net", "protocol": "https",
                           "properties": {}, "tags": {}, "credentials": {"credentialsType": credentials}}}


def not_found(what: str) -> Answer:
    return 404, {"error": {"code": "UserError", "message": f"Not found: {what}"}}


def serve(azure: Azure, certificates: Path) -> int:
    """Serve over TLS in a thread; returns the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, document, headers = azure.answer(self.command, self.headers["host"], urlsplit(self.path).path, body)
            content = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", "content-length": str(len(content)),
                                **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = handle_any

    return serve_tls(Handler, certificates)
