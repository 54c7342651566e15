import pytest

from phicli.config.layers import SETTINGS, Settings
from phicli.config.shared import default_root
from phicli.config.steps import QuantizeConfig
from phicli.errors import BadInput, UsageError


def resolve(tmp_path, text="", **flags):
    path = tmp_path / "phicli.toml"
    path.write_text(text)
    return Settings(path).resolve(QuantizeConfig, flags)


def test_flag_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    text = "[quantize]\nbits = 5\n"
    assert resolve(tmp_path, bits=None).bits == 4
    assert resolve(tmp_path, text, bits=None).bits == 5
    monkeypatch.setenv("PHICLI_QUANTIZE_BITS", "6")
    assert resolve(tmp_path, text, bits=None).bits == 6
    assert resolve(tmp_path, text, bits=7).bits == 7


def test_origin_is_named(tmp_path, monkeypatch):
    path = tmp_path / "phicli.toml"
    path.write_text('model = "tiny"\n')
    monkeypatch.setenv("PHICLI_SEED", "3")
    settings = Settings(path)
    assert settings.get(SETTINGS["model"]).origin == str(path)
    assert settings.get(SETTINGS["seed"]).origin == "PHICLI_SEED"
    assert settings.get(SETTINGS["device"]).origin == "default"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[quantize]\nbitz = 4\n", "unknown setting 'quantize.bitz'", "quantize.bits"),
        ("modle = 'x'\n", "unknown setting 'modle'", "model"),
        ("[quantize]\nbits = 'four'\n", "needs int", None),
        ("[quantize]\nbits = true\n", "needs int", None),
        ("[finetune]\nmax_steps = 0\n", "at least 1", None),
        ("device = 'gpu'\n", "not one of auto, cuda, cpu", None),
        ("data = []\n", "data: is empty", None),
        ("= 3", "not readable as TOML", None),
    ],
)
def test_bad_file(tmp_path, text, message, hint):
    path = tmp_path / "phicli.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as e:
        settings = Settings(path)
        for setting in SETTINGS.values():
            settings.get(setting)
    if hint:
        assert hint in e.value.hint


def test_bad_flag_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="not one of"):
        Settings().resolve(QuantizeConfig, {"algorithm": "awk"})


def test_a_list_may_be_given_with_commas_or_several_times():
    assert Settings().get(SETTINGS["quantize.skip"], ["o_proj, down_proj", "lm_head"]).value == (
        "o_proj", "down_proj", "lm_head")


def test_a_path_with_a_comma_that_is_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.jsonl").touch()
    for given, value in (("a.jsonl, b.jsonl:2", ("a.jsonl", "b.jsonl:2")), ("a,b.jsonl", ("a,b.jsonl",)),
                         ("a,b.jsonl:2", ("a,b.jsonl:2",))):
        assert Settings().get(SETTINGS["data"], [given]).value == value
        monkeypatch.setenv("PHICLI_DATA", given)
        assert Settings().get(SETTINGS["data"]).value == value
        monkeypatch.delenv("PHICLI_DATA")
    assert Settings().get(SETTINGS["data"], [""]).value == ("",)
    monkeypatch.setenv("PHICLI_DATA", "")
    with pytest.raises(BadInput, match="PHICLI_DATA: is empty"):
        Settings().get(SETTINGS["data"])
    assert SETTINGS["quantize.own_rows"].checked([], "--own-rows") == ()


def test_whole_numbers_are_floats_too(tmp_path):
    path = tmp_path / "phicli.toml"
    path.write_text("[chat]\ntemperature = 1\n")
    assert Settings(path).get(SETTINGS["chat.temperature"]).value == 1.0


@pytest.mark.parametrize(("model", "root"), [
    ("microsoft/Phi-3.5-mini-instruct", "models/phi"), ("microsoft/Phi-4-mini-instruct", "models/phi"),
    ("tiny", "models/tiny"), ("Qwen/Qwen3-0.6B", "models/qwen3-0.6b"), ("/a/b/My Model/", "models/my model"),
])  # fmt: skip
def test_default_root(model, root):
    assert default_root(model) == root


def test_config_command(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHICLI_CHAT_TOP_K", "7")
    done = cli("config", "--json")
    assert done.code == 0 and not done.err
    import json

    assert json.loads(done.out)["chat.top_k"] == {"value": 7, "origin": "PHICLI_CHAT_TOP_K"}
    (tmp_path / "phicli.toml").write_text("[chat]\ntop_p = 'x'\n")
    done = cli("config")
    assert (done.code, done.out) == (3, "") and "top_p" in done.err
