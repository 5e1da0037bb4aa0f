"""The dashboard in a real browser, where there is one; what it shows is on the server."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from build import write_chat_rows
from server_running import Running

import tunewright
from tunewright.server.web.pages import POLICY

WEB = Path(tunewright.__file__).parent / "server" / "web"
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="needs chromium and playwright"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A page of a logged-in browser, and what its console complained about."""

    def __init__(self, browser: Any, server: Running, **more: Any) -> None:
        self.context, self.url = browser.new_context(**more), server.url
        self.page, self.complaints = self.context.new_page(), list[str]()
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(f"{server.url}/?token={server.token()}")
        assert self.page.url == f"{server.url}/"  # the token does not stay in the address

    def go(self, path: str) -> Any:
        self.page.goto(self.url + path)
        return self.page

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []
        assert all(r.startswith((self.url, "data:")) for r in self.requests), "a request to elsewhere"


def test_vendored_programs_are_unchanged() -> None:
    vendored = json.loads((WEB / "vendored.json").read_text())
    for entry in vendored:
        assert hashlib.sha256((WEB / "static" / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    others = {p.name for p in (WEB / "static").iterdir()} - {entry["file"] for entry in vendored}
    assert others == {"app.js", "app.css"}


def test_without_a_token_there_is_only_the_login(server: Running, trained: Any) -> None:
    with httpx.Client(base_url=server.url, follow_redirects=False) as http:
        for path in ("/", "/data", "/playground", "/exports", f"/jobs/{trained.id}", f"/jobs/{trained.id}/report"):
            response = http.get(path)
            assert (response.status_code, response.headers["location"]) == (303, "/login"), path
        assert http.post("/login", data={"token": "tw-wrong"}).status_code == 401
        done = http.post("/login", data={"token": server.token()})
        cookie = done.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert server.token() not in done.headers["set-cookie"]
        raw = http.get("/", headers={"cookie": f"tunewright={server.token()}"})
        assert raw.headers["location"] == "/login", "a token is not a cookie"
        page = http.get("/", headers={"cookie": done.headers["set-cookie"].split(";")[0]})
        assert page.headers["content-security-policy"] == POLICY
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", page.text), "inline code"


def test_another_tenant_sees_nothing(server: Running, trained: Any) -> None:
    with server.http("other") as http:
        assert http.get(f"/jobs/{trained.id}").status_code == 404
        assert http.get(f"/jobs/{trained.id}/report").status_code == 404
        assert http.get(f"/jobs/{trained.id}/live").status_code == 404
        assert http.get(f"/data/{trained.training_file}").status_code == 404
        assert trained.id not in http.get("/").text
        assert trained.fine_tuned_model not in http.get("/playground").text


def test_the_report_is_the_runs(server: Running, trained: Any) -> None:
    with server.http() as http:
        response = http.get(f"/jobs/{trained.id}/report")
    file = server.service.workshop.folder / trained.id / "report.html"
    assert response.content == file.read_bytes()
    assert "script-src" not in response.headers["content-security-policy"]


def test_rows_are_edited_into_a_new_file(server: Running, tmp_path: Path) -> None:
    client, file = server.client(), write_chat_rows(tmp_path / "rows.jsonl", 60)
    uploaded = client.files.create(file=file, purpose="fine-tune")
    lines = file.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["messages"][1]["content"] = "NEW"
    with server.http() as http:
        page = http.get(f"/data/{uploaded.id}").text
        assert page.count("<mark>") >= 10
        form = {"drop": ["1", "3"], "row-2": json.dumps(changed, indent=1)}
        done = http.post(f"/data/{uploaded.id}/rows", data=form)
        made = done.headers["location"].removeprefix("/data/")
        bad = http.post(f"/data/{uploaded.id}/rows", data={"row-2": "{"})
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "row-2"
    expected = [json.loads(x) for x in lines]
    expected[1] = changed
    kept = [row for n, row in enumerate(expected, 1) if n not in (1, 3)]
    assert [json.loads(x) for x in client.files.content(made).text.splitlines()] == kept
    assert client.files.retrieve(made).to_dict()["tunewright"]["parent"] == uploaded.id  # type: ignore[index]
    assert client.files.content(uploaded.id).content == file.read_bytes()


@needs_browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 400)])
def test_every_page_at_two_widths_in_both_themes(
    browser: Any, server: Running, trained: Any, theme: str, width: int
) -> None:
    opened = Page(browser, server, color_scheme=theme, viewport={"width": width, "height": 900})
    for path in ("/", f"/jobs/{trained.id}", "/data", f"/data/{trained.training_file}", "/playground", "/exports"):
        page = opened.go(path)
        page.wait_for_load_state("load")
        if path.startswith("/jobs"):
            page.wait_for_selector("#curve canvas")
            assert "The job has successfully completed" in page.inner_text("#events")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{path} is wider than the screen"
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a')]"
            ".filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')))"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == [], f"{path} has controls without a name"
    opened.close()


@needs_browser
def test_from_rows_to_a_job_by_keyboard_alone(browser: Any, server: Running, tmp_path: Path) -> None:
    """Upload in the file dialog; everything else with Tab and Enter. A reload shows the same."""
    opened = Page(browser, server)
    page = opened.go("/data")
    page.set_input_files("#file", str(write_chat_rows(tmp_path / "rows.jsonl", 60)))
    page.focus("#file")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/data/file-"))
    page.focus("#suffix")
    page.keyboard.type("keys")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/jobs/ftjob-"))
    job_id = page.url.rpartition("/")[2]
    page.wait_for_selector("text=Fine-tuning job started")  # arrives without a reload
    page.focus("text=Cancel the job")
    page.keyboard.press("Enter")
    page.wait_for_selector(".verdict :text('cancel')")
    for _ in range(300):
        if server.client().fine_tuning.jobs.retrieve(job_id).status == "cancelled":
            break
        page.wait_for_timeout(100)
    page.reload()
    assert page.inner_text(".verdict").strip() == "cancelled"
    opened.close()


@needs_browser
def test_the_base_pane_is_the_base(browser: Any, server: Running, trained: Any) -> None:
    opened = Page(browser, server)
    page = opened.go(f"/playground?model={trained.fine_tuned_model}")
    page.fill("[name=user]", "item 3: red by the dog")
    page.fill("[name=system]", "Be brief.")
    page.fill("[name=tokens]", "20")
    page.click("text=Ask all three")
    page.wait_for_selector("#pane-tuned .keep >> visible=true")
    page.wait_for_selector("#pane-base .keep >> visible=true")
    page.wait_for_selector("#pane-prompted .keep >> visible=true")
    user = {"role": "user", "content": "item 3: red by the dog"}
    system = {"role": "system", "content": "Be brief."}
    for pane, model, messages in (
        ("base", server.model, [user]),
        ("prompted", server.model, [system, user]),
        ("tuned", trained.fine_tuned_model, [system, user]),
    ):
        answer = server.client().chat.completions.create(model=model, messages=messages, max_tokens=20)  # type: ignore[arg-type]
        assert page.text_content(f"#pane-{pane} .answer") == answer.choices[0].message.content
        assert str(answer.system_fingerprint).removeprefix("fp_") in page.inner_text(f"#pane-{pane} .which")
    page.click("#pane-tuned .keep")
    page.wait_for_selector("#pane-tuned >> text=Kept")
    (kept,) = server.client().chat.completions.list(metadata={"from": "playground"})
    assert kept.choices[0].message.content == page.text_content("#pane-tuned .answer")
    server.client().chat.completions.delete(kept.id)
    opened.close()
