"""The endpoint's page in a real browser: a question is answered twice, and the context is drawn chunk by chunk."""

import json
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from raw_requests import PATIENCE_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PASSAGES = [
    "Mara Tolen keeps a parrot. She calls it Otto, and it calls her by her name, every morning at the same hour.",
    "Odo Marsk plays the harp. He learnt it from his aunt, who had learnt it on a ship, in a storm, from its cook.",
    "Viggo Upton built the lighthouse of Karsk, which has stood on its rock for a hundred years and will for more.",
]
QUESTION = "Which animal does Mara Tolen keep?"

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install --no-install-recommends chromium)"
    ),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=1000 * PATIENCE_SECONDS)
        yield browser
        browser.close()


@pytest.fixture(params=[1000, 360], ids=["wide", "narrow"])
def page(request, browser, base_url):
    """Open the page, which must not complain on the browser's console."""
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    page.set_default_timeout(1000 * PATIENCE_SECONDS)
    expect.set_options(timeout=1000 * PATIENCE_SECONDS)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(base_url.removesuffix("/v1"))
    yield page
    page.close()
    assert complaints == []


def fill(page, passages=PASSAGES):
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("Passages, with blank lines").fill("\n\n".join(passages))


def answers(page):
    return tuple(page.locator(f"#{way} .text").inner_text().strip() for way in ("compressed", "plain"))


def wait_for_the_end(page):
    expect(page.locator("#plain .times")).to_contain_text("whole answer")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_both_answers_stream_in_and_are_the_grpc_clients(page, client):
    fill(page)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_the_end(page)
    expected = [client.generate(QUESTION, PASSAGES, expand_fraction=share, max_tokens=64) for share in (0.5, 1.0)]
    assert answers(page) == tuple(answer.text.strip() for answer in expected)
    times = page.locator("#compressed .times").inner_text()
    statistics = expected[0].statistics
    assert f"{statistics.prompt_slots} prompt slots" in times
    assert f"{statistics.num_expanded_chunks} of {statistics.num_chunks} chunks expanded" in times
    assert page.locator(".chunk").count() == statistics.num_chunks
    assert page.locator(".chunk.expanded").count() == statistics.num_expanded_chunks
    # Nothing sticks out of a small screen.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_chunk_tells_its_text_and_weight_to_mouse_and_keyboard(page):
    fill(page)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_the_end(page)
    page.locator(".chunk").first.hover()
    expect(page.locator("#detail")).to_contain_text("Mara Tolen keeps a parrot.")
    expect(page.locator("#detail")).to_contain_text("weighs")
    page.locator(".chunk").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail")).to_contain_text("Chunk 2")


def test_the_keyboard_asks_and_stops(page):
    page.route("**/v1/chat/completions", ask_for_a_long_answer)
    fill(page)
    page.get_by_label("Tokens of an answer").fill("3000")
    page.get_by_label("Question").press("Control+Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def ask_for_a_long_answer(route):
    """Let the request through with as many tokens at least as it wants at most, so that it cannot end too soon."""
    body = route.request.post_data_json
    route.continue_(post_data=json.dumps({**body, "min_tokens": body["max_tokens"]}))


def test_the_share_slider_is_what_is_asked_for(page):
    fill(page)
    page.get_by_label("Expand").fill("0")
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_the_end(page)
    assert page.locator(".chunk.expanded").count() == 0


def test_no_collection_is_offered_where_there_is_none(page):
    expect(page.get_by_label("Passages, with blank lines")).to_be_visible()
    expect(page.get_by_label("Collection")).to_be_hidden()


def test_what_the_server_refuses_is_shown(browser, base_url):
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE_SECONDS)
    page.goto(base_url.removesuffix("/v1"))
    fill(page)
    page.get_by_label("Policy").fill("best")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("policy is 'best'", timeout=1000 * PATIENCE_SECONDS)
    page.close()
