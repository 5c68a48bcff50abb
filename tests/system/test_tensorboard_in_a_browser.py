"""What a person sees: a real TensorBoard, opened in a real browser, on the logs of a real run."""

import base64
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from evener.api import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: apt-get install chromium"),
]

STEPS = 200
CURVES = {
    "loss", "learning_rate", "examples_per_second", "global_steps_per_second", "staleness", "dropped_gradients",
    "validation_loss", "validation_accuracy", "validation_loss_ema", "validation_accuracy_ema",
    "waiting_for_data",
}  # fmt: skip
TENSORS = {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
HISTOGRAMS = {f"{group}/{name}" for group in ("parameters", "gradients_on_average") for name in TENSORS}

#: Puts two inherited pipes where chromium looks for them, and becomes chromium.
SHIM = """
import fcntl, os, sys
orders, answers = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(orders, 3)
os.dup2(answers, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1800,2000",
    "--remote-debugging-pipe",
)  # fmt: skip

#: TensorBoard is made of web components: what a person sees lies in shadow trees, which no plain selector enters.
IN_THE_PAGE = """
const all = (selector, root = document) => [...root.querySelectorAll('*')].flatMap(
    (e) => [...(e.matches(selector) ? [e] : []), ...(e.shadowRoot ? all(selector, e.shadowRoot) : [])]);
const text = (node) => node.nodeType === 3 ? node.data.trim() + ' '
    : ['STYLE', 'SCRIPT', 'TEMPLATE', 'DOM-MODULE'].includes(node.tagName) || node.hidden ? ''
    : [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].map(text).join('');
"""


def eventually(condition, seconds=60.0):
    """The first true answer of `condition`, or its last one when time is over."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer


class TensorBoard:
    def __init__(self, logdir, log):
        self.log = log
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", "0"]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.url = eventually(self._url, 30) or pytest.fail(f"TensorBoard did not start: {log.read_text()}")

    def _url(self):
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.log.read_text())
        return found and found.group()

    def close(self):
        self.process.terminate()  # its data server ends with it
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


class Chromium:
    """The few words of the DevTools protocol that a test needs: JSON, ended by zeros, over two pipes (fds 3 and 4)."""

    def __init__(self, folder):
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._buffer, self._count, self._page = b"", 0, {}
        command = ["chromium", *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        with (folder / "chromium.log").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SHIM, str(orders), str(answers), *command],
                pass_fds=(orders, answers), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        os.close(orders)
        os.close(answers)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._page = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._page}
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 30
        while True:
            *events, self._buffer = self._buffer.split(b"\0")
            for answer in map(json.loads, events):
                if answer.get("id") == self._count:
                    assert "error" not in answer, answer
                    return answer["result"]
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"chromium has not answered {method} for 30 s")
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise ConnectionError(f"chromium ended during {method}")
            self._buffer += data

    def open(self, url):
        self.call("Page.navigate", url="about:blank")  # a new fragment alone would not load the page anew
        self.call("Page.navigate", url=url)

    def ask(self, code):
        """What the JavaScript expression is in the page; None while it cannot be told."""
        answer = self.call("Runtime.evaluate", expression=f"{{{IN_THE_PAGE};{code}}}", returnByValue=True)
        return answer["result"].get("value")

    def screenshot(self):
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(10)
        os.close(self._orders)
        os.close(self._answers)


class Tab:
    """One of TensorBoard's tabs; what it looked like in the end stays as a picture beside the logs."""

    def __init__(self, browser, picture):
        self.browser, self.picture = browser, picture

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.picture.write_bytes(self.browser.screenshot())

    def ask(self, code):
        return self.browser.ask(code)

    def see(self, code, expected):
        """Wait until a list of texts in the page holds all those expected; fail with those that never come."""

        def missing():
            return set(expected) - {" ".join(found.split()) for found in self.ask(code) or ()}

        eventually(lambda: not missing())
        assert not missing(), f"of {code}; the picture: {self.picture}"

    def bluish_pixels(self, selector):
        """Of each element: how many pixels have the colour of the run, dark blue. Grids, axes and texts are grey."""
        corners = "(({left, top, right, bottom}) => [left, top, right, bottom])"
        boxes = self.ask(f"all('{selector}').map((e) => {corners}(e.getBoundingClientRect()).map(Math.round))") or []
        pixels = np.asarray(Image.open(io.BytesIO(self.browser.screenshot())).convert("RGB")).astype(int)
        bluish = pixels[..., 2] - pixels[..., 0] > 15
        return [int(bluish[top:bottom, left:right].sum()) for left, top, right, bottom in boxes]

    def rest(self, code):
        """Wait until what an animation moves stays where it is; the last value."""
        values = []

        def same():
            values.append(self.ask(code))
            return len(values) > 10 and all(value == values[-1] for value in values[-10:])

        assert eventually(same), f"{code} never comes to rest"
        return values[-1]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A folder with the logs of a run, and the figures that the run told."""
    folder = tmp_path_factory.mktemp("tensorboard")
    options = {
        "train_steps": STEPS,
        "eval_every": STEPS // 4,
        "save_summary_secs": 0.02,
        "recipe_options": {"hidden": 100},
    }
    return folder, run("mnist", logdir=str(folder / "run"), quiet=True, **options)


@pytest.fixture(scope="module")
def opened(training):
    """Opens a tab of TensorBoard on the run."""
    folder, _ = training
    board = TensorBoard(str(folder / "run"), folder / "tensorboard.log")
    try:
        browser = Chromium(folder)
        try:

            def tab(name, query=""):
                browser.open(f"{board.url}{query}#{name}")
                return Tab(browser, folder / f"{name}.png")

            yield tab
        finally:
            browser.close()
    finally:
        board.close()


def test_time_series_has_a_card_for_every_curve_up_to_the_last_step(opened, training):
    _, result = training
    filter_ = "?tagFilter=" + quote("^(?!parameters|gradients)")  # with a filter all cards lie open
    row = rf"(\S+) Alt .* Smoothed Value Step Relative .*?(\S+) {STEPS} "
    with opened("timeseries", filter_) as tab:

        def last_values():
            texts = [" ".join(found.split()) for found in tab.ask("all('scalar-card').map(text)") or ()]
            return dict(found.groups() for found in (re.match(row, f"{text} ") for text in texts) if found)

        eventually(lambda: set(last_values()) >= CURVES)
        values = last_values()
        assert set(values) == CURVES, tab.picture
        for name in ("validation_accuracy", "validation_accuracy_ema", "validation_loss"):
            assert float(values[name]) == pytest.approx(getattr(result, name), abs=1e-3)
        # curves are painted on canvases, about 1,000 pixels each
        eventually(lambda: min(tab.bluish_pixels("scalar-card canvas"), default=0) > 50)
        pixels = tab.bluish_pixels("scalar-card canvas")
        assert len(pixels) == len(CURVES) and min(pixels) > 50, (pixels, tab.picture)


def test_scalars_draws_every_curve(opened):
    with opened("scalars") as tab:
        tab.see("all('button.heading').map(text)", CURVES)
        tab.ask("all('button.heading').filter((b) => !b.hasAttribute('open-button')).forEach((b) => b.click())")
        # a curve goes at least from one point to another
        line = "all('path.line', card.shadowRoot).some((p) => /^M.+L/.test(p.getAttribute('d')))"
        tab.see(f"all('tf-scalar-card').filter((card) => {line}).map((card) => card.tag)", CURVES)


def test_histograms_draws_parameters_and_averaged_gradients_over_the_steps(opened):
    drawn = "all('path.outline', card.shadowRoot).filter((p) => (p.getAttribute('d') || '').length > 100).length > 2"
    with opened("histograms") as tab:
        cards = f"all('tf-histogram-loader').filter((card) => {drawn})"
        tab.see(f"{cards}.map((card) => text(card).split('tag:')[1].split(' ')[1])", HISTOGRAMS)


def test_graphs_draws_the_model_and_opens_it(opened):
    nodes = "all('g.node').map((node) => node.getAttribute('data-name'))"
    with opened("graphs") as tab:
        tab.see(nodes, {"input", "Sequential", "output"})
        tab.ask("all('g.node[data-name=Sequential] > .nodeshape')"
                ".forEach((shape) => shape.dispatchEvent(new MouseEvent('dblclick', {bubbles: true})))")  # fmt: skip
        inner = {"Sequential/Linear[hidden]", "Sequential/ReLU[relu]", "Sequential/Linear[output]"}
        tab.see(nodes, inner)
        wide = "all('g.node').map((e) => [e.getAttribute('data-name'), e.getBoundingClientRect().width])"
        widths = dict(tab.rest(wide))
        assert all(widths[name] > 20 for name in inner), widths


def test_hparams_shows_a_table_of_options_and_final_metrics(opened, training):
    _, result = training
    cells = "all('vaadin-grid-cell-content').map(text)"
    with opened("hparams") as tab:
        tab.see(cells, {"batch_size", "100.00", "data", "auto", "validation_accuracy", "validation_loss"})
        tab.see(cells, {f"{result.validation_accuracy:#.5g}", f"{result.validation_accuracy_ema:#.5g}"})
        tab.see("[...all('tf-hparams-query-pane')[0].shadowRoot.querySelectorAll('.hparam-checkbox')].map(text)",
                {"hidden", "optimizer", "mode", "seed"})  # fmt: skip
