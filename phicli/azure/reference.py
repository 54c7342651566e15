"""azureml://… references: which model, which version, in which registry or workspace."""

import re
from dataclasses import dataclass

from phicli.errors import BadInput

SCHEME = "azureml:"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
_VERSION = rf"(?:/versions/(?P<version>{_NAME})|/labels/(?P<label>{_NAME}))"
_LONG = re.compile(
    rf"azureml://(?:registries/(?P<registry>{_NAME})"
    rf"|(?:subscriptions/(?P<subscription>[\w-]+)/resource[gG]roups/(?P<resource_group>[\w().-]+)/"
    rf"(?:providers/Microsoft\.MachineLearningServices/)?)?workspaces/(?P<workspace_name>{_NAME}))"
    rf"/models/(?P<name>{_NAME}){_VERSION}/?")
_SHORT = re.compile(rf"azureml:(?P<name>{_NAME})(?::(?P<version>{_NAME})|@(?P<label>{_NAME}))")
EXAMPLE = "azureml://registries/R/models/N/versions/V, azureml://workspaces/W/models/N/labels/latest, or azureml:N:V"


@dataclass(frozen=True)
class Reference:
    """A model version. registry None: in a workspace, whose names are None where the settings have them.

    version None: the latest.
    """

    name: str
    version: str | None
    registry: str | None = None
    subscription: str | None = None
    resource_group: str | None = None
    workspace_name: str | None = None


def is_reference(text: str) -> bool:
    return text.startswith(SCHEME)


def parse_reference(text: str) -> Reference:
    """Take a reference apart. Raises BadInput if it is none."""
    match = _LONG.fullmatch(text) or _SHORT.fullmatch(text)
    if not match:
        raise BadInput("not a reference to a model", where=text, hint=EXAMPLE)
    parts = match.groupdict()
    label = parts.pop("label")
    if label not in (None, "latest"):
        raise BadInput(f"'{label}' is no label that models have; only 'latest' is", where=text)
    return Reference(**parts)


def check_name(text: str, what: str) -> str:
    """The text, if it can name a model or a version. Raises BadInput."""
    if not re.fullmatch(_NAME, text):
        raise BadInput(f"'{text}' cannot be a model's {what}: letters, digits, '-', '_' and '.', at most 255")
    return text
