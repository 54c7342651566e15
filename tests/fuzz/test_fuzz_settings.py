"""Any settings file, any environment."""

import json
import os

from fuzzing import EXPECTED, fuzzed, mutated, text, values
from hypothesis import strategies as st

from phicli.config.layers import SETTINGS, Settings
from phicli.config.shared import default_root

GOOD = b"""model = "tiny"
device = "cpu"
[finetune]
max_steps = 3
learning_rate = 1e-3
target_modules = ["o_proj"]
mask_prompt = true
[azure]
timeout = 2
"""
keys = st.one_of(st.sampled_from(list(SETTINGS)), text)
toml = st.dictionaries(keys, values, max_size=4).map(
    lambda found: "\n".join(f"{json.dumps(key) if '.' not in key else key} = {json.dumps(value)}"
                            for key, value in found.items()).encode("utf-8", "surrogatepass"))


def check_all(settings):
    for setting in SETTINGS.values():
        try:
            found = settings.get(setting).value
        except EXPECTED:
            continue
        assert found is None or isinstance(found, setting.kind)


@fuzzed(data=st.one_of(mutated(GOOD), toml, st.binary(max_size=100)))
def test_settings_files(tmp_path, data):
    path = tmp_path / "phicli.toml"
    path.write_bytes(data)
    try:
        settings = Settings(path)
    except EXPECTED as e:
        assert str(path) in str(e)
    else:
        check_all(settings)


@fuzzed(given=st.dictionaries(st.sampled_from(list(SETTINGS)), text, min_size=1, max_size=6))
def test_environment(given):
    variables = {SETTINGS[key].env: value for key, value in given.items()}
    variables = {k: v for k, v in variables.items() if "\0" not in v and v.encode("utf-8", "replace").decode() == v}
    os.environ.update(variables)
    try:
        check_all(Settings())
    finally:
        for name in variables:
            del os.environ[name]


@fuzzed(model=text)
def test_roots(model):
    assert default_root(model).startswith("models/")
