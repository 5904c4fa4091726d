"""What the playground must not do: run what it shows, reach elsewhere, leave anyone out."""

from __future__ import annotations

import json
import tomllib

import httpx2
from playwright.sync_api import expect

from tests.playground.page import Playground, browser, open_page, playground
from tests.support.servers.live_server import ROOT, LiveServer

__all__ = ["browser", "open_page", "playground"]

PAGE = ROOT / "server" / "playground"
HOSTILE = """<script>window.hurt = 1</script>
<img src=x onerror="window.hurt = 1"> <svg onload=window.hurt=1>
<iframe srcdoc="<script>parent.hurt=1</script>"></iframe><style>body{display:none}</style>

# <b>bold</b> <script>window.hurt = 1</script>

[one](javascript:window.hurt=1) [two](JaVaScRiPt:window.hurt=1) [three](data:text/html,<script>hurt=1</script>)
[four](&#106;avascript:alert(1)) [five]( java
script:alert(1)) <javascript:alert(1)> [six](//evil.example/) [seven](/chat/completions) [eight](vbscript:x)
![picture](http://evil.example/x.png) [good](https://example.org/?a=1&b="><script>) <https://example.org>

```html"><script>window.hurt=1</script>
</code></pre><script>window.hurt = 1</script>
```

| a <script>window.hurt=1</script> | b |
|---|---|
| <img src=x onerror=window.hurt=1> | [x](javascript:1) |

- <a href="javascript:window.hurt=1" onclick="window.hurt=1">click</a>
> <details open ontoggle=window.hurt=1>
"""


def assert_unhurt(playground: Playground) -> None:
    page = playground.page
    assert page.evaluate("window.hurt") is None
    expect(page.locator("main :is(script, iframe, style, svg, details)")).to_have_count(0)
    expect(page.locator("#turns img:visible")).to_have_count(0)
    assert page.evaluate(
        "[...document.querySelectorAll('#turns *')].every("
        "(e) => [...e.attributes].every(({ name }) => !name.startsWith('on') && name !== 'style'))"
    )


def test_a_hostile_answer_is_text(playground: Playground) -> None:
    turn = playground.ask_scripted(HOSTILE)
    shown = playground.shown(turn)
    assert "<script>window.hurt = 1</script>" in shown
    assert "[one](javascript:window.hurt=1)" in shown
    links = turn.locator("a")
    assert {link.get_attribute("href") for link in links.all()} == {
        "http://evil.example/x.png",
        "https://example.org/?a=1&b=%22%3E%3Cscript%3E",
        "https://example.org/",
    }
    for link in links.all():
        assert link.get_attribute("rel") == "noopener noreferrer"
    for element in turn.locator(".markdown *").all():
        element.dispatch_event("click")
    assert_unhurt(playground)


def test_hostile_words_of_the_user_and_of_errors_are_text(playground: Playground) -> None:
    playground.refusals += ["422", "400"]
    turn = playground.ask(HOSTILE)
    assert turn.locator(".question .text").inner_text().strip() == HOSTILE.strip()
    playground.set(temperature="<img src=x onerror=window.hurt=1>", stop="<script>")
    expect(playground.ask("hello").get_by_role("alert")).to_have_count(1)
    body = {"error": {"code": "<b>", "message": HOSTILE, "param": HOSTILE}}
    playground.page.route("**/chat/completions", lambda route: route.fulfill(status=400, json=body))
    turn = playground.ask("hello")
    assert "<script>window.hurt = 1</script>" in turn.get_by_role("alert").inner_text()
    html = "<html><script>window.hurt=1</script>a proxy's page</html>"
    playground.page.unroute("**/chat/completions")
    playground.refusals.append("502")
    playground.page.route(
        "**/chat/completions",
        lambda route: route.fulfill(status=502, content_type="text/html", body=html),
    )
    assert html in playground.ask("hello").get_by_role("alert").inner_text()
    assert_unhurt(playground)


def test_hostile_names_and_tokens_are_text(playground: Playground) -> None:
    name = "<img src=x onerror=window.hurt=1>.png"
    playground.page.get_by_label("Add picture").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": b"broken"}
    )
    expect(playground.page.get_by_role("alert").filter(has_text=name)).to_be_visible()
    token = {"token": HOSTILE, "logprob": -1.0, "bytes": list(HOSTILE.encode())}
    choice = {
        "index": 0,
        "delta": {"content": HOSTILE},
        "logprobs": {"content": [{**token, "top_logprobs": [token]}]},
        "finish_reason": None,
    }
    events = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    playground.page.route(
        "**/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=events),
    )
    turn = playground.ask("hello")
    turn.get_by_role("option").focus()
    assert "<script>" in playground.page.get_by_role("tooltip").inner_text()
    assert_unhurt(playground)


def test_headers_and_revalidation(server: LiveServer) -> None:
    """Strict, open without the key, and asked for again after an upgrade."""
    client = httpx2.Client(base_url=server.url)
    for path in ("/", *(f"/playground/{file.relative_to(PAGE)}" for file in PAGE.rglob("*.*"))):
        response = client.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.head("/").status_code == 200
    for path in ("../settings.py", "%2e%2e/settings.py", "..%2fsettings.py", "samples", "x", ""):
        response = client.get(f"/playground/{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    client.close()


def test_no_inline_code_and_no_markup_from_text() -> None:
    """What the policy forbids is not there to be forbidden."""
    html = (PAGE / "index.html").read_text("utf-8")
    assert "style=" not in html
    assert "://" not in html
    scripts = {file.name: file.read_text("utf-8") for file in PAGE.glob("*.js")}
    for name, code in scripts.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert word not in code, name
        assert code.count("\n") < 300, name


def test_settings_of_the_page(server: LiveServer) -> None:
    assert httpx2.get(f"{server.url}/playground/settings.json").json() == {
        "api_key_required": True,
        "images_per_prompt": 1,
        "max_body_bytes": 32_000_000,
        "max_image_pixels": 50_000_000,
        "max_output_tokens": 4096,
    }


def test_the_page_can_be_turned_off() -> None:
    from fastapi.testclient import TestClient

    from server.app import create_app
    from server.service import Service
    from server.settings import Settings

    with TestClient(create_app(Service(Settings(playground=False))), "http://localhost") as client:
        for path in ("/", "/playground/main.js", "/playground/settings.json"):
            assert client.get(path).status_code == 404
    with TestClient(create_app(Service(Settings())), "http://localhost") as client:
        assert client.get("/").status_code == 200


def test_the_package_holds_the_page() -> None:
    """Every file is named by the globs that make it part of a wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["server"]
    packed = {file for glob in globs for file in (ROOT / "server").glob(glob) if file.is_file()}
    assert {file for file in PAGE.rglob("*") if file.is_file()} <= packed
