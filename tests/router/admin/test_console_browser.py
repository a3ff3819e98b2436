"""The console in a real Chromium, before a live fleet of simulated replicas."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from router_process import Process, Serve

from loadgen.replicas import SimulatedFleet

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="no axe")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path")

KEY = "the-key"
VIEWS = (
    "fleet", "requests", "queue", "agents", "prefixes", "audit", "policies", "playground", "settings",
)  # fmt: skip


@pytest.fixture
async def router(serve: Serve, fleet: SimulatedFleet, tmp_path: Path) -> Process:
    config = tmp_path / "c.yaml"
    config.write_text(f"admin_key: {KEY}\nexplain_requests: 500\n")
    made = await (await serve(*fleet.urls, config=config)).ready()
    async with httpx.AsyncClient(base_url=made.front) as client:
        for number in range(6):
            text = "You are a helpful agent. " * 200
            body = {
                "model": "sim", "max_tokens": 4, "stream": number % 2 == 0,
                "messages": [
                    {"role": "system", "content": text},
                    {"role": "user", "content": f"{number} " * 400},
                ],
            }  # fmt: skip
            headers = {"x-request-id": f"r/{number}"}
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
        await client.post("/v1/chat/completions", json={"model": "none", "messages": []})
    return made


class Browser:
    """A page, and what went wrong on it."""

    def __init__(self, page: Any, router: Process) -> None:
        self.page = page
        self.router = router
        self.problems: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        # A browser logs each answer of 401, 404 and 503 by itself.
        if message.type == "error" and "the server responded with a status of" not in message.text:
            self.problems.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.router.admin, "data:")):
            self.problems.append(f"elsewhere: {request.url}")

    async def sign_in(self) -> None:
        await self.page.goto(self.router.admin)
        await self.page.fill("#key", KEY)
        await self.page.keyboard.press("Enter")
        await self.page.wait_for_selector("#signin", state="hidden")

    async def show(self, name: str) -> None:
        await self.page.evaluate("hash => { location.hash = hash; }", f"#/{name}")
        await self.page.wait_for_selector("nav a[aria-current]:not([href='#/x'])")

    def shows(self, text: str | re.Pattern[str], within: str = "#view") -> Any:
        return playwright.expect(self.page.locator(within)).to_contain_text(text, timeout=15_000)


@asynccontextmanager
async def opened(router: Process) -> AsyncIterator[Browser]:
    async with playwright.async_playwright() as running:
        chromium = await running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = await chromium.new_context(viewport={"width": 1280, "height": 900})
        made = Browser(await context.new_page(), router)
        yield made
        await chromium.close()
    assert not made.problems


@pytest.fixture
async def browser(router: Process) -> AsyncIterator[Browser]:
    async with opened(router) as made:
        yield made


async def ask(router: Process, path: str) -> Any:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=router.admin, headers=headers) as client:
        return (await client.get(path)).json()


async def test_a_wrong_key_is_told_and_the_right_one_kept_for_the_tab(browser: Browser) -> None:
    page = browser.page
    await page.goto(browser.router.admin)
    await page.fill("#key", "wrong")
    await page.keyboard.press("Enter")
    await browser.shows("This key is not right.", "#signin")
    await page.fill("#key", KEY)
    await page.keyboard.press("Enter")
    await browser.shows("2 / 2")
    assert KEY not in page.url
    assert await page.evaluate("localStorage.length") == 0
    await page.click("#signout")
    await playwright.expect(page.locator("#signin")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0


async def test_the_views_show_the_routers_numbers(browser: Browser) -> None:
    page, router = browser.page, browser.router
    await browser.sign_in()
    replicas = await ask(router, "/replicas")
    for row, told in enumerate(replicas):
        cells = page.locator("tbody tr").nth(row).locator("td")
        await playwright.expect(cells.nth(0)).to_contain_text(told["name"])
        await playwright.expect(cells.nth(1)).to_have_text(told["engine"] or "–")
        await playwright.expect(cells.nth(2)).to_have_text("–")  # no replica prefills for others
        await playwright.expect(cells.nth(5)).to_have_text(str(told["requests"]))
        hit = "–" if told["hit_rate"] is None else f"{100 * told['hit_rate']:.0f}%"
        await playwright.expect(cells.nth(7)).to_contain_text(hit)
    async with httpx.AsyncClient() as client:
        metrics = (await client.get(f"{router.admin}/metrics")).text
    counted = re.findall(r'warmroute_requests_total\{replica="127[^}]*\} (\d+)', metrics)
    assert sum(map(int, counted)) == sum(each["requests"] for each in replicas) == 7

    # Drain with the keyboard: the button keeps the focus while the table is fresh.
    name = replicas[0]["name"]
    await page.get_by_label(f"Drain {name}", exact=True).focus()
    await page.keyboard.press("Enter")
    await playwright.expect(page.get_by_label(f"Undrain {name}")).to_be_focused()
    assert (await ask(router, "/replicas"))[0]["state"] == "draining"
    await page.keyboard.press("Enter")
    await playwright.expect(page.get_by_label(f"Drain {name}", exact=True)).to_be_visible()
    assert (await ask(router, "/replicas"))[0]["state"] == "ready"

    await browser.show("requests?text=r/")
    await playwright.expect(page.locator("tbody tr")).to_have_count(6)
    await page.get_by_role("link", name="r/3").click()
    story = await ask(router, "/explain/r%2F3")
    await browser.shows(story["why"])
    await browser.shows(f"{story['delivered']} delivered")
    await browser.show("queue")
    await browser.shows("Nobody waits.")
    await browser.show("prefixes")
    prefixes = (await ask(router, "/prefixes"))["prefixes"]
    assert prefixes
    await playwright.expect(page.locator("tbody tr")).to_have_count(len(prefixes))
    await browser.show("policies")
    await browser.shows("In use: cache_aware")
    await browser.show("settings")
    await browser.shows("c.yaml:2")
    assert KEY not in await page.locator("#view").inner_text()
    await browser.show("playground")
    await playwright.expect(page.locator("[name=model]")).to_have_value("sim")
    await page.fill("[name=prompt]", "Hello")
    await page.get_by_role("button", name="Send").click()
    await browser.shows("Delivered")
    latest = (await ask(router, "/requests?text=playground-"))["requests"][0]
    await browser.shows(f"{latest['prompt_tokens']}")
    for replica in replicas:
        await page.evaluate(
            "name => fetch(`/replicas/${name}/drain`, {method: 'POST', headers: "
            "{'x-warmroute-admin': '1', authorization: 'Bearer the-key'}})",
            replica["name"],
        )
    await playwright.expect(page.locator("#state.bad")).to_contain_text("none of 2")


async def test_agents_and_audit_show_what_the_traffic_was(browser: Browser) -> None:
    page, router = browser.page, browser.router
    system = "You are a coder. " * 200
    async with httpx.AsyncClient(base_url=router.front, timeout=30.0) as client:
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Mend it."}]
        for step in range(4):
            clock = {"role": "system", "content": f"It is 2026-11-29 10:00:0{step}. {system}"}
            body = {"model": "sim", "max_tokens": 4, "messages": [clock, *messages]}
            headers = {"x-session-id": "s1", "user-agent": "coder/1"}
            sent = await client.post("/v1/chat/completions", json=body, headers=headers)
            said = sent.json()["choices"][0]["message"]["content"]
            messages += [
                {"role": "assistant", "content": said},
                {"role": "tool", "tool_call_id": "t", "content": f"result {step} " * 40},
            ]
    told = await ask(router, "/audit")
    finding = next(each for each in told["findings"] if each["looks_like"] == "time stamp")
    session = next(
        each for each in (await ask(router, "/sessions"))["sessions"] if each["agent"] == "coder"
    )
    steps = (await ask(router, f"/sessions/{session['id']}"))["requests"]
    assert (session["steps"], len(steps)) == (4, 4)

    await browser.sign_in()
    await browser.show("audit")
    for text in (finding["mend"], "coder", f"{finding['tokens_lost']:,}"):
        await browser.shows(text)
    for text in ("Seen before in the session", "is not full", "No session was resumed."):
        await browser.shows(text)
    await browser.show("agents")
    await page.get_by_role("link", name=session["id"]).click()
    await playwright.expect(page.locator("tbody tr")).to_have_count(4)
    last = steps[-1]
    assert last["divergence"]["part"] == "system"
    for text in (last["request_id"], last["replica"], last["reason"], "system, "):
        await browser.shows(text)


async def test_agents_and_audit_say_that_they_are_off(
    serve: Serve, fleet: SimulatedFleet, tmp_path: Path
) -> None:
    config = tmp_path / "off.yaml"
    config.write_text(f"admin_key: {KEY}\ndiagnosis: false\n")
    router = await (await serve(*fleet.urls, config=config)).ready()
    async with opened(router) as browser:
        await browser.sign_in()
        await browser.show("agents")
        await browser.shows("does not follow sessions")
        await browser.show("audit")
        await browser.shows("does not audit")


async def test_each_view_is_narrow_accessible_and_in_both_colours(browser: Browser) -> None:
    page = browser.page
    await browser.sign_in()
    pictures = os.environ.get("CONSOLE_PICTURES")
    await page.evaluate(axe.Axe().axe_script)  # views come and go on one page: once is enough
    for name in VIEWS:
        await browser.show(name)
        await browser.shows(name.title(), "#view h2")
        await page.wait_for_load_state("networkidle")
        # Rows are alike, and a look at all settings takes many seconds.
        await page.evaluate(
            "document.querySelectorAll('tbody tr:nth-child(n+20)').forEach(row => row.remove())"
        )
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            for width in (400, 1280, 2000) if pictures else (400, 1280):
                await page.set_viewport_size({"width": width, "height": 900})
                wide = await page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (name, width)
                if pictures:
                    await page.screenshot(path=f"{pictures}/{name}-{scheme}-{width}.png")
            # What colours decide is looked at in both, the rest once.
            only = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
            found = await page.evaluate("only => axe.run(document, only)", only)
            said = [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]]
            assert not said, (name, scheme)
