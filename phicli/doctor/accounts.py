"""Sign-in at Hugging Face and Azure: what is at hand on this machine, and with --online whether it is accepted."""

import json
import os
import shutil
from pathlib import Path

from phicli.azure.login import on_azure
from phicli.azure.target import QUESTIONS, find_target
from phicli.config.azure import TransferConfig
from phicli.doctor.check_result import CheckResult, Light, Subject
from phicli.doctor.reach import hub_home, local_here
from phicli.errors import Missing, PhicliError
from phicli.libraries import online

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OPEN = ("microsoft/",)  # whose models anyone may fetch
AZURE_VARIABLES = ("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_TOKEN_CREDENTIALS")
HF_LOGIN = "hf auth login"


def hugging_face(subject: Subject) -> CheckResult:
    """A token in the environment or in the hub's file; needed for private and gated models only."""
    place = token_place()
    if subject.online and place:
        return _ask_hugging_face(place)
    if place:
        return CheckResult(Light.GREEN, f"a token in {place}" + ("" if subject.online else ", not tried (--online)"))
    if local_here(subject.model) or subject.model.startswith(("azureml:", *OPEN)):
        return CheckResult(Light.GREEN, "not signed in, and not needed for this model")
    return CheckResult(Light.YELLOW, f"not signed in; {subject.model} may be private or gated", HF_LOGIN)


def azure(subject: Subject) -> CheckResult:
    """The workspace's names and a way to sign in; needed for upload and download only."""
    try:
        target = find_target(subject.settings, {})
    except Missing as e:
        return CheckResult(Light.YELLOW, f"upload and download cannot be used: {e.message}", e.hint)
    way = azure_way()
    if way is None:
        return CheckResult(Light.YELLOW, f"workspace {target.workspace_name}, but nobody is signed in", "az login")
    if not subject.online:
        return CheckResult(Light.GREEN, f"workspace {target.workspace_name}; signed in by {way}, not tried (--online)",
                       figures={name: getattr(target, name) for name in QUESTIONS})
    from phicli.azure.workspace import Workspace

    try:
        summary = Workspace(target, subject.settings.resolve(TransferConfig)).summary()
    except PhicliError as e:
        return CheckResult(Light.RED, str(e), e.hint)
    return CheckResult(Light.GREEN, f"workspace {summary['workspace']} answers {summary.get('account', 'us')}",
                   figures=summary)


def token_place() -> str | None:
    """Where a token of Hugging Face's lies; None without one."""
    variable = next((name for name in TOKENS if os.environ.get(name, "").strip()), None)
    if variable:
        return f"${variable}"
    path = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    try:
        return str(path) if path.read_text(encoding="utf-8").strip() else None
    except (OSError, UnicodeDecodeError):
        return None


def azure_way() -> str | None:
    """How this machine would sign in at Azure, told without the network; None if it would not."""
    variable = next((name for name in AZURE_VARIABLES if os.environ.get(name)), None)
    if variable:
        return f"${variable}"
    if on_azure():
        return "the machine's managed identity"
    folder = Path(os.environ.get("AZURE_CONFIG_DIR") or "~/.azure").expanduser()
    try:
        accounts = json.loads((folder / "azureProfile.json").read_text(encoding="utf-8-sig"))["subscriptions"]
        names = [account["user"]["name"] for account in accounts if account.get("isDefault")] or [None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return f"the Azure CLI ({names[0] or 'no default subscription'})" if accounts and shutil.which("az") else None


def _ask_hugging_face(place: str) -> CheckResult:
    from huggingface_hub import whoami

    try:
        with online():
            name = whoami()["name"]
    except Exception as e:
        return CheckResult(Light.RED, f"the token in {place} is not accepted: {str(e).splitlines()[0]}", HF_LOGIN)
    return CheckResult(Light.GREEN, f"signed in as {name} by {place}")
