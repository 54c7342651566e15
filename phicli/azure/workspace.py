"""One workspace, opened and checked: what there is in it, and what is nearest where the name is wrong."""

import difflib
from typing import Any

from phicli.azure import faults
from phicli.azure.login import Login, account, sign_in
from phicli.azure.paging import listed
from phicli.azure.storage import Access, Container, datastore_access
from phicli.azure.target import Target
from phicli.azure.transport import make_transport, patient
from phicli.config.azure import TransferConfig
from phicli.errors import Missing

PRICES = "https://azure.microsoft.com/pricing/details/machine-learning/"  # of machines; none is named here


class Workspace:
    """A workspace that exists and lets us in.

    Raises:
        Missing: not signed in, or no such workspace. RemoteError: refused or no answer.
    """

    def __init__(self, target: Target, transfer: TransferConfig):
        self.target, self.transfer = target, transfer
        faults.quiet_logs()
        with faults.explained(f"workspace '{target.workspace_name}'"):
            self.login: Login = sign_in()
            self.client = _connect(self.login, target, transfer)
            self.details = self._find()

    def container(self, datastore: str | None = None) -> Container:
        """The container of a datastore; None: of the default one."""

        def request_access() -> Access:
            with faults.explained("storage of the workspace"):
                return datastore_access(self.client, self.login, datastore)

        return Container(request_access, self.transfer)

    def summary(self) -> dict[str, Any]:
        """What `az ml workspace show` shows, for people: account, workspace, region, storage."""
        with faults.explained("default datastore"):
            store = self.client.datastores.get_default()
        details = self.details
        return {
            **account(self.login),
            "subscription": self.target.subscription,
            "resource group": self.target.resource_group,
            "workspace": details.name,
            "region": details.location,
            "storage account": _last(details.storage_account),
            "key vault": _last(details.key_vault),
            "default datastore": store.name,
            "container": getattr(store, "container_name", None),
            "studio": f"https://ml.azure.com/?wsid={details.id}",
        }

    def _find(self) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        target = self.target
        try:
            return self.client.workspaces.get(target.workspace_name)
        except ResourceNotFoundError as e:
            code = faults.code_of(e)
        near = nearest(self.client, target)
        raise Missing(f"no workspace '{target.workspace_name}' in resource group '{target.resource_group}' ({code})",
                      hint=near or "az ml workspace list")


def _connect(login: Login, target: Target, transfer: TransferConfig) -> Any:
    from azure.ai.ml import MLClient

    return MLClient(login, target.subscription, target.resource_group, target.workspace_name, enable_telemetry=False,
                    show_progress=False, retry_policy=patient(transfer), transport=make_transport(transfer))


def nearest(client: Any, target: Target) -> str | None:
    """The command that chooses the workspace whose name is nearest to what was typed; None if none can be seen."""
    from azure.core.exceptions import AzureError

    try:
        there = {w.name: w.resource_group for w in listed(client.workspaces.list(scope="subscription"))}
    except AzureError:
        return None
    names = difflib.get_close_matches(target.workspace_name, there, 1, 0.0)
    if not names:
        return None
    return (f"phicli azure use --workspace-name {names[0]} --resource-group {there[names[0]]} "
            f"--subscription {target.subscription}")


def _last(arm_id: str | None) -> str | None:
    return arm_id.rpartition("/")[2] if arm_id else None
