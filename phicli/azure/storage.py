"""A blob container reached through a short-lived signature (SAS) that is renewed in time, or when it is refused."""

import datetime
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

from phicli.azure.transport import RANGE, make_transport
from phicli.config.azure import TransferConfig
from phicli.errors import BadInput, RemoteError

T = TypeVar("T")
USED_UP = 0.9  # share of a signature's life after which a new one is asked for
AZURES = re.compile(r"https://[a-z0-9]{3,24}\.blob\.([a-z0-9-]+\.)*"
                    r"(core\.(windows\.net|usgovcloudapi\.net|chinacloudapi\.cn)|storage\.azure\.net)/[a-z0-9$-]+")


class Access(NamedTuple):
    """Where a container is, and what opens it: a SAS, an account key, a credential, or None where it is public."""

    url: str
    secret: Any
    datastore: str = ""


class Container:
    """A container; `call` runs an action on its client and renews the access when needed.

    Args:
        request_access: asks Azure for access; called again for every renewal, by one thread at a time.
    """

    def __init__(self, request_access: Callable[[], Access], transfer: TransferConfig):
        self._request_access, self._transfer, self._lock = request_access, transfer, threading.Lock()
        self.connections, self.renewals = transfer.connections, -1
        self._renew()

    def call(self, action: Callable[[Any], T]) -> T:
        """The action's result on the SDK's ContainerClient; after a refusal (403) once more, with new access."""
        from azure.core.exceptions import HttpResponseError

        with self._lock:
            if time.time() > self._renew_at:
                self._renew()
            client, used = self._client, self.renewals
        try:
            return action(client)
        except HttpResponseError as e:
            if e.status_code != 403:
                raise
        with self._lock:
            if self.renewals == used:  # else another thread has just done it
                self._renew()
            client = self._client
        return action(client)

    def _renew(self) -> None:
        from azure.storage.blob import ContainerClient, ExponentialRetry

        self.access, now = self._request_access(), time.time()
        access = self.access
        if urlsplit(access.url).scheme != "https":
            raise RemoteError("the service names a storage that is not reached over https", where=access.url[:200])
        self._client = ContainerClient.from_container_url(
            access.url, credential=access.secret, max_single_get_size=RANGE, max_chunk_get_size=RANGE,
            transport=make_transport(self._transfer), permit_redirects=False,
            retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=self._transfer.retries,
                                          random_jitter_range=1),
        )
        end = _end_of(access.secret)
        self._renew_at = now + USED_UP * (end - now) if end else float("inf")
        self.renewals += 1


def _end_of(secret: Any) -> float | None:
    """When a SAS ends, in seconds since 1970; None for what is no SAS or does not say."""
    end = parse_qs(secret).get("se") if isinstance(secret, str) else None
    if not end:
        return None
    try:
        when = datetime.datetime.fromisoformat(end[0].replace("Z", "+00:00"))
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()


def datastore_access(client: Any, credential: Any, name: str | None) -> Access:
    """Access to a datastore of a workspace; None: its default one.

    A datastore that keeps no secret is opened with the user's own login.

    Raises:
        BadInput: a datastore that is no blob storage. RemoteError: one that would get the login, and is not Azure's.
    """
    store = (client.datastores.get(name, include_secrets=True) if name
             else client.datastores.get_default(include_secrets=True))
    box = getattr(store, "container_name", None) or getattr(store, "filesystem", None)
    if not box:
        raise BadInput(f"datastore '{store.name}' is no blob storage")
    secrets = store.credentials
    kept = getattr(secrets, "sas_token", None) or getattr(secrets, "account_key", None)
    url = f"{store.protocol}://{store.account_name}.blob.{store.endpoint}/{box}"
    if not kept and not AZURES.fullmatch(url):
        raise RemoteError(f"datastore '{store.name}' is in a storage that is not Azure's", where=url)
    return Access(url, kept or credential, store.name)
