"""The settings of commands that are no steps of the lab."""

import re
from dataclasses import dataclass
from typing import ClassVar

from phicli.config import shared
from phicli.config.azure import WorkspaceConfig
from phicli.config.bases import OfModel
from phicli.config.setting import StepConfig, again, setting
from phicli.errors import UsageError


@dataclass(frozen=True)
class ChatConfig(OfModel):
    """Settings of `phicli chat`."""

    STEP: ClassVar[str] = "chat"

    path: str | None = setting(None, "Folder of the ONNX model [default: ROOT/onnx-ao]", once=True, path=True,
                               recorded=False)
    adapter: str | None = shared.adapter()
    system: str | None = setting(None, "System message")
    max_new_tokens: int = setting(256, "Maximum length of an answer in tokens", minimum=1)
    stop: tuple[str, ...] = setting((), "Text that an answer ends before; may be repeated", verbatim=True,
                                    metavar="TEXT")
    temperature: float | None = setting(None, "Sampling temperature; 0: greedy decoding [default: the model's own in a "
                                        "conversation, else 0]", minimum=0)
    top_p: float | None = setting(None, "Nucleus sampling: the likeliest tokens with this total probability [default: "
                                  "the model's own, else 0.95]", above=0, maximum=1, panel="Sampling")
    top_k: int | None = setting(None, "Sample from this many likeliest tokens; 0: from all [default: the model's own, "
                                "else 50]", minimum=0, panel="Sampling")
    min_p: float | None = setting(None, "Sample from tokens at least this fraction as likely as the likeliest one "
                                  "[default: 0]", minimum=0, maximum=1, panel="Sampling")
    repetition_penalty: float | None = setting(None, "Divide the score of tokens that were there already by this; 1: "
                                               "no penalty [default: the model's own, else 1]", above=0,
                                               panel="Sampling")
    raw: bool = setting(False, "Answers at a terminal as they are, not as Markdown", flags=("--raw/--no-raw",),
                        recorded=False, panel=shared.RUNNING)
    log: bool = setting(True, "Keep what is asked and answered, for --continue", flags=("--log/--no-log",),
                        recorded=False, panel=shared.RUNNING)
    seed: int = shared.seed()
    device: str = shared.device()
    provider: str = shared.provider()
    kernels: str = shared.kernels()
    chat_template_kwargs: tuple[str, ...] = shared.chat_template_kwargs()


LIMITS, ACCESS = "Limits", "Access"
ANY_ORIGIN = "*"
HOST = re.compile(r"[^\s/:,@*\[\]]+|[0-9a-f.]*:[0-9a-f:.]*", re.IGNORECASE)  # the second: IPv6
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*,\sA-Z]+")  # as browsers send it


@dataclass(frozen=True)
class ServeConfig(OfModel):
    """Settings of `phicli serve`."""

    STEP: ClassVar[str] = "serve"

    path: str | None = setting(None, "Folder of the ONNX model [default: ROOT/onnx-ao]", once=True, path=True)
    name: str | None = setting(None, "Name of the base model in requests [default: the model's]", metavar="NAME")
    adapters: tuple[str, ...] = setting((), "Adapter to serve, a model of its own in requests; may be repeated "
                                        "[default: all]", flags=("--adapter", "-a"), metavar="NAME")
    host: str = setting("127.0.0.1", "Address to listen at; any but this machine's own needs a key")
    port: int = setting(8000, "Port to listen at; 0: any that is free", minimum=0, maximum=65535)
    api_key: str | None = setting(None, "Key that clients must send; lists of processes show it, a file does not",
                                  once=True, metavar="KEY")
    api_key_file: str | None = setting(None, "File with such keys, one a line; lines that begin with # are remarks",
                                       path=True)
    engine: str = setting("phicli", "What runs the model; vllm: that package, on a GPU", choices=("phicli", "vllm"))
    max_batch: int = setting(8, "Answers that are generated at once", minimum=1, panel=LIMITS)
    context: int | None = setting(None, "Tokens of the longest prompt with its answer [default: the model's]",
                                  minimum=16, panel=LIMITS)
    max_tokens: int | None = setting(None, "Tokens of the longest answer [default: as many as the context takes]",
                                     minimum=1, panel=LIMITS)
    max_queue: int = setting(256, "Requests that may wait; more are refused", minimum=1, panel=LIMITS)
    max_body: int = setting(4 << 20, "Bytes of the largest request", minimum=1024, panel=LIMITS)
    timeout: float = setting(600.0, "Seconds that an answer may take", above=0, panel=LIMITS)
    grace: float = setting(30.0, "Seconds that running answers have left when the server is told to stop", minimum=0,
                           panel=LIMITS)
    without_key: bool = setting(False, "Let everyone in who reaches the address", once=True, flags=("--without-key",),
                                panel=ACCESS)
    allowed_hosts: tuple[str, ...] = setting((), "Name by which this machine may be called; may be repeated [default: "
                                             "its own addresses; any where others may ask]", flags=("--allowed-host",),
                                             metavar="NAME", panel=ACCESS)
    cors_origins: tuple[str, ...] = setting((), "Origin whose pages may ask, such as https://example.org, or * for "
                                            "any; may be repeated", flags=("--cors-origin",), metavar="ORIGIN",
                                            panel=ACCESS)
    adapter_root: str | None = setting(None, "Folder from which clients may add adapters [default: ROOT/ft]",
                                       path=True, panel=ACCESS)
    page: bool = setting(True, "Serve the page to chat", flags=("--page/--no-page",), panel=ACCESS)
    prefix_cache: bool = setting(True, "Keep what prompts have in common", flags=("--prefix-cache/--no-prefix-cache",),
                                 panel=shared.RUNNING)
    fixed_batch: bool = setting(False, "Run steps of as many rows as --max-batch always: on a GPU only then, and with "
                                "no prefix cache, is an answer the same whatever runs beside it",
                                flags=("--fixed-batch/--no-fixed-batch",), panel=shared.RUNNING)
    speculate: str = setting("auto", "Tokens to guess from what is in a prompt and its answer already, and to run at "
                             "once; auto: as many as pay, none with --fixed-batch",
                             choices=("auto", "off", "1", "3", "7", "15"), panel=shared.RUNNING)
    device: str = shared.device()
    provider: str = shared.provider()
    kernels: str = shared.kernels()
    chat_template_kwargs: tuple[str, ...] = shared.chat_template_kwargs()

    def __post_init__(self) -> None:
        super().__post_init__()
        for origin in self.cors_origins:
            _check_origin(origin)
        for host in self.allowed_hosts:
            _check_host(host)


def _check_origin(origin: str) -> None:
    """Raises UsageError: no page's header Origin can be that."""
    if origin in (ANY_ORIGIN, "null") or ORIGIN.fullmatch(origin):
        return
    meant = origin.lower().rstrip("/")
    raise UsageError(f"'{origin}' is no origin: https://example.org is one, in small letters and without a path",
                     where="--cors-origin",
                     hint=f"phicli serve --cors-origin {meant}" if ORIGIN.fullmatch(meant) else None)


def _check_host(host: str) -> None:
    """Raises UsageError: no request can name a machine so."""
    if HOST.fullmatch(host):
        return
    meant = re.sub(r"^[a-z]+://|/.*$", "", host.lower())
    meant = re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*):\d+$", r"\1\3", meant)
    raise UsageError(f"'{host}' is no name of a machine: host.example is one, without a port", where="--allowed-host",
                     hint=f"phicli serve --allowed-host {meant}" if HOST.fullmatch(meant) else None)


@dataclass(frozen=True)
class InitConfig(StepConfig):
    """What `phicli init` writes."""

    STEP: ClassVar[str] = "init"

    data: tuple[str, ...] = shared.data()
    model: str = shared.model()
    device: str = shared.device()
    workspace_name: str | None = again(WorkspaceConfig, "workspace_name")
    resource_group: str | None = again(WorkspaceConfig, "resource_group")
    subscription: str | None = again(WorkspaceConfig, "subscription")


@dataclass(frozen=True)
class LogsConfig(OfModel):
    """Settings of `phicli logs`."""

    STEP: ClassVar[str] = "logs"


@dataclass(frozen=True)
class WorkflowConfig(OfModel):
    """Settings of a workflow of Olive's passes, which `phicli run --workflow` runs."""

    STEP: ClassVar[str] = "workflow"

    workflow: str | None = setting(None, "Workflow of Olive's to run in place of the lab: JSON or YAML", once=True,
                                   metavar="FILE", path=True, recorded=False, panel="Passes")
    passes: tuple[str, ...] = setting((), "Pass of Olive's to run (after those of --workflow), with its settings: "
                                      "\"Rtn bits=4\"; may be repeated", once=True, flags=("--pass",), verbatim=True,
                                      metavar="\"NAME KEY=VALUE\"", recorded=False, panel="Passes")
    device: str = shared.device()
    output: str | None = shared.output()
    force: bool = shared.force()


@dataclass(frozen=True)
class DoctorConfig(OfModel):
    """Settings of `phicli doctor`."""

    STEP: ClassVar[str] = "doctor"

    device: str = shared.device()
