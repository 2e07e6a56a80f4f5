"""A headless Chromium spoken to over DevTools' pipe: what a page draws, says and asks for."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

BINARY = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PATIENCE_S = 120.0  # for an answer, on a machine that is busy

# DevTools' pipe is the file descriptors 3 and 4, whatever they were here.
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class Chromium:
    """A browser with one page; `said` and `asked` are its console and its requests."""

    def __init__(self, profile):
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        switches += ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
        switches += ["--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
        launch = [sys.executable, "-c", _LAUNCH, str(to_read), str(to_write), BINARY]
        self._process = subprocess.Popen(
            [*launch, *switches, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session = b"", 0, None
        self.said, self.asked, self._loaded, self._shown = [], [], False, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """DevTools' answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def evaluate(self, expression):
        """The value of a JavaScript expression, or of what it promises."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path, width=1280, height=900):
        """Show a file, loaded unless it is there already, and wait until its charts are drawn."""
        self.resize(width, height)
        if self._shown == path:
            return self.settle()
        self._shown = path
        self.said.clear()
        self.asked.clear()
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._next()
        return self.settle()

    def resize(self, width, height=900):
        """Make the window another size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def settle(self):
        """Wait until all charts are drawn, at their present width."""
        deadline = time.monotonic() + PATIENCE_S
        waiting = (
            "[...document.querySelectorAll('.chart')].filter(box =>"
            " !('drawn' in box.dataset) || box.drawnAt !== box.clientWidth).length"
        )
        while self.evaluate(waiting):
            assert time.monotonic() < deadline, f"charts are not drawn; the console: {self.said}"
            time.sleep(0.1)
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def close(self):
        """End it."""
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _next(self):
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"Chromium has said nothing for {PATIENCE_S:.0f} s"
            if select.select([self._from], [], [], left)[0]:
                more = os.read(self._from, 1 << 20)
                assert more, f"Chromium has ended ({self._process.poll()})"
                self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(message)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.said.append((told["type"], [one.get("value") for one in told["args"]]))
            case "Runtime.exceptionThrown":
                self.said.append(("exception", told["exceptionDetails"]))
            case "Log.entryAdded":
                self.said.append((told["entry"]["level"], told["entry"]["text"]))
        return message
