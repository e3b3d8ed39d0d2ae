"""The page as people meet it: a real Chromium against the real service over random networks."""

from __future__ import annotations

import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urljoin

import pytest
from playwright.sync_api import APIResponse, Browser, ConsoleMessage, Page, Request, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from forked import Python, WorkerProcess
from networks import random_checkpoint
from serve.private_redis import PrivateRedis, free_port

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MANY = (*(f"breed_{number:03}" for number in range(119)), "Irish_wolfhound")


class Service:
    """Redis, the API and, once started, a worker: each a process of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.redis = PrivateRedis(folder / "redis")
        self.redis.start()
        self.env = {
            "SAGAN_REDIS_URL": self.redis.url,
            "SAGAN_CHECKPOINTS": str(folder / "checkpoints"),
            **env,
        }
        self.apis: list[Python] = []
        self.worker: WorkerProcess | None = None
        self.url = self.start_api()

    def start_api(self, **env: str) -> str:
        """An API over this Redis, perhaps one more; returns its address."""
        port = free_port()
        log = self.folder / f"api-{port}.log"
        self.apis.append(Python(["-m", "cli", "api", "--port", port], {**self.env, **env}, log))
        url = f"http://127.0.0.1:{port}/"
        self._wait(f"{url}health/live")
        return url

    def _wait(self, url: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except URLError:
                pass  # not listening yet, or not ready yet
            logs = [file.read_text() for file in self.folder.glob("*.log")]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.05)

    def start_worker(self) -> None:
        self.worker = WorkerProcess(self.env, self.folder / "worker.log")

    def ready(self) -> None:
        self._wait(f"{self.url}health/ready")

    def signal_worker(self, how: signal.Signals) -> None:
        assert self.worker is not None
        self.worker.send(how)

    def close(self) -> None:
        for api in self.apis:
            api.send(signal.SIGTERM)
        if self.worker is not None:
            self.worker.close()
        for api in self.apis:
            api.wait(20)
        self.redis.stop()


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with two attention sites and ten classes, and one without attention and with 120."""
    folder = tmp_path_factory.mktemp("networks")
    random_checkpoint(folder / "attentive.safetensors", CLASSES, attention=(8, 16), seed=1)
    figures: dict[str, object] = {
        "pretrained": {"generated": {"probe_accuracy_by_class": {"breed_003": 0.5, "breed_077": 0.97}}}
    }
    random_checkpoint(folder / "plain.safetensors", MANY, attention=(), seed=2, metrics=figures)
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, networks: Path) -> Iterator[Service]:
    """One service for all tests that leave it alive."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(networks, folder / "checkpoints")
    # a worker that a test stops for a while is not taken for a dead one, however slow the machine
    service = Service(folder, SAGAN_WORKER_TTL="120")
    service.start_worker()
    service.ready()
    yield service
    service.close()


@pytest.fixture
def lonely(tmp_path: Path, networks: Path) -> Iterator[Service]:
    """A service that has no worker yet, and soon notices when one has gone."""
    shutil.copytree(networks, tmp_path / "checkpoints")
    service = Service(tmp_path, SAGAN_HEARTBEAT_PERIOD="0.3", SAGAN_WORKER_TTL="1.5")
    yield service
    service.close()


# one browser a module: while Playwright's loop runs, pytest-asyncio could not run the tests of other folders
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium: the one on PATH, else Playwright's own."""
    # the shell draws the same with half the work
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except PlaywrightError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"There is no browser: install chromium. {error.message.splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """One visit to the page, and what the browser saw meanwhile."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.requests: list[Request] = []
        self.errors: list[str] = []
        page.set_default_timeout(15_000)
        # not the bare method: Playwright marks it
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._heard)
        page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} {message.location}")

    @property
    def orders(self) -> list[Request]:
        """The jobs that were asked for."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def pictures_asked(self) -> int:
        """Requests about images and maps; the page looks for workers and models all the time."""
        return sum("/jobs/" in request.url or "/attention/" in request.url for request in self.requests)

    def generate(self, class_name: str, count: int, seed: str = "", wait: bool = True) -> None:
        """Fill in the form as a person does, press Generate, and wait until every image is shown."""
        # not by coordinates: pictures of classes that come meanwhile move them
        radio = self.page.get_by_role("radio", name=class_name, exact=True)
        radio.dispatch_event("click")
        assert radio.is_checked()
        self.page.get_by_label("Images", exact=False).and_(self.page.locator("#count")).fill(str(count))
        self.page.get_by_label("Seed", exact=True).fill(seed)
        newest = "document.querySelector('#jobs .job')?.getAttribute('aria-labelledby')"
        before = self.page.evaluate(newest)
        self.page.get_by_role("button", name="Generate").click()
        self.page.wait_for_function(f"(before) => (({newest}) ?? null) !== before", arg=before)
        if wait:
            self.page.locator(".job:first-child[data-state=succeeded]").wait_for()
            shown = ".job:first-child .tile[data-state=ready]"
            self.page.wait_for_function(
                "([shown, count]) => document.querySelectorAll(shown).length === count", arg=[shown, count]
            )

    def ask(self, path: str, order: dict[str, object] | None = None) -> APIResponse:
        """An answer of the service to somebody else than the page."""
        url = urljoin(self.page.url, path.lstrip("/"))
        if order is None:
            return self.page.request.get(url)
        return self.page.request.post(url, data=order, headers={"Prefer": "wait=30"})

    def forget(self) -> None:
        """Reload the page; from now on the service lists no jobs."""
        self.page.route("**/jobs?*", lambda route: route.fulfill(json={"jobs": [], "next": None}))
        self.page.reload()

    def empty(self) -> None:
        """Reload the page with an empty history, and a service that lists no jobs."""
        # until the reload nothing more is kept, such as a thumbnail of a job that was listed
        self.page.evaluate("() => { localStorage.clear(); Storage.prototype.setItem = () => {}; }")
        self.forget()
        self.page.locator("#service[data-state=ready]").wait_for()

    def age(self) -> None:
        """Let the images of all jobs that the browser keeps expire; a reload shows it."""
        self.page.evaluate(
            """() => {
                for (const key of Object.keys(localStorage)) {
                    if (!key.startsWith("sagan.history ")) continue;
                    const kept = JSON.parse(localStorage[key]);
                    if (kept.spec) kept.expires_at = "2020-01-01T00:00:00Z";
                    localStorage[key] = JSON.stringify(kept);
                }
            }"""
        )

    def open(self, k: int) -> None:
        """Open image k of the newest job and wait for its map."""
        self.page.locator(".job:first-child .tile").nth(k).click()
        self.page.locator("#gate").wait_for()

    def overlay(self) -> list[int]:
        """RGBA of 64 × 64 points of the overlay, after the next frame."""
        pixels: list[int] = self.page.evaluate(
            """() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const sample = new OffscreenCanvas(64, 64).getContext("2d", { willReadFrequently: true });
                sample.imageSmoothingEnabled = false;
                sample.drawImage(document.querySelector("#overlay"), 0, 0, 64, 64);
                resolve([...sample.getImageData(0, 0, 64, 64).data]);
            })))"""
        )
        return pixels

    def move(self, x: float, y: float) -> None:
        """Move the pointer over the image; x and y from 0 to 1."""
        box = self.page.locator("#stage").bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visitor]:
    """Opens the page in a fresh context. Afterwards: no error, and no request to another host."""
    visits: list[Visit] = []
    contexts = []

    def start(url: str = service.url, *, ready: bool = True, **context: object) -> Visit:
        contexts.append(browser.new_context(**context))  # type: ignore[arg-type]
        visits.append(Visit(contexts[-1].new_page(), url))
        if ready:
            visits[-1].page.locator("#service[data-state=ready]").wait_for()
        return visits[-1]

    yield start
    for context in contexts:
        context.close()
    for one in visits:
        elsewhere = [
            request.url
            for request in one.requests
            if not request.url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:"))
        ]
        assert elsewhere == []
        assert one.errors == []
