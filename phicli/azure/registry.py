"""A registry's models: found, and their storage opened, with the three requests that the service needs.

The SDK's own way (`MLClient(registry_name=…)`) gives no public access to a model's storage. The addresses and the
API version are those that azure-ai-ml 1.35 uses; `azure.core` sends them.
"""

from typing import Any

from phicli.artifacts.reading import parse_json
from phicli.azure import faults
from phicli.azure.login import SCOPE, sign_in
from phicli.azure.reference import Reference, check_name
from phicli.azure.storage import Access, Container
from phicli.azure.transport import make_transport, patient
from phicli.config.azure import TransferConfig
from phicli.errors import BadInput, RemoteError

DISCOVERY = "https://eastus.api.azureml.ms/registrymanagement/v1.0/registries"
SERVICE = "mferp/managementfrontend"
API = "2021-10-01-dataplanepreview"


class Registry:
    """A registry that lets us read.

    Raises:
        Missing: not signed in, or no such registry. RemoteError: refused or no answer.
    """

    def __init__(self, name: str, transfer: TransferConfig):
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy

        faults.quiet_logs()
        self.name, self.transfer = name, transfer
        with faults.explained(f"registry '{name}'"):
            self._pipeline: Any = PipelineClient("", transport=make_transport(transfer), policies=[
                patient(transfer), BearerTokenCredentialPolicy(sign_in(), SCOPE)])
            found = self._ask("GET", f"{DISCOVERY}/{name}/discovery", {"api-version": "v1.0"})
        self._base = (f"{_text(found, 'primaryRegionResourceProviderUri').rstrip('/')}/{SERVICE}/subscriptions"
                      f"/{_text(found, 'subscriptionId')}/resourceGroups/{_text(found, 'resourceGroup')}"
                      f"/providers/Microsoft.MachineLearningServices/registries/{name}")

    def find(self, wanted: Reference) -> tuple[str, str]:
        """(version, address of its files in the storage) of a model."""
        with faults.explained(f"model '{wanted.name}' in registry '{self.name}'"):
            version = wanted.version
            if version is None:
                newest = self._ask("GET", f"{self._base}/models/{wanted.name}")
                version = check_name(_text(newest, "properties", "latestVersion"), "version")
            model = self._ask("GET", f"{self._base}/models/{wanted.name}/versions/{version}")
        return version, _text(model, "properties", "modelUri")

    def container(self, name: str, version: str, address: str) -> Container:
        """The container that holds a version's files."""

        def request_access() -> Access:
            body = {"assetId": f"azureml://registries/{self.name}/models/{name}/versions/{version}", "blobUri": address}
            with faults.explained(f"storage of registry '{self.name}'"):
                answer = self._ask("POST", f"{self._base}/datarefs/{name}/versions/{version}", json=body)
            blob = ("blobReferenceForConsumption",)
            signed = _text(answer, *blob, "credential", "sasUri", default="") or _text(answer, *blob, "blobUri")
            url, _, signature = signed.partition("?")
            return Access("/".join(url.split("/")[:4]), signature or None)

        return Container(request_access, self.transfer)

    def _ask(self, method: str, url: str, params: dict[str, str] | None = None, json: Any = None) -> Any:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, map_error
        from azure.core.rest import HttpRequest

        request = HttpRequest(method, url, params=params or {"api-version": API}, json=json,
                              headers={"Accept": "application/json"})
        response = self._pipeline.send_request(request)
        map_error(response.status_code, response, {401: ClientAuthenticationError})
        if response.status_code >= 400:
            raise HttpResponseError(response=response)
        try:
            return parse_json(response.content, f"registry '{self.name}'")
        except BadInput as e:
            raise RemoteError(e.message, where=e.where) from None


def _text(answer: Any, *keys: str, default: str | None = None) -> str:
    """A text in an answer. Raises RemoteError where there is none and no default."""
    for key in keys:
        answer = answer.get(key, default) if isinstance(answer, dict) else default
    if not isinstance(answer, str):
        raise RemoteError(f"an answer without {'.'.join(keys)}")
    return answer
