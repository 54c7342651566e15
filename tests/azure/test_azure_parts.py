"""The parts that need no Azure."""

import json
import threading
import time

import pytest

from phicli.azure.content import hash_content, list_content
from phicli.azure.faults import redact
from phicli.azure.parallel import completed
from phicli.azure.reference import Reference, parse_reference
from phicli.azure.register import choose_version
from phicli.azure.staging import LARGEST_BLOCK, MOST_BLOCKS, SMALLEST_BLOCK, block_size
from phicli.azure.storage import _end_of
from phicli.azure.target import Target, find_target
from phicli.config.layers import Settings
from phicli.config.shared import default_root
from phicli.errors import BadInput, Missing

LONG = "azureml://subscriptions/s-1/resourceGroups/g(1)/workspaces/w/models/Phi-3.5/versions/2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("azureml://registries/azureml/models/Phi-3.5/versions/6", Reference("Phi-3.5", "6", "azureml")),
        ("azureml://registries/azureml/models/Phi-3.5/labels/latest", Reference("Phi-3.5", None, "azureml")),
        (LONG, Reference("Phi-3.5", "2", None, "s-1", "g(1)", "w")),
        (LONG.replace("workspaces", "providers/Microsoft.MachineLearningServices/workspaces"),
         Reference("Phi-3.5", "2", None, "s-1", "g(1)", "w")),
        ("azureml://workspaces/w/models/m/versions/2", Reference("m", "2", None, None, None, "w")),
        ("azureml:m:2", Reference("m", "2")),
        ("azureml:m@latest", Reference("m", None)),
    ],
)
def test_references(text, expected):
    assert parse_reference(text) == expected


def test_a_referenced_model_has_a_root_of_its_name():
    assert default_root("azureml://registries/azureml/models/Phi-4/versions/6") == "models/phi-4"
    assert default_root("azureml:ft-for-travel:3") == "models/ft-for-travel"


def test_workspace_from_flag_environment_file_sdk_config_and_question(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def ask(question):
        asked.append(question)
        return "typed"

    assert find_target(Settings(), {}, ask) == Target("typed", "typed", "typed") and len(asked) == 3
    (tmp_path / ".azureml").mkdir()
    (tmp_path / ".azureml" / "config.json").write_text(
        json.dumps({"subscription_id": "sdk", "resource_group": "sdk", "workspace_name": "sdk"}))
    (tmp_path / "phicli.toml").write_text('[azure]\nworkspace_name = "file"\nresource_group = "file"\n')
    monkeypatch.setenv("PHICLI_AZURE_WORKSPACE_NAME", "env")
    (tmp_path / "below").mkdir()
    assert find_target(Settings(), {}) == Target("sdk", "file", "env")
    assert find_target(Settings(), {"workspace_name": "flag"}) == Target("sdk", "file", "flag")
    (tmp_path / ".azureml" / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json"):
        find_target(Settings(), {})
    (tmp_path / ".azureml" / "config.json").unlink()
    with pytest.raises(Missing, match="subscription not set") as caught:
        find_target(Settings(), {})
    assert "phicli azure use --subscription … --resource-group file" in caught.value.hint


def test_version_to_register():
    there = {"3": "c", "draft": "d", "1": "a"}
    assert choose_version({}, None, "a", "m") == ("1", False)
    assert choose_version(there, None, "new", "m") == ("4", False)
    assert choose_version(there, None, "a", "m") == ("1", True)
    assert choose_version(there, "9", "a", "m") == ("9", False)
    assert choose_version(there, "draft", "d", "m") == ("draft", True)
    with pytest.raises(BadInput, match="version 3 of 'm' is there") as caught:
        choose_version(there, "3", "a", "m")
    assert caught.value.hint == "--version 4"


@pytest.mark.parametrize("total", [1, 10**6, 3 * 10**8, 10**10, 10**12])
def test_blocks_are_small_beside_the_whole_and_not_too_many(total):
    size = block_size(total, total)
    assert size >= SMALLEST_BLOCK and -(-total // size) <= MOST_BLOCKS
    assert size <= max(SMALLEST_BLOCK, total // 200) and (size <= LARGEST_BLOCK or total > MOST_BLOCKS * LARGEST_BLOCK)


def test_digest_depends_on_names_and_bytes_only(tmp_path):
    def digest(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return hash_content(list_content(folder)).digest

    files = {"a": b"1", "b/c": b"2"}
    assert digest(files) == digest(dict(reversed(files.items())))
    assert len({digest(files), digest({"a": b"1", "b/d": b"2"}), digest({"a": b"1", "b/c": b"3"})}) == 3


def test_redaction():
    text = ("url: /c/b?sv=2024&sig=abc%2Fdef%3D&se=1 Bearer eyJ.a.b AccountKey=xyz== "
            '{"accessToken": "eyJ0"} and signals=3')
    assert redact(text) == ("url: /c/b?sv=2024&sig=***&se=1 Bearer *** AccountKey=*** "
                            '{"accessToken": "***"} and signals=3')


def test_end_of_a_signature():
    assert _end_of("sv=1&se=2025-01-01T00%3A00%3A00Z&sig=x") == 1735689600
    assert _end_of("account-key==") is None and _end_of(None) is None


def test_parallel_results_errors_and_leaving():
    assert sorted(completed((lambda i=i: i for i in range(20)), 4)) == list(range(20))
    begun, release = [], threading.Event()

    def fail():
        raise KeyError("x")

    def block():
        begun.append(1)
        release.wait(10)

    start = time.monotonic()
    with pytest.raises(KeyError):
        list(completed([block, fail, *[block] * 50], 2))
    assert time.monotonic() - start < 2 and len(begun) <= 2
    release.set()
