"""`minetorch watch` in a real browser: what it shows, that it follows, and whom it refuses."""

import http.client
import re
import shutil
import threading
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from werkzeug.test import Client

from minetorch.checkpoint import Store
from minetorch.errors import StorageError
from minetorch.views.server import Application, Watched, is_loopback, serve


def ask(url, method="GET", path="/", **headers):
    """Status, headers and body of one answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def shown(browser):
    """What the table of runs says, by run."""
    script = "return [...document.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))"
    return {row[0]: row[1:] for row in browser.execute_script(script)}


def points(browser):
    """How many points each line on the page has, by graph."""
    script = (
        "return [...document.querySelectorAll('.chart')].map(c => [c.querySelector('h3').textContent,"
        " [...c.querySelectorAll('path.line')].map(p => p.getAttribute('d').match(/[ML]/g).length)])"
    )
    return dict(browser.execute_script(script))


def complaints(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def test_a_page_follows_what_happens(browser, watching, trained_plans, tmp_path, eventually):
    folder = tmp_path / "runs"
    folder.mkdir()
    browser.get(watching(folder))
    assert "No run is here yet" in browser.page_source
    shutil.copytree(trained_plans / "plan-a", folder / "deep/plan <a>", symlinks=True)
    rows = eventually(lambda: shown(browser))
    assert rows["deep/plan <a>"][:3] == ["finished", "6", "3"]
    shutil.copytree(trained_plans / "plan-b", folder / "plan-b", symlinks=True)
    eventually(lambda: len(shown(browser)) == 2)

    browser.find_element(By.LINK_TEXT, "deep/plan <a>").click()
    assert points(browser) == {"loss per step": [6], "loss": [3, 3]}
    browser.find_element(By.PARTIAL_LINK_TEXT, "all runs").click()
    browser.find_element(By.LINK_TEXT, "plan-b").click()
    assert points(browser) == {"loss per step": [8], "loss": [4, 4]}
    shutil.rmtree(folder / "plan-b")
    shutil.copytree(trained_plans / "plan-a", folder / "plan-b", symlinks=True)
    eventually(lambda: points(browser) == {"loss per step": [6], "loss": [3, 3]})
    assert complaints(browser) == []


def test_figures_are_told_under_the_pointer_and_by_the_keys(browser, watching, plans):
    browser.get(f"{watching(plans)}run/plan-b")
    plot = browser.find_elements(By.CSS_SELECTOR, ".plot")[1]
    ActionChains(browser).move_to_element(plot).perform()
    tip = browser.find_element(By.CSS_SELECTOR, ".tip").text
    assert re.match(r"epoch [23]\ntrain\n[\d.]+\nval\n[\d.]+", tip), tip
    plot.send_keys(Keys.ARROW_LEFT * 9)
    assert browser.find_element(By.CSS_SELECTOR, ".tip").text.startswith("epoch 1\ntrain\n3.4271\nval\n1.7627")
    plot.send_keys(Keys.ESCAPE)
    assert not browser.find_elements(By.CSS_SELECTOR, ".tip")
    assert complaints(browser) == []


def test_a_phone_need_not_scroll_sideways(browser, watching, plans):
    url = watching(plans)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        for path in ("", "run/plan-b"):
            browser.get(url + path)
            wide, high = browser.execute_script(
                "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
            )
            assert wide == 360
            assert high > 300
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_run_with_hostile_names_runs_nothing_in_the_browser(browser, watching, saved, tmp_path):
    evil = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
    store, _ = saved({"drawer": {}}, code="<img src=x onerror=alert(1)>", options={"settings": {evil: evil}})
    store.write("log.txt", evil.encode())
    url = watching(tmp_path)
    browser.get(url)
    browser.find_element(By.PARTIAL_LINK_TEXT, "<img").click()
    assert evil in browser.find_element(By.TAG_NAME, "pre").text
    assert browser.title == "<img src=x onerror=alert(1)>: finished"
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert complaints(browser) == []


def test_it_answers_only_questions_and_only_at_its_own_address(watching, plans):
    url = watching(plans)
    port = urlsplit(url).port
    assert url == f"http://127.0.0.1:{port}/"
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", ""):
        status, _, body = ask(url, Host=host)
        assert status == 400
        assert "plan" not in body
    assert ask(url, Host=f"localhost:{port}")[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(url, method)[0] == 405
    status, headers, body = ask(url, "HEAD")
    assert (status, body) == (200, "")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers
    assert ask(url, If_None_Match=headers["ETag"])[0] == 304
    for path in ("/run/plan-c", "/run/../plan-a/log.txt", "/run/%2e%2e/%2e%2e/etc/passwd", "/plan-a/log.txt", "/run/"):
        assert ask(url, path=path)[0] == 404, path


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.3", False), ("example.com", False), ("", False)],
)  # fmt: skip
def test_an_address_is_of_this_machine_alone_or_not(host, local):
    assert is_loopback(host) == local


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "there is no password"),
        (["--port", "x"], "--port x: give a whole number from 0 to 65535"),
        (["--host", "127.0.0.1", "--port", "{port}"], "cannot listen at 127.0.0.1"),
    ],
)
def test_a_wrong_command_is_one_clear_error(command, watching, plans, words, message):
    port = urlsplit(watching(plans)).port
    assert message in command("watch", plans, *(word.format(port=port) for word in words), expect=2)


def test_ctrl_c_is_its_end_as_soon_as_it_is_shown(plans):
    def interrupt(url):
        raise KeyboardInterrupt

    serve(Store.open(plans), "127.0.0.1", 0, depth=4, report=interrupt)


def test_a_storage_is_looked_at_no_more_often_than_is_fair(plans):
    listed, now = [], [100.0]
    watched = Watched(Store.open(plans), 4, clock=lambda: now[0])
    with pytest.MonkeyPatch.context() as patch:
        entries = Store.entries
        patch.setattr(Store, "entries", lambda store: listed.append(store.url) or entries(store))
        first = watched.record("plan-a")
        count = len(listed)
        now[0] += 1.9
        assert watched.record("plan-a") is first
        assert len(listed) == count
        now[0] += 0.2
        drawn = first.drawn
        again = watched.record("plan-a")
        assert len(listed) == 2 * count
        assert again is not first
        assert again.drawn is drawn  # the curves were not read again


def test_a_storage_that_is_lost_for_a_while_leaves_what_was_there(plans, monkeypatch):
    now = [100.0]
    watched = Watched(Store.open(plans), 4, clock=lambda: now[0])
    assert len(watched.look()[0]) == 2

    def fail(store):
        raise StorageError("the cable is out")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "entries", fail)
        now[0] += 10
        runs, problems = watched.look()
    assert [run.name for run in runs] == ["plan-a", "plan-b"]
    assert problems == ["the cable is out"]
    now[0] += 10
    assert watched.look()[1] == []


def test_a_run_that_cannot_be_read_in_time_keeps_no_other_page_waiting(plans, monkeypatch, eventually):
    read_large, released = Store.read_large, threading.Event()

    def stuck(store, name, size, done):
        if "plan-a" in store.url and not released.wait(30):
            pytest.fail("nobody let it continue")
        return read_large(store, name, size, done)

    monkeypatch.setattr(Store, "read_large", stuck)
    client = Client(Application(Watched(Store.open(plans), 4, patience_s=0.2)))
    try:
        late = client.get("/run/plan-a")
        assert (late.status_code, "is not read after 0 s" in late.text) == (503, True)
        assert client.get("/").status_code == 200
        eventually(lambda: client.get("/run/plan-b").status_code == 200)
    finally:
        released.set()
    eventually(lambda: client.get("/run/plan-a").status_code == 200)


def test_two_pages_of_one_run_read_it_once_and_a_third_reads_after_a_failure(plans, monkeypatch):
    read_large, reads, fails = Store.read_large, [], [True]

    def counted(store, name, size, done):
        reads.append(name)
        if fails:
            raise StorageError("the cable is out")
        return read_large(store, name, size, done)

    monkeypatch.setattr(Store, "read_large", counted)
    client = Client(Application(Watched(Store.open(plans), 4)))
    assert client.get("/run/plan-a").status_code == 503
    fails.clear()
    assert client.get("/run/plan-a").status_code == 200
    count = len(reads)
    assert client.get("/run/plan-a").status_code == 200
    assert len(reads) == count
