"""`phicli serve` as a command: what it says, and how it ends."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time

import pytest

BODY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 700, "ignore_eos": True, "stream": True}
JSON = {"content-type": "application/json"}


@pytest.fixture
def command(forks, serve_root, tmp_path):
    """command(*options) -> (pid, address) of a server that takes requests."""
    started = []

    def start(*options):
        out = tmp_path / f"run{len(started)}"
        port = () if "--port" in options else ("--port", "0")
        pid = forks.start("serve", "--root", serve_root, "--model", "tiny", "--device", "cpu", *port, *options,
                          cwd=tmp_path, out=out)
        started.append(pid)
        until = time.monotonic() + 60
        said = out.with_name(f"{out.name}.out")
        while time.monotonic() < until and not (said.is_file() and said.read_text().endswith("\n")):
            time.sleep(0.05)
        address = said.read_text().strip()
        assert address.startswith("http://127.0.0.1:"), out.with_name(f"{out.name}.err").read_text()
        return pid, address.removeprefix("http://"), out.with_name(f"{out.name}.err")

    return start


def test_sigterm_lets_running_answers_end(command, forks):
    pid, place, said = command()
    running = http.client.HTTPConnection(place, timeout=60)
    running.request("POST", "/v1/chat/completions", json.dumps(BODY), JSON)
    stream = running.getresponse()
    assert stream.readline().startswith(b"data: ")
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    other = http.client.HTTPConnection(place, timeout=60)
    other.request("POST", "/v1/chat/completions", json.dumps(BODY), JSON)
    refused = other.getresponse()
    assert refused.status == 503 and refused.getheader("retry-after") and b"stopping" in refused.read()
    other.request("GET", "/health")
    assert other.getresponse().status == 503
    assert stream.read().endswith(b"data: [DONE]\n\n")
    assert forks.wait(pid) == 0
    text = said.read_text()
    assert "models: tiny, cooking, travel" in text and "a page to chat: http://127.0.0.1:" in text
    assert "Traceback" not in text and "ERROR" not in text and "--context" not in text


def test_a_context_that_the_model_does_not_have_is_told(command, forks):
    pid, _, said = command("--context", "100000")
    os.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 0
    assert "warning: the model takes 2,048 tokens, prompt and answer together, not the 100,000 of --context" in (
        said.read_text())


def test_ctrl_c_and_an_end_of_patience(command, forks):
    pid, place, said = command("--grace", "0.5", "-v")
    running = http.client.HTTPConnection(place, timeout=60)
    running.request("POST", "/v1/chat/completions", json.dumps(BODY | {"max_tokens": 2000, "n": 8}), JSON)
    stream = running.getresponse()
    assert stream.readline().startswith(b"data: ")
    os.kill(pid, signal.SIGINT)
    assert b'"message":"the server is stopping"' in stream.read()
    assert forks.wait(pid) == 130
    assert "Traceback" not in said.read_text()


def test_a_kill_leaves_nothing_to_repair(command, forks, serve_root):
    """Nothing is written while it serves, and another takes the same port at once and answers the same."""
    def there():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in serve_root.rglob("*")
                if "logs" not in path.relative_to(serve_root).parts and path != serve_root}

    def answer(place):
        asking = http.client.HTTPConnection(place, timeout=60)
        asking.request("POST", "/v1/chat/completions", json.dumps(
            {**BODY, "stream": False, "max_tokens": 8, "temperature": 0}), JSON)
        return json.loads(asking.getresponse().read())["choices"]

    pid, place, _ = command()
    before, wanted = there(), answer(place)
    running = http.client.HTTPConnection(place, timeout=60)
    running.request("POST", "/v1/chat/completions", json.dumps(BODY), JSON)
    stream = running.getresponse()
    assert stream.readline().startswith(b"data: ")
    os.kill(pid, signal.SIGKILL)
    assert forks.wait(pid) == -9
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        stream.read()
    assert there() == before
    _, again, _ = command("--port", place.rpartition(":")[2])
    assert again == place and answer(again) == wanted


def test_what_is_missing_is_said(cli, tmp_path, serve_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("serve", "--model", "tiny")
    assert done.code == 4 and "phicli run --model tiny" in done.err
    done = cli("serve", "--root", serve_root, "--host", "0.0.0.0")
    assert done.code == 2 and "--api-key-file" in done.err
    done = cli("serve", "--root", serve_root, "--host", "no.such.host.invalid")
    assert done.code == 2 and "--host no.such.host.invalid: no address" in done.err
    done = cli("serve", "--root", serve_root, "--adapter", "paris")
    assert done.code == 3 and "there are: cooking, travel" in done.err
    done = cli("serve", "--root", serve_root, "--name", "travel")
    assert done.code == 2
    monkeypatch.setattr("phicli.serving.needed.PACKAGES", ("no_such_package",))
    done = cli("serve", "--root", serve_root)
    assert done.code == 4 and "pip install 'phicli[serve]'" in done.err


def test_llm_as_a_client(served, tmp_path):
    """The command `llm`, with an entry for this server."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: travel\n  api_base: {served.address}/v1\n")
    done = subprocess.run([sys.executable, "-m", "llm", "-m", "here", "-n", "-o", "temperature", "0", "-o",
                           "max_tokens", "8", "Hello"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"})
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
