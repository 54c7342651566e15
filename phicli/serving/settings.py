"""What follows from the settings before anything is opened; without the packages of the extra."""

import errno
import ipaddress
from pathlib import Path

from phicli.artifacts.names import FINETUNED
from phicli.artifacts.private import others_can_write
from phicli.artifacts.reading import read_text
from phicli.config.commands import ServeConfig
from phicli.errors import BadInput, Missing, UsageError

LONGEST_KEYS = 1 << 16  # bytes
UNSENT = "has characters beyond printable ASCII, which clients send in many ways or not at all"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def read_keys(config: ServeConfig) -> list[str]:
    """The keys that clients may send.

    Raises:
        BadInput: an empty key or one that no client can send, a file without one or that others can change.
            UsageError: none, and the address is not this machine's own.
    """
    keys = [config.api_key] if config.api_key is not None else []
    if config.api_key_file:
        path = Path(config.api_key_file)
        try:
            lines = list(map(str.strip, read_text(path, LONGEST_KEYS).splitlines()))
        except FileNotFoundError:
            raise BadInput("no such file", where=path) from None
        found = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
        if wrong := [number for number, key in found.items() if not _is_sendable(key)]:
            raise BadInput(f"the key {UNSENT}", where=f"{path}:{wrong[0]}")
        keys += found.values()
        if not keys:
            raise BadInput("no key in it", where=path)
        if who := others_can_write(path):
            raise BadInput(f"others can write to {who}", where=path, hint=f"chmod go-w {who}")
    if not all(keys):
        raise BadInput("an empty key", where="--api-key")
    if not all(map(_is_sendable, keys)):
        raise BadInput(f"the key {UNSENT}", where="--api-key")
    if not keys and not config.without_key and not is_loopback(config.host):
        raise UsageError("others can reach this address, and there is no key", where=f"--host {config.host}",
                         hint="phicli serve --api-key-file FILE",
                         also=["to let everyone in: phicli serve --without-key"])
    return keys


def _is_sendable(key: str) -> bool:
    return key.isascii() and key.isprintable()


def adapter_root(config: ServeConfig) -> Path:
    """The folder from which clients may add adapters. Raises BadInput: one that was named, and is none."""
    if config.adapter_root is None:
        return config.root_folder / FINETUNED
    if not config.adapter_root or not Path(config.adapter_root).is_dir():
        raise BadInput("no such folder", where=f"--adapter-root {config.adapter_root}",
                       hint="phicli serve --adapter-root FOLDER")
    return Path(config.adapter_root)


def not_had(error: OSError, place: str) -> Missing:
    """The error where an address cannot be listened at: it is none of this machine's, or its port is another's."""
    elsewhere = error.errno == errno.EADDRNOTAVAIL
    return Missing(f"cannot be listened at: {error.strerror or error}", where=place,
                   hint="phicli serve --host 127.0.0.1" if elsewhere else "phicli serve --port 0")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def base_name(config: ServeConfig) -> str:
    """What the model without an adapter is called: as said, by its id, or by the last part of its folder."""
    if config.name:
        return config.name
    if config.path:
        return Path(config.path).resolve().name
    return config.model_name
