"""Uses the dashboard as people do, in a headless Chromium.

Usage: browser.py page URL PICTURES FOLDER
       browser.py away URL PICTURES BINARY CONFIG

`page` guards what is shown: that the page follows the source by itself, that its numbers are those
of SQL, that a count can be traced to its rows, that everything can be reached by keyboard, that
strangers' texts stay texts, and that it fits a phone, in light and in dark. It writes files into
FOLDER, which the server at URL reads tweets from, and removes them again.

`away` guards what the page says while there is no server, and that it goes on by itself: it starts
and stops the server itself, as `BINARY run CONFIG`, which is to answer at URL.

Both keep pictures of the page in the folder PICTURES. Every check runs, whatever others find. Prints
a line for each, and exits with 1 if any failed. Needs Debian's chromium and chromium-driver.
"""

import json
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

SECTIONS = "overview monitor mentions search bronze accuracy rejects source events".split()
WIDE, PHONE = (1280, 900), (360, 740)

# Runs something if it is ever taken for more than text.
HOSTILE = "<img src=x onerror=\"window.harmed='by an image'\"><script>window.harmed='by a script'</script>"


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


def until(holds, what, seconds=10):
    """Asks until the answer is truthy, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = holds()
        except StaleElementReferenceException:
            # The page has drawn it anew meanwhile.
            answer = None
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.05)


class Server:
    """What the server says over HTTP."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def rows(self, sql):
        request = urllib.request.Request(f"{self.url}/v1/sql", data=sql.encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["rows"]

    def number(self, sql):
        (row,) = self.rows(sql)
        (number,) = row.values()
        return number

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=10):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


def tweet(text, user="someone"):
    # Newer than any other, so that it is among the latest.
    date = "Thu Dec 31 12:00:00 UTC 2037"
    return json.dumps({"date": date, "user": user, "text": text, "sentiment": "negative"})


class Folder:
    """The folder that the server reads; what was put in is taken out again."""

    def __init__(self, path):
        self.path = Path(path)
        self.put_in = []

    def put(self, name, content):
        """A whole file at once: it is written under another name first."""
        draft = self.path / f".{name}.draft"
        draft.write_text(content, encoding="utf-8")
        file = self.path / f"checked-{name}"
        draft.rename(file)
        self.put_in.append(file)

    def clear(self):
        for file in self.put_in:
            file.unlink(missing_ok=True)
        self.put_in.clear()


class Page:
    """The page, in a browser."""

    def __init__(self, server, pictures):
        options = webdriver.ChromeOptions()
        for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(option)
        options.binary_location = "/usr/bin/chromium"
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.server = server
        self.pictures = Path(pictures)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def open(self, place="", size=WIDE):
        """The page anew, at a place and of a size."""
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.run("Emulation.setDeviceMetricsOverride", **shape)
        self.driver.get("about:blank")
        self.driver.get(f"{self.server.url}/{place}")
        until(lambda: self.connection() == "Live", lambda: f'the connection is "{self.connection()}", not Live')

    def run(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def script(self, body, *arguments):
        return self.driver.execute_script(body, *arguments)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def named(self, testid):
        return self.find(f"[data-testid={testid}]")

    def connection(self):
        return self.named("connection").text

    def count(self, relation):
        text = self.named(f"rows-{relation}").text.replace(",", "")
        return int(text) if text.isdigit() else None

    def focused(self):
        return self.driver.switch_to.active_element

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def search(self, mention):
        box = self.named("mention-input")
        box.clear()
        box.send_keys(mention, Keys.ENTER)
        until(lambda: self.find("#found h3").text == f"@{mention}", f"a heading for {mention}")

    def counts(self):
        """The counts of the mention that is shown, by column."""
        buttons = self.all("[data-testid=mention-row] .count")
        return {button.get_attribute("data-focus"): button for button in buttons}

    def numbers(self):
        """The same as numbers, read at once so that nothing is drawn between."""
        body = """return Object.fromEntries([...document.querySelectorAll('[data-testid=mention-row] .count')]
            .map((button) => [button.dataset.focus, Number(button.textContent.replaceAll(',', ''))]))"""
        return self.script(body)

    def texts(self, selector):
        body = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
        return self.script(body, selector)

    def picture(self, name):
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))

    def complaints(self):
        """What the browser has complained of since this was last asked."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("WARNING", "SEVERE")]


class Checks:
    """Checks by their names, each run whatever the others find."""

    def __init__(self):
        self.checks = []

    def __call__(self, function):
        self.checks.append(function)
        return function

    def run(self, page, *more, after=lambda: None):
        failed = 0
        for check in self.checks:
            words = check.__name__.replace("_", " ")
            began = time.monotonic()
            try:
                check(page, *more)
            except (AssertionError, WebDriverException, OSError, ValueError) as error:
                failed += 1
                page.picture(f"failed-{check.__name__}")
                where = traceback.extract_tb(error.__traceback__)[1].lineno
                print(f"FAILED {words} (line {where}): {type(error).__name__}: {error}")
            else:
                print(f"ok {words} ({time.monotonic() - began:.1f} s)")
            finally:
                after()
            sys.stdout.flush()
        return failed


on_page, while_away = Checks(), Checks()


# ---- what is shown -------------------------------------------------------------------------


@on_page
def counts_are_those_of_sql(page, _):
    page.open()
    for relation in ("bronze", "silver", "gold", "mention_sentiment", "users", "rejects"):
        expected = page.server.number(f"select count(*) from {relation}")
        what = f"{expected} rows of {relation}"
        until(lambda: page.count(relation) == expected, lambda: f"{what}, not {page.count(relation)}")
    page.picture("overview")


@on_page
def counts_follow_the_source_without_a_reload(page, folder):
    page.open()
    page.script("window.loadedOnce = true")
    before = until(lambda: page.count("bronze"), "a count of bronze")
    gold = page.count("gold")
    folder.put("follow.json", tweet("@follow_me and @follow_him"))
    until(lambda: page.count("bronze") == before + 1, "another row of bronze")
    until(lambda: page.count("gold") == gold + 2, "two more rows of gold")
    folder.clear()
    until(lambda: page.count("bronze") == before, "that row of bronze gone")
    assert page.script("return window.loadedOnce"), "the page was loaded again"


@on_page
def a_mention_is_found_with_its_row_and_tweets(page, folder):
    sql = "select * from mention_sentiment where total > 1 order by total desc, mention limit 1"
    (known,) = page.server.rows(sql)
    mention = known["mention"]
    page.open()
    page.search(mention)
    counted = {name: known[name] for name in ("negative", "neutral", "positive", "total")}
    until(lambda: counted.items() <= page.numbers().items(), lambda: f"{counted}, not {page.numbers()}")
    sql = f"select cleaned_text from gold where mention = '{mention}' order by \"timestamp\" desc, key limit 20"
    texts = [row["cleaned_text"] or "(nothing but mentions)" for row in page.server.rows(sql)]
    shown = "[data-testid=mention-tweets] .text"
    until(lambda: page.texts(shown) == texts, lambda: f"the tweets {texts}, not {page.texts(shown)}")
    page.picture("mention")
    folder.put("another.json", tweet(f"@{mention} says something new"))
    until(lambda: page.numbers()["total"] == known["total"] + 1, "one more in all")
    until(lambda: any("says something new" in text for text in page.texts(shown)), "the new tweet")
    folder.clear()
    until(lambda: counted.items() <= page.numbers().items(), "the counts as before")


@on_page
def a_count_is_explained_by_its_rows(page, _):
    (known,) = page.server.rows("select mention from mention_sentiment order by total desc, mention limit 1")
    page.open(f"#search/{known['mention']}")
    until(lambda: page.counts(), "counts")
    dialog = page.named("explain-dialog")
    for column in page.numbers():
        number = page.numbers()[column]
        page.counts()[column].click()
        until(lambda: page.all("[data-testid=explain-count]"), f"an explanation of {column}")
        same(page.named("explain-count").text.replace(",", ""), str(number))
        same(len(page.all("#explain-body tbody tr")), number)
        assert "differs" not in dialog.text, dialog.text
        if column == "total":
            page.picture("explanation")
        page.find("#explain-close").click()
        assert not dialog.is_displayed()


@on_page
def a_large_count_is_explained_too(page, folder):
    """More rows than are shown: the count stays whole, and the page says that some are left out."""
    name, most = "spoken_of_much", 1_100
    folder.put("many.jsonl", f"{tweet(f'@{name} hello')}\n" * most)
    page.open(f"#search/{name}")
    what = f"{most} mentions"
    until(lambda: page.numbers().get("total") == most, lambda: f"{what}, not {page.numbers()}", seconds=20)
    page.counts()["total"].click()
    until(lambda: page.all("[data-testid=explain-count]"), "an explanation")
    page.picture("large-explanation")
    same(page.named("explain-count").text, f"{most:,}")
    told = page.named("explain-dialog").text
    assert "differs" not in told and "are shown" in told, told[:200]
    folder.clear()
    page.find("#explain-close").click()
    until(lambda: page.numbers() == {}, "the mention gone")


# ---- by keyboard ---------------------------------------------------------------------------


@on_page
def the_keyboard_reaches_everything(page, _):
    (known,) = page.server.rows("select mention from mention_sentiment order by total desc, mention limit 1")
    page.open()
    page.press(Keys.TAB)
    same(page.focused().text, "Skip to the content")
    until(lambda: page.focused().rect["y"] >= 0, "the link in sight")
    page.picture("skip-link")
    page.press(Keys.ENTER)
    until(lambda: page.focused().get_attribute("id") == "main", "the focus in the content")
    # On to the search, by tabs alone.
    for _ in range(300):
        page.press(Keys.TAB)
        if page.focused().get_attribute("id") == "mention":
            break
    same(page.focused().get_attribute("id"), "mention")
    page.press(known["mention"], Keys.ENTER)
    until(lambda: page.numbers(), "counts")
    for _ in range(20):
        page.press(Keys.TAB)
        if page.focused().get_attribute("data-focus") == "total":
            break
    same(page.focused().get_attribute("data-focus"), "total")
    outline = page.script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus does not show"
    page.press(Keys.ENTER)
    dialog = page.named("explain-dialog")
    until(lambda: page.all("[data-testid=explain-count]"), "an explanation")
    inside = "return document.activeElement === document.body || arguments[0].contains(document.activeElement)"
    for _ in range(8):
        assert page.script(inside, dialog), "the focus has left the open dialog"
        page.press(Keys.TAB)
    page.press(Keys.ESCAPE)
    until(lambda: not dialog.is_displayed(), "the dialog closed")
    same(page.focused().get_attribute("data-focus"), "total")


# ---- strangers -----------------------------------------------------------------------------


@on_page
def hostile_texts_stay_texts(page, folder):
    most = page.server.number("select coalesce(max(tweets), 0) from users") + 1
    folder.put("hostile.jsonl", f"{tweet(f'@harmful {HOSTILE}', user=HOSTILE)}\n" * most)
    folder.put("broken.json", f'{{"text": "{HOSTILE}')
    page.open("#search/harmful")
    text = "[data-testid=mention-tweets] .text"
    until(lambda: page.texts(text) == [HOSTILE] * min(most, 20), "the hostile tweets", seconds=20)
    until(lambda: page.counts(), "counts")
    page.counts()["total"].click()
    until(lambda: page.texts(".explained td.text") == [f"@harmful {HOSTILE}"] * most, "the hostile rows")
    page.picture("hostile")
    page.find("#explain-close").click()
    # Who tweets most, in the words for those who cannot see the chart.
    page.open("#bronze")
    label = "#bronze-charts canvas"
    until(lambda: HOSTILE in (page.find(label).get_attribute("aria-label") or ""), "the hostile user")
    page.script("document.querySelector('#bronze-charts details').open = true")
    until(lambda: HOSTILE in page.texts("#bronze-charts td"), "the hostile user in the table")
    page.open("#rejects")
    until(lambda: page.all("#rejects-body button"), "a reject")
    page.find("#rejects-body button").click()
    until(lambda: any(HOSTILE in raw for raw in page.texts("#rejects-body .raw")), "the broken file")
    page.picture("rejects")
    page.open(f"#search/{urllib.parse.quote(HOSTILE)}")
    until(lambda: HOSTILE in page.find("#found h3").text, "the hostile name")
    until(lambda: "No one mentions this name" in page.named("mention-row").text, "that no one mentions it")
    for place in ("#search/harmful", "#bronze", "#rejects"):
        page.open(place)
        same(page.script("return window.harmed ?? null"), None)
        same(page.all("main img, main script, dialog img, dialog script"), [])


# ---- how it looks --------------------------------------------------------------------------


def walk(page, name):
    """Goes through all sections, so that each is drawn, and pictures them."""
    # Whoever does something is no longer held at the place that the address names.
    page.script("dispatchEvent(new Event('pointerdown'))")
    drawn = "return !document.getElementById(arguments[0]).innerText.includes('Waiting for')"
    for section in SECTIONS:
        page.script("document.getElementById(arguments[0]).scrollIntoView({behavior: 'instant'})", section)
        until(lambda: page.script(drawn, section), f"{section} drawn")
        page.picture(f"{name}-{section}")


@on_page
def it_fits_a_phone(page, _):
    sql = "select mention from mention_sentiment order by length(mention) desc, mention limit 1"
    (known,) = page.server.rows(sql)
    page.open(f"#search/{known['mention']}", PHONE)
    until(lambda: page.counts(), "counts")
    walk(page, "phone")
    # What scrolls in itself may be wider; the page may not.
    body = "return [document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth]"
    same(page.script(body), [PHONE[0]] * 3)
    page.script("document.querySelector('[data-testid=mention-row]').scrollIntoView()")
    page.counts()["total"].click()
    until(lambda: page.all("[data-testid=explain-count]"), "an explanation")
    same(page.script(body), [PHONE[0]] * 3)
    box = page.named("explain-dialog").rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0], box
    lines = "const range = new Range(); range.selectNodeContents(arguments[0]); return range.getClientRects().length"
    same(page.script(lines, page.find("#explain-close")), 1)
    page.picture("phone-explanation")


# The contrast of a visible text with what is behind it, by the rule of WCAG 2.2; the lowest of all.
LEAST_CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = (colour) => {
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = [...rgba(colour)].map((part) => linear(part / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (rgba(colour)[3] === 255) return colour;
  }
  return getComputedStyle(document.body).backgroundColor;
};
const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
const unseen = (element) => !element.checkVisibility() || element.closest(".visually-hidden, .skip, noscript");
let least = { contrast: 99 };
for (const element of document.querySelectorAll("body *")) {
  if (!hasText(element) || unseen(element)) continue;
  const [text, ground] = [light(getComputedStyle(element).color), light(behind(element))];
  const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  if (contrast < least.contrast) least = { contrast, text: element.textContent.trim().slice(0, 60) };
}
return least;
"""


@on_page
def light_and_dark_can_be_read_and_are_kept(page, _):
    (known,) = page.server.rows("select mention from mention_sentiment order by total desc, mention limit 1")
    grounds = {}
    try:
        for scheme in ("light", "dark"):
            page.run("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open(f"#search/{known['mention']}")
            walk(page, scheme)
            grounds[scheme] = page.script("return getComputedStyle(document.body).backgroundColor")
            least = page.script(LEAST_CONTRAST)
            assert least["contrast"] >= 4.5, f"in {scheme}: {least}"
        assert grounds["light"] != grounds["dark"], grounds
        button = page.named("theme")
        same(button.get_attribute("aria-pressed"), "true")
        button.click()
        same(button.get_attribute("aria-pressed"), "false")
        page.open()
        same(page.script("return getComputedStyle(document.body).backgroundColor"), grounds["light"])
    finally:
        page.run("Emulation.setEmulatedMedia", features=[])
        page.script("localStorage.clear()")


@on_page
def the_browser_complains_of_nothing(page, _):
    same(page.complaints(), [])


# ---- without a server ----------------------------------------------------------------------


@contextmanager
def running(server, binary, config):
    """A server of our own, from its start until it is ready, and until it has ended."""
    process = subprocess.Popen([binary, "run", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or server.is_ready(), "the server ready", seconds=120)
        assert process.poll() is None, f"the server ended by itself, with {process.returncode}"
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError("the server does not stop") from None


@while_away
def the_page_says_that_the_server_is_away_and_goes_on(page, binary, config):
    assert not page.server.is_ready(), "another server answers already"
    with running(page.server, binary, config):
        page.open()
        page.script("window.loadedOnce = true")
        bronze = page.server.number("select count(*) from bronze")
        until(lambda: page.count("bronze") == bronze, f"{bronze} rows of bronze")
    until(lambda: page.connection().startswith("Server away since"), page.connection)
    note = page.find("#away")
    assert note.is_displayed() and "as of" in note.text, note.text
    same(page.count("bronze"), bronze)
    same(page.find("#announce").get_attribute("textContent"), "The server is away.")
    page.picture("away")
    with running(page.server, binary, config):
        until(lambda: page.connection() == "Live", page.connection, seconds=15)
        assert not note.is_displayed()
        until(lambda: page.count("bronze") == bronze, lambda: f"{bronze} rows, not {page.count('bronze')}")
        assert page.script("return window.loadedOnce"), "the page was loaded again"
        page.picture("back")
        complaints = [told for told in page.complaints() if "/v1/live" not in told]
        same(complaints, [])


def main():
    mode, url, *arguments = sys.argv[1:]
    page = Page(Server(url), arguments[0])
    try:
        if mode == "page":
            checks, folder = on_page, Folder(arguments[1])
            rows = page.server.number("select count(*) from bronze")

            def as_before():
                folder.clear()
                until(lambda: page.server.number("select count(*) from bronze") == rows, "the rows as before")

            failed = checks.run(page, folder, after=as_before)
        else:
            checks = while_away
            failed = checks.run(page, *arguments[1:])
    finally:
        page.driver.quit()
    if failed:
        sys.exit(f"{failed} of {len(checks.checks)} checks failed")
    print(f"ok: {len(checks.checks)} checks in Chromium")


if __name__ == "__main__":
    main()
