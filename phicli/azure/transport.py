"""The way to a server: https only, and no answer without an end, in size or in time."""

import io
import time
from typing import Any

from phicli.config.azure import TransferConfig
from phicli.errors import RemoteError

LARGEST = 16 << 20  # bytes of an answer that is no file's; a page of 5,000 blobs has 5 MB
RANGE = 4 << 20  # bytes of a file in one answer; the longest range for which the service gives a checksum
SLOWEST = 4 << 10  # bytes a second; who sends less than that is not waited for
LONGEST_WAIT = 30.0  # seconds that a Retry-After of the service is heeded
_READ = 64 << 10


def make_transport(transfer: TransferConfig) -> Any:
    """A transport for a client of the SDK; answers that are too long or too slow end in a RemoteError."""
    import requests
    from azure.core.pipeline.transport import RequestsTransport

    adapter = _adapter(transfer)
    session = requests.Session()
    session.adapters.clear()  # so there is no way to http://, whatever an answer redirects to
    session.mount("https://", adapter)
    return RequestsTransport(session=session, connection_timeout=transfer.timeout, read_timeout=transfer.timeout)


def patient(transfer: TransferConfig) -> Any:
    """A retry policy that heeds Retry-After, but not for hours."""
    from azure.core.pipeline.policies import RetryPolicy

    class Patient(RetryPolicy):
        def get_retry_after(self, response: Any) -> float | None:
            seconds = super().get_retry_after(response)
            return min(seconds, LONGEST_WAIT) if seconds else seconds

    return Patient(retry_total=transfer.retries)


class _Body(io.BytesIO):
    """An answer's body that has been read; the SDK sets attributes of its own on it."""


def _adapter(transfer: TransferConfig) -> Any:
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    class Bounded(HTTPAdapter):
        def send(self, request: Any, stream: bool = False, *args: Any, **kwargs: Any) -> Any:
            answer = super().send(request, True, *args, **kwargs)
            most = RANGE if stream else LARGEST
            raw, answer.raw = answer.raw, _Body()
            try:
                for piece in _pieces(raw, time.monotonic() + transfer.timeout + most / SLOWEST, not stream):
                    answer.raw.write(piece)
                    if answer.raw.tell() > most:
                        raise RemoteError(f"an answer of more than {most:,} bytes", where=_host(request))
            except TimeoutError:
                raise RemoteError("an answer that does not end", where=_host(request)) from None
            finally:
                raw.close()
                raw.release_conn()
            answer.raw.seek(0)
            return answer

    none = Retry(total=False, redirect=False, raise_on_status=False)  # the SDK's policies try again
    return Bounded(pool_maxsize=max(10, transfer.connections), max_retries=none)


def _pieces(raw: Any, until: float, decode: bool) -> Any:
    """What arrives, as it arrives. Raises what the SDK expects of requests, and TimeoutError after `until`."""
    import requests
    from urllib3.exceptions import DecodeError, ProtocolError, ReadTimeoutError, SSLError

    try:
        while piece := raw.read1(_READ, decode_content=decode):
            if time.monotonic() > until:
                raise TimeoutError
            yield piece
    except ProtocolError as e:
        raise requests.exceptions.ChunkedEncodingError(e) from e
    except DecodeError as e:
        raise requests.exceptions.ContentDecodingError(e) from e
    except (ReadTimeoutError, SSLError) as e:
        raise requests.exceptions.ConnectionError(e) from e


def _host(request: Any) -> str:
    from urllib.parse import urlsplit

    return str(urlsplit(request.url).hostname)
