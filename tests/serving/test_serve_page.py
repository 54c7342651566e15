"""The page to chat, in headless Chromium: Debian's, or the one that Playwright has installed."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect, sync_playwright

from phicli.serving.files import FOLDER

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
HOSTILE = """# Title <img src=x onerror=alert(1)>
<script>alert(1)</script> **bold** *slanted* `code <b>` ~~gone~~ [a](javascript:alert(1)) [b](https://a.example/?q=1)
[c](data:text/html,x) https://bare.example/x snake_case_name

- one
  - inner
- two

3. three

| a | b |
| - | - |
| 1 | <i>2</i> |

> quoted

```python
print("<b>")
```
"""
RENDER = """async (text) => {
    const { render } = await import("/page/markdown.js");
    const made = document.createElement("div"), begun = performance.now();
    render(made, text);
    const seconds = (performance.now() - begun) / 1000;
    return { html: made.innerHTML, tags: [...made.querySelectorAll("*")].map((one) => one.tagName.toLowerCase()),
             links: [...made.querySelectorAll("a")].map((one) => one.href), seconds };
}"""


@pytest.fixture(scope="module")
def browser():
    place = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        except Error:
            if os.environ.get("CI"):
                raise
            pytest.skip("no Chromium: apt-get install chromium-headless-shell, or playwright install chromium")
        yield found
        found.close()


@pytest.fixture
def opened(browser, served):
    """opened(width=…, color_scheme=…) -> a page, which has to ask this server alone and to complain of nothing."""
    complaints, asked, pages = [], set(), []

    def open_page(width=1280, url=served.address, **more):
        page = browser.new_page(viewport={"width": width, "height": 800}, **more)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3])))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not complaints
    assert asked == {served.address}


def short(page, tokens=12):
    page.click("#options")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", str(tokens))
    page.press("#max_tokens", "Tab")
    page.click("#options")


def test_a_conversation_with_adapters_side_by_side(opened, served):
    page = opened()
    expect(page.locator("#model option")).to_have_text(["tiny", "cooking", "travel"])
    short(page)
    page.fill("#question", "What is the capital of France?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer footer span")).to_contain_text("tokens")
    asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0,
             "max_tokens": 12}
    wanted = served.ask("/v1/chat/completions", asked).json["choices"][0]["message"]["content"]
    expect(page.locator(".said")).to_have_text(wanted)
    page.select_option("#beside", "cooking")
    page.fill("#question", "And now?")
    page.press("#question", "Enter")
    expect(page.locator(".pair .answer h2")).to_have_text(["tiny", "cooking"])
    expect(page.locator(".pair footer span")).to_contain_text(["tokens", "tokens"])
    boxes = [page.locator(".pair .answer").nth(n).bounding_box() for n in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.locator(".pair").get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.locator("#log section").first.get_by_role("button", name="Retry").click()  # what came after it goes
    expect(page.locator("#log section")).to_have_count(1)
    expect(page.locator(".answer h2")).to_have_text(["tiny", "cooking"])
    expect(page.locator(".answer footer span")).to_contain_text(["tokens", "tokens"])
    page.click("#new")
    expect(page.locator("#log section")).to_have_count(0)


def test_a_question_waits_for_the_list_of_models(opened, served):
    page = opened(url="about:blank")
    held = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto(served.address)
    page.fill("#question", "Hello")
    page.press("#question", "Enter")
    page.press("#question", "Enter")
    expect(page.locator("#question")).to_have_value("Hello")
    held[0].continue_()
    expect(page.locator(".answer h2")).to_have_text(["tiny"])
    expect(page.locator(".answer footer span")).to_contain_text("tokens")


def test_an_answer_is_stopped(opened, served):
    page = opened()
    page.route("**/v1/chat/completions", lambda route: route.continue_(  # what the page has no setting for
        post_data=route.request.post_data_json | {"ignore_eos": True, "max_tokens": 1900}))
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.click("#stop")):
        page.fill("#question", "Hello")
        page.press("#question", "Enter")
        expect(page.locator(".said").last).not_to_have_text("")
        stop()
        expect(page.locator(".answer footer span").last).to_contain_text("stopped")
        assert served.idle(5)
    page.press("#question", "ArrowUp")
    expect(page.locator("#question")).to_have_value("Hello")


def test_text_of_a_model_is_never_markup(opened):
    page = opened()
    found = page.evaluate(RENDER, HOSTILE)
    assert " ".join(sorted(set(found["tags"]))) == ("a blockquote br button code del div em h1 li ol p pre strong "
                                                    "table tbody td th thead tr ul")
    assert found["links"] == ["https://a.example/?q=1", "https://bare.example/x"]
    assert "&lt;script&gt;" in found["html"] and '<ol start="3">' in found["html"]
    assert "<li>one<ul><li>inner</li></ul></li>" in found["html"] and "snake_case_name" in found["html"]
    for text in ("*" * 9000, "`" * 9000, "> " * 9000, "[" * 9000, "|" * 9000, " - a\n" * 3000, " " * 9000 + "x",
                 "  \n" * 3000, "".join(" " * n + "- a\n" for n in range(300)), "_a" * 4000, "**a " * 2000):
        assert page.evaluate(RENDER, text)["seconds"] < 1, text[:20]
    assert not any("innerHTML" in path.read_text() for path in Path(FOLDER).glob("*.js"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(opened, scheme):
    page = opened(390, color_scheme=scheme)
    short(page, 4)
    page.select_option("#beside", "travel")
    page.fill("#question", "a" * 300)
    page.press("#question", "Enter")
    expect(page.locator(".answer footer span")).to_contain_text(["tokens", "tokens"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [page.locator(".answer").nth(n).bounding_box() for n in range(2)]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] < boxes[1]["y"]

    def dark():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 300

    assert dark() == (scheme == "dark")
    page.click("#theme")
    assert dark() == (scheme == "light")
    page.reload()
    assert dark() == (scheme == "light")


def test_a_key_is_asked_for(browser, serve_root, start_server):
    with start_server(serve_root, api_key="secret") as served:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(served.address)
        expect(page.locator("#trouble")).to_contain_text("wants a key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("secret")
        page.keyboard.press("Tab")
        expect(page.locator("#model option")).to_have_count(3)
        page.close()
