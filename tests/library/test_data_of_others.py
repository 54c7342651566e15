"""Training files as others write them, each trained on with the defaults, and what is understood of them."""

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from phicli import finetune
from phicli.config import FinetuneConfig
from phicli.dataset.table import Table
from phicli.errors import BadInput
from phicli.hub.datasets import find_sources

PAIRS = [(f"Wo ist Ort {i}? 🙂", f"Ort {i}, „rechts“,\nneben dem Fluß.") for i in range(12)]
CHATS = [[{"role": "system", "content": "Kurz."}, {"role": "user", "content": q}, {"role": "assistant", "content": a},
          {"role": "user", "content": "Und dann?"}, {"role": "assistant", "content": "Zurück."}] for q, a in PAIRS]
TOOL = {"type": "function", "function": {"name": "map", "parameters": {"type": "object", "properties": {}}}}
SHAREGPT = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(delimiter, header=("question", "answer"), encoding="utf-8"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *PAIRS])
    return text.getvalue().encode(encoding)


def columnar(rows, suffix):
    import pyarrow as pa
    from pyarrow import feather, parquet

    file = io.BytesIO()
    write = parquet.write_table if suffix == "parquet" else feather.write_feather
    write(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FILES = {
    "openai.jsonl": lines({"messages": chat} for chat in CHATS),
    "tools.jsonl": lines({"messages": chat, "tools": [TOOL]} for chat in CHATS),
    "azure.jsonl": lines({"messages": [*chat[:2], {**chat[2], "weight": 0}, *chat[3:]]} for chat in CHATS),
    "sharegpt.json": json.dumps(SHAREGPT, indent=2).encode(),
    "sharegpt.jsonl.gz": gzip.compress(lines(SHAREGPT), mtime=0),
    "alpaca.json": json.dumps([{"instruction": q, "input": None if i % 2 else "", "output": a}
                               for i, (q, a) in enumerate(PAIRS)]).encode(),
    "dolly.jsonl": lines({"instruction": q, "context": "", "response": a, "category": "qa"} for q, a in PAIRS),
    "trl.jsonl": lines({"prompt": chat[:2], "completion": chat[2:3]} for chat in CHATS),
    "pairs.jsonl": lines({"prompt": q, "completion": a} for q, a in PAIRS),
    "excel.csv": table(";", encoding="utf-8-sig"),
    "plain.csv": table(","),
    "tabs.tsv": table("\t"),
    "utf16.csv": table(",", encoding="utf-16"),
    "chats.parquet": columnar([{"messages": chat, "id": i} for i, chat in enumerate(CHATS)], "parquet"),
    "pairs.arrow": columnar([{"question": q, "answer": a} for q, a in PAIRS], "arrow"),
    "text.jsonl": lines({"text": f"{q} {a}"} for q, a in PAIRS),
    "no ending": lines({"query": q, "reply": a} for q, a in PAIRS),
}


@pytest.fixture(scope="module")
def root(tiny_awq):
    return tiny_awq.parent


@pytest.mark.parametrize("name", FILES)
def test_it_trains_and_says_what_the_file_says(name, root, tmp_path):
    file = tmp_path / name
    file.write_bytes(FILES[name])
    found = Table(find_sources([str(file)]), FinetuneConfig("tiny"))
    said = found.content(3)
    if isinstance(said, str):
        assert said == " ".join(PAIRS[3])
    else:
        assert [m["content"] for m in said.messages if m["role"] != "system"][:2] == list(PAIRS[3])
        assert said.trained[-1] and (name != "azure.jsonl" or sum(said.trained) == 1)
        assert bool(said.tools) == (name == "tools.jsonl")
    done = finetune("tiny", root=root, data=str(file), name="others", max_steps=1, batch_size=4, lora_r=2, device="cpu")
    assert done.manifest.quality["rows"] == 11 and done.manifest.quality["trained_tokens"] > 0


def test_folders_weights_and_stdin(root, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(FILES["pairs.jsonl"])
    (folder / "valid.jsonl").write_bytes(lines({"prompt": q + "?", "completion": a} for q, a in PAIRS[:3]))
    once = {"root": root, "name": "others", "max_steps": 1, "batch_size": 4, "lora_r": 2, "device": "cpu"}
    done = finetune("tiny", data=[str(folder), f"{folder / 'train.jsonl'}:0.5"], **once)
    assert (done.manifest.quality["rows"], done.manifest.quality["held_out_rows"]) == (18, 3)
    assert {"data", "data 2", "eval_data"} <= set(done.manifest.inputs)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FILES["plain.csv"])))
    assert finetune("tiny", data="-", **once).manifest.quality["rows"] == 11


@pytest.mark.parametrize(("row", "said"), [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference training"),
    ({"prompt": CHATS[0][:2], "completion": CHATS[0][2:3], "label": False}, "answer is a bad one"),
    ({"messages": CHATS[0], "label": False}, "answer is a bad one"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no message of an assistant"),
])
def test_what_cannot_be_trained_on_is_named_with_its_line(row, said, root, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FILES["pairs.jsonl"] + lines([row]))
    with pytest.raises(BadInput, match=said) as caught:
        finetune("tiny", root=root, data=str(file), device="cpu")
    assert caught.value.where == f"{file}:13"


def test_a_row_that_the_template_refuses(root, tmp_path):
    template, file = tmp_path / "strict.jinja", tmp_path / "rows.jsonl"
    template.write_text("{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
                        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}<|end|>{% endfor %}")
    file.write_bytes(FILES["pairs.jsonl"] + lines([{"messages": [CHATS[0][1], *CHATS[0][1:]]}]))
    with pytest.raises(BadInput, match="roles must alternate") as caught:
        finetune("tiny", root=root, data=str(file), chat_template=str(template), device="cpu", eval_split=0.0)
    assert caught.value.where == f"{file}:13"
    file.write_bytes(lines({"messages": [chat[1], *chat[1:]]} for chat in CHATS))
    for share in (0.1, 0.0):  # none that is held out has a token either
        with pytest.raises(BadInput, match="roles must alternate"):
            finetune("tiny", root=root, data=str(file), chat_template=str(template), device="cpu", eval_split=share)


def test_many_files_are_read_again_with_few_open(tmp_path):
    for number in range(60):
        blanks, ending = ("", "\n", "\n\n")[number % 3], ("\n", "\r\n", "\r")[number // 20]
        rows = [f'{blanks if i % 3 == 0 else ""}{{"prompt": "{number} {i}", "response": "b"}}\n' for i in range(9)]
        (tmp_path / f"{number:02}.jsonl").write_bytes("".join(rows).replace("\n", ending).encode())
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = Table(find_sources([str(tmp_path)]), FinetuneConfig("tiny"))
    for at in [*range(0, 540, 7), *range(539, 0, -11)]:
        file, row = divmod(at, 9)
        assert found.content(at).messages[0]["content"] == f"{file} {row}"
        assert found._line(at) == row + 1 + file % 3 * (row // 3 + 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 17
