"""Errors as HTTP has them: a status, and a body in the form of the protocol that was spoken."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.responses import JSONResponse

from phicli.errors import BadInput, PhicliError, UsageError
from phicli.inference.engine import Busy
from phicli.inference.model_folder import NoAdapter

RETRY_SECONDS = 1
OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
             429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


class Fault(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP. message: for people. param: of the body, which is to blame. code: for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = message.encode("utf-8", "replace").decode()  # it repeats what was sent

    def document(self, anthropic: bool) -> dict[str, Any]:
        """The body."""
        if anthropic:
            usual = "api_error" if self.status >= 500 else "invalid_request_error"
            return {"type": "error", "error": {"type": ANTHROPIC.get(self.status, usual), "message": self.message}}
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": OPENAI.get(self.status, usual), "param": self.param,
                          "code": self.code}}

    def response(self, anthropic: bool) -> JSONResponse:
        retry = {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        challenge = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(self.document(anthropic), self.status, retry | challenge)


def fault_of(error: BaseException, fields: Mapping[str, str] = MappingProxyType({})) -> Fault:
    """An error of ours for those outside: what is wrong with what they sent, without places on this machine.

    fields: name of a field as the engine has it -> as the body that was sent has it.
    """
    if isinstance(error, Fault):
        error.param = fields.get(error.param or "", error.param)
        return error
    if isinstance(error, TimeoutError):
        return Fault(504, "the answer took more time than it may")
    if isinstance(error, Busy):
        return Fault(429, error.message, code="rate_limit_exceeded")
    if isinstance(error, NoAdapter):  # removed since its name was looked up
        return Fault(404, error.message, param="model", code="model_not_found")
    if isinstance(error, BadInput | UsageError):
        where = error.where if isinstance(error.where, str) and error.where.replace("_", "").isalpha() else None
        where = fields.get(where or "", where)
        return Fault(400, f"{where}: {error.message}" if where else error.message, param=where)
    if isinstance(error, PhicliError):
        return Fault(503, "the model cannot answer at the moment")
    return Fault(500, "a fault of the server's; its log has more")
