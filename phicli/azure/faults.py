"""The SDK's errors in plain words: one line, what helps, the exit code; and no secret in any of it."""

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from phicli.errors import BadInput, Missing, PhicliError, RemoteError

_SECRETS = re.compile(r"""(\bsig=|Bearer |AccountKey=|accessToken"?\s*[:=]\s*"?|client_secret=)[^\s&"';)]+""", re.I)
LONGEST = 240
SDK = ("azure", "requests", "urllib3", "marshmallow")
RESUMES = "the same command again; what was sent stays sent"


def redact(text: str) -> str:
    """The text without signatures of SAS addresses, tokens and keys."""
    return _SECRETS.sub(r"\1***", text)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the SDK's exceptions into errors for people; `what` says what was being done.

    The cause is not chained: its text can hold addresses with signatures, which a traceback would show.

    Raises:
        Missing: not signed in, or a thing that is not there. RemoteError: refused, failed, or no way to it.
    """
    try:
        yield
    except PhicliError:
        raise
    except Exception as e:
        if type(e).__module__.split(".")[0] in SDK:
            raise explain(e, what) from None
        if _origin(e) in SDK:
            raise RemoteError(f"{what}: an answer that is not understood ({type(e).__name__})") from None
        raise


def _origin(error: Exception) -> str:
    """The package in whose code an exception was raised."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).split(".")[0]


def explain(error: Exception, what: str) -> PhicliError:
    """The error for people that this error of the SDK is."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    if isinstance(error, ClientAuthenticationError):
        return _not_signed_in(error, what)
    if isinstance(error, HttpResponseError) and error.status_code:
        return _refused(error, what)
    if isinstance(error, AzureError) or not type(error).__module__.startswith("azure"):
        reason = re.sub(r"HTTPSConnectionPool\(host='([^']+)', port=\d+\)", r"\1", _first_line(error))
        return RemoteError(f"{what}: no answer from Azure ({type(error).__name__}: {reason})",
                           hint=f"check the network and the proxy, then {RESUMES}")
    return BadInput(f"{what}: {_first_line(error)}")


def _not_signed_in(error: Any, what: str) -> Missing:
    if error.response is not None:
        return Missing(f"{what}: Azure does not accept the login (401 {code_of(error)})",
                       hint="as someone who may use this subscription: az login")
    text = redact(str(error.message or error))
    reason = re.search(r"AADSTS\d+[^\n]*", text)
    if reason:
        return Missing(f"not signed in to Azure: {reason[0][:LONGEST]}", hint="az login")
    if "timed out" in text.lower():
        return Missing("not signed in to Azure: the Azure CLI gave no token in time",
                       hint="az account get-access-token")
    if "Azure CLI not found" in text:
        return Missing("not signed in to Azure, and the Azure CLI is not installed",
                       hint="install the Azure CLI, then: az login")
    return Missing("not signed in to Azure", hint="az login")


def _refused(error: Any, what: str) -> PhicliError:
    status, code = error.status_code, code_of(error)
    answer = f"{status} {code}".strip()
    if status == 404:
        return Missing(f"{what}: not found ({answer})", hint="phicli azure show")
    if status == 403:
        return RemoteError(f"{what}: not allowed ({answer})", hint=_role_for(code))
    if status == 409:
        return RemoteError(f"{what}: something else is changing it ({answer})", hint=RESUMES)
    if status == 429 or status >= 500:
        return RemoteError(f"{what}: Azure fails ({answer})", hint=f"in a while: {RESUMES}")
    return RemoteError(f"{what}: refused ({answer}): {_first_line(error)}")


def _role_for(code: str) -> str:
    if code in ("AuthorizationFailure", "PublicAccessNotPermitted"):
        return "the storage's firewall has to let this machine in: az storage account network-rule add"
    role = "Storage Blob Data Contributor" if code == "AuthorizationPermissionMismatch" else "AzureML Data Scientist"
    return f'ask an owner for: az role assignment create --role "{role}" --assignee YOU --scope THE-WORKSPACE'


def code_of(error: Any) -> str:
    """Azure's own code of an error, such as AuthorizationFailed; else HTTP's words for its status."""
    detail = getattr(error, "error", None)
    code = getattr(detail, "code", None) or getattr(error, "error_code", None) or error.reason or ""
    return str(getattr(code, "value", code))


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "message", None) or error).strip()
    return redact(text.splitlines()[0] if text else type(error).__name__)[:LONGEST]


def quiet_logs() -> None:
    """Send what the SDK logs to stderr, which commands divert to their log file, with secrets taken out."""

    class Redacting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sys.stderr.write(redact(self.format(record)) + "\n")

    handler = Redacting()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    for name in ("azure", "msal", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
