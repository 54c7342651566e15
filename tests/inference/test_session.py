"""Loading an optimized model, and its logits."""

import json
import shutil

import numpy as np
import pytest
from optimized import write_adapter

from phicli.errors import BadInput, Missing
from phicli.export.genai_config import read_config
from phicli.hardware.driver import gpu_count
from phicli.inference.devices import built_for
from phicli.inference.sampling import Sampling
from phicli.inference.session import Session


@pytest.fixture(scope="module")
def session(optimized):
    return Session(optimized / "onnx-ao")


@pytest.fixture
def copied(optimized, tmp_path):
    """The model's folder, to be damaged."""
    return shutil.copytree(optimized / "onnx-ao", tmp_path / "onnx-ao")


def test_logits_of_all_positions_are_those_of_step_by_step_decoding(session):
    ids = session.codec.encode_text("The harbour lies below the old town, and the boats leave at nine.")
    whole = session.logits(ids)
    assert whole.shape == (len(ids), session.vocab_size) and whole.dtype == np.float32
    generator = session.generator(len(ids) + 1)
    for n, token in enumerate(ids):
        generator.append_tokens([token])
        np.testing.assert_allclose(generator.logits()[-1], whole[n], atol=1e-4)


def test_each_adapter_gives_logits_of_its_own_and_none_is_left_behind(session):
    ids = session.codec.encode_text("Where should I go in spring?")
    plain = session.logits(ids)
    travel, cooking = session.logits(ids, "travel"), session.logits(ids, "cooking")
    assert min(abs(a - b).max() for a, b in ((plain, travel), (plain, cooking), (travel, cooking))) > 0.05
    np.testing.assert_array_equal(session.logits(ids), plain)
    assert session.adapter_names() == ["cooking", "travel"]


def test_more_tokens_than_the_context(session):
    with pytest.raises(BadInput, match=rf"{session.context + 1} tokens .* context of {session.context}"):
        session.logits([5] * (session.context + 1))


@pytest.mark.parametrize(("ids", "said"), [([], "no tokens"), ([5, 10**7], "10000000: a token"), ([-1], "-1: a token")])
def test_tokens_that_there_are_none_of(session, ids, said):
    with pytest.raises(BadInput, match=said):
        session.logits(ids)


@pytest.mark.parametrize("name", ["paris", "../travel", ""])
def test_an_unknown_adapter_names_those_there_are(session, name):
    with pytest.raises(BadInput, match="there are: cooking, travel"):
        session.load_adapter(name)


def test_no_folder(tmp_path):
    with pytest.raises(Missing) as e:
        Session(tmp_path / "onnx-ao")
    assert e.value.hint == "phicli optimize"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "no config": lambda f: (f / "genai_config.json").unlink(),
    "config cut": lambda f: cut(f / "genai_config.json"),
    "config of something else": lambda f: (f / "genai_config.json").write_text("[]"),
    "config without sizes": lambda f: (f / "genai_config.json").write_text('{"model": {"type": "phi3"}}'),
    "no graph": lambda f: (f / "model.onnx").unlink(),
    "graph cut": lambda f: cut(f / "model.onnx"),
    "no weights": lambda f: (f / "model.onnx.data").unlink(),
    "weights cut": lambda f: cut(f / "model.onnx.data"),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "tokenizer cut": lambda f: cut(f / "tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_bad_input(copied, damage):
    DAMAGES[damage](copied)
    with pytest.raises(BadInput) as e:
        Session(copied)
    assert str(copied) in str(e.value)


def test_damaged_and_foreign_adapters_are_bad_input(copied):
    cut(copied / "adapters" / "travel.onnx_adapter")
    write_adapter(copied / "adapters" / "other.onnx_adapter", {"lora_A.99.nothing": np.ones((4, 4), np.float32)})
    session = Session(copied)
    for name in ("travel", "other"):
        with pytest.raises(BadInput) as e:
            session.logits([5, 6, 7], name)
        assert f"{name}.onnx_adapter" in str(e.value)
    assert session.logits([5, 6, 7], "cooking").shape == (3, session.vocab_size)


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU here")
def test_cuda_where_there_is_no_gpu(optimized, copied):
    with pytest.raises(Missing, match="no NVIDIA GPU"):
        Session(optimized / "onnx-ao", "cuda")
    path = copied / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": "0"}}]
    path.write_text(json.dumps(config))
    assert built_for(read_config(copied)) == "cuda"
    with pytest.raises(Missing, match="built for CUDA"):
        Session(copied)
    assert Session(copied, "cpu").provider == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
def test_cuda_agrees_with_cpu(optimized, session):
    ids = session.codec.encode_text("The harbour lies below the old town.")
    on_gpu = Session(optimized / "onnx-ao", "cuda")
    assert on_gpu.provider == "cuda"
    for adapter in (None, "travel"):
        np.testing.assert_allclose(on_gpu.logits(ids, adapter), session.logits(ids, adapter), atol=0.05)


def test_sampling_options():
    assert Sampling().search_options(100) == {"do_sample": False, "repetition_penalty": 1.0}
    options = Sampling(temperature=0.5, top_k=500, seed=7).search_options(100)
    assert options["top_k"] == 100 and options["random_seed"] == 7 and options["do_sample"]


def test_what_is_loaded_keeps_its_templates(copied):
    """And its adapters theirs, also where no conversation was laid out before the folder went, or became another's."""
    def show(session, adapter=None) -> str:
        return session.codec_of(adapter).render_chat([{"role": "user", "content": "Hello"}])

    (copied / "adapters" / "travel.jinja").write_text("traveller: {{ messages[0].content }}")
    with Session(copied) as session, Session(copied) as other:
        before = show(other)
        (copied / "chat_template.jinja").write_text("another model")
        (copied / "adapters" / "travel.jinja").write_text("another adapter")
        assert (show(session), show(session, "travel")) == (before, "traveller: Hello")
        assert (show(session, "cooking")) == before
        shutil.rmtree(copied)
        assert (show(session), show(session, "travel")) == (before, "traveller: Hello")
