# SPDX-License-Identifier: GPL-2.0-or-later
"""The server of the page as a process."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.children import signals_as_usual
from tests.kit import Site
from tests.patience import PATIENCE

START = "import sys; from backup_vm.cli import main; sys.exit(main())"
WHICH = Path()
Headers = dict[str, str]


class Page:
    """The server as a process, and requests as a browser sends them."""

    def __init__(self, site: Site, *words: str, archive: Path | None = WHICH) -> None:
        """``archive``: the site's unless another is given; None: as the settings say."""
        general = [f"--agent=local:{site.config}"]
        if archive is not None:
            general.append(f"--archive={site.archive if archive == WHICH else archive}")
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *general, "ui", "--no-open", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CONFIG_HOME": str(site.root)},
            preexec_fn=signals_as_usual,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(re.fullmatch(r"http://127.0.0.1:(\d+)/enter\?token=\S+", self.url)[1])  # type: ignore[index]
        self.path = self.url.partition(str(self.port))[2]
        self.headers: Headers = {}

    def ask(self, method: str, path: str, headers: Headers, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        self.cookie = answer.headers["Set-Cookie"] or ""
        self.policy = answer.headers["Content-Security-Policy"]
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def enter(self) -> None:
        status, text = self.ask("GET", self.path, {})
        assert status == 200
        key = re.search(r'name="key" content="([^"]+)"', text)
        assert key is not None
        self.headers = {"Cookie": self.cookie.partition(";")[0], "X-Sparsebak-Key": key[1]}

    def get(self, path: str) -> dict[str, object]:
        status, text = self.ask("GET", path, self.headers)
        assert status == 200, text
        found: dict[str, object] = json.loads(text)
        return found

    def post(self, path: str, body: object) -> tuple[int, dict[str, object]]:
        sent = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{self.port}"}
        status, text = self.ask("POST", path, self.headers | sent, body)
        return status, json.loads(text)

    def kill(self) -> None:
        """As when memory runs out: nothing is told, nothing is cleaned up."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE)
        self.process.communicate()
        return code
