"""A registry's models: found, and their storage opened, with the three requests that the service needs.

The SDK's own way (`MLClient(registry_name=…)`) gives no public access to a model's storage. The addresses and the
API version are those that azure-ai-ml 1.35 uses; `azure.core` sends them.
"""

from typing import Any

from phicli.azure import faults
from phicli.azure.login import SCOPE, sign_in
from phicli.azure.reference import Reference
from phicli.azure.storage import Access, Container
from phicli.azure.target import Line

DISCOVERY = "https://eastus.api.azureml.ms/registrymanagement/v1.0/registries"
SERVICE = "mferp/managementfrontend"
API = "2021-10-01-dataplanepreview"


class Registry:
    """A registry that lets us read.

    Raises:
        Missing: not signed in, or no such registry. RemoteError: refused or no answer.
    """

    def __init__(self, name: str, line: Line):
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy

        faults.quiet_logs()
        self.name, self.line = name, line
        with faults.explained(f"registry '{name}'"):
            self._pipeline: Any = PipelineClient("", policies=[
                RetryPolicy(retry_total=line.retries, timeout=line.timeout * (line.retries + 1)),
                BearerTokenCredentialPolicy(sign_in(), SCOPE),
            ])
            found = self._ask("GET", f"{DISCOVERY}/{name}/discovery", {"api-version": "v1.0"})
        self._base = (f"{found['primaryRegionResourceProviderUri'].rstrip('/')}/{SERVICE}/subscriptions"
                      f"/{found['subscriptionId']}/resourceGroups/{found['resourceGroup']}"
                      f"/providers/Microsoft.MachineLearningServices/registries/{name}")

    def find(self, wanted: Reference) -> tuple[str, str]:
        """(version, address of its files in the storage) of a model."""
        with faults.explained(f"model '{wanted.name}' in registry '{self.name}'"):
            version = wanted.version
            if version is None:
                version = self._ask("GET", f"{self._base}/models/{wanted.name}")["properties"]["latestVersion"]
            model = self._ask("GET", f"{self._base}/models/{wanted.name}/versions/{version}")
        return version, model["properties"]["modelUri"]

    def container(self, name: str, version: str, address: str) -> Container:
        """The container that holds a version's files."""

        def request_access() -> Access:
            body = {"assetId": f"azureml://registries/{self.name}/models/{name}/versions/{version}", "blobUri": address}
            with faults.explained(f"storage of registry '{self.name}'"):
                answer = self._ask("POST", f"{self._base}/datarefs/{name}/versions/{version}", json=body)
            blob = answer["blobReferenceForConsumption"]
            url, _, signature = (blob["credential"].get("sasUri") or blob["blobUri"]).partition("?")
            return Access("/".join(url.split("/")[:4]), signature or None)

        return Container(request_access, self.line)

    def _ask(self, method: str, url: str, params: dict[str, str] | None = None, json: Any = None) -> Any:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, map_error
        from azure.core.rest import HttpRequest

        request = HttpRequest(method, url, params=params or {"api-version": API}, json=json,
                              headers={"Accept": "application/json"})
        response = self._pipeline.send_request(request, connection_timeout=self.line.timeout,
                                               read_timeout=self.line.timeout)
        map_error(response.status_code, response, {401: ClientAuthenticationError})
        if response.status_code >= 400:
            raise HttpResponseError(response=response)
        return response.json()
