"""Signing in: the Azure CLI first, then whatever else this machine offers, and never a wait of minutes."""

import base64
import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

SCOPE = "https://management.azure.com/.default"
CLI_SECONDS, OTHER_SECONDS = 20, 10  # that a tool asked for a token may take
NAMES = ("upn", "unique_name", "preferred_username", "appid", "oid")  # claims that tell who it is, best first
RENEW_BEFORE = 300  # seconds before a token's end
CHASSIS_TAG = Path("/sys/class/dmi/id/chassis_asset_tag")
AZURE_VM_TAG = "7783-7084-3265-9085-8269-3286-77"  # every Azure VM carries it


class Login:
    """A credential for the SDK that asks its source once per scope, since every `az` takes a second or two."""

    def __init__(self, source: Any):
        self._source, self._tokens, self._lock = source, {}, threading.Lock()  # type: ignore[var-annotated]

    def get_token(self, *scopes: str, **options: Any) -> Any:
        if options.get("claims"):  # a challenge: the token at hand does not do
            return self._source.get_token(*scopes, **options)
        with self._lock:
            token = self._tokens.get(scopes)
            if token is None or token.expires_on - time.time() < RENEW_BEFORE:
                token = self._tokens[scopes] = self._source.get_token(*scopes, **options)
            return token


def sign_in() -> Login:
    """The credential: `az login` first, then a developer's other tools, a workload or a managed identity.

    AZURE_TOKEN_CREDENTIALS, where it is set, chooses instead, as the SDK defines it.
    Nothing is asked of anyone yet: errors come with the first token.
    """
    from azure.identity import AzureCliCredential, ChainedTokenCredential, DefaultAzureCredential

    if os.environ.get("AZURE_TOKEN_CREDENTIALS"):
        return Login(DefaultAzureCredential(process_timeout=OTHER_SECONDS))
    others = DefaultAzureCredential(
        exclude_cli_credential=True, process_timeout=OTHER_SECONDS,
        exclude_managed_identity_credential=not on_azure(),  # elsewhere its address does not answer
    )
    return Login(ChainedTokenCredential(AzureCliCredential(process_timeout=CLI_SECONDS), others))


def on_azure() -> bool:
    """Whether this machine can have a managed identity, told without the network."""
    if any(os.environ.get(name) for name in ("IDENTITY_ENDPOINT", "MSI_ENDPOINT")):
        return True
    with contextlib.suppress(OSError):
        return CHASSIS_TAG.read_text().strip() == AZURE_VM_TAG
    return False


def account(login: Login) -> dict[str, str]:
    """Who is signed in: {"account", "tenant"}, from the token's own claims; empty if it holds none that we can read."""
    try:
        payload = login.get_token(SCOPE).token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    name = next((claims[k] for k in NAMES if claims.get(k)), None)
    return {k: v for k, v in {"account": name, "tenant": claims.get("tid")}.items() if v}
