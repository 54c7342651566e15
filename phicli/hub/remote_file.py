"""A file of the Hugging Face hub, of which parts are read without the rest."""

import re
from pathlib import Path

from phicli.errors import RemoteError

SECONDS = 30  # without a byte from the server


class NoParts(RemoteError):
    """A server that has only whole files."""


class RemoteFile:
    """A file of a model's repository.

    path: owner/name/file, to speak of it. size: in bytes, once a part has been read.
    """

    def __init__(self, repository: str, name: str):
        self.repository, self.name = repository, name
        self.path, self.size = Path(repository, name), 0

    def read(self, begin: int, count: int) -> bytes:
        """At most so many bytes from this one on, fewer at the end.

        Raises:
            NoParts: the server does not send parts of files. Errors of huggingface_hub's.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers() | {"Range": f"bytes={begin}-{begin + count - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repository, self.name)
        with get_session().stream("GET", url, headers=headers, timeout=SECONDS) as response:
            if response.status_code == 416:  # nothing is there
                return b""
            hf_raise_for_status(response)
            range_ = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not range_ or int(range_[1]) != begin:
                raise NoParts("the server does not send parts of files", where=self.path)
            self.size = int(range_[2])
            found = bytearray()
            for part in response.iter_raw():
                found += part
                if len(found) >= count:
                    break
            return bytes(found[:count])
