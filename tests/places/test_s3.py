# SPDX-License-Identifier: GPL-2.0-or-later
"""Object stores that refuse or are busy, asked by the commands as users run them."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.places.life import SPARSEBAK, Life
from tests.remote.kit import Server, s3_server
from tests.remote.stores import Answer, http_store, refusal

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
URL = "s3://bucket/archive"
REFUSALS = {
    "wrong bucket": (refusal(404, "NoSuchBucket"), "NoSuchBucket.*make the bucket first"),
    "wrong key": (refusal(403, "InvalidAccessKeyId"), "InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"),
    "wrong secret": (refusal(403, "SignatureDoesNotMatch"), "AWS_SECRET_ACCESS_KEY"),
    "not allowed": (refusal(403, "AccessDenied"), "AccessDenied.*do not allow"),
    "wrong region": (
        refusal(400, "AuthorizationHeaderMalformed", more="<Region>eu-central-1</Region>"),
        r"AWS_REGION to the bucket's region \(eu-central-1\)",
    ),
    "redirect": (refusal(301, "PermanentRedirect"), "PermanentRedirect.*AWS_REGION"),
    "another redirect": (refusal(307, "TemporaryRedirect"), "AWS_REGION|AWS_ENDPOINT_URL"),
    "clock": (refusal(403, "RequestTimeTooSkewed"), "clock is .* too far off.*set the clock"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_one_sentence_at_once(tmp_path: Path, kind: str) -> None:
    answer, said = REFUSALS[kind]
    with http_store(lambda _: answer, time.time() - 9 * 3600) as (port, requests):
        life = Life(tmp_path, URL, KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        init = ["init", URL, "--label=tests"]
        locked, past = [*init, "--retention=30d"], ["--as-of=2026-11-20T08:30", "list"]
        for words in (["list"], ["backup"], init, locked, past):
            line = life.refuses(1, said, *words)
            assert "<" not in line and "network" not in line
    assert len(requests) < 20


def test_a_store_that_is_busy_is_asked_again_and_given_up(tmp_path: Path) -> None:
    times: list[float] = []

    def busy(_: int) -> Answer:
        times.append(time.monotonic())
        return refusal(503, "SlowDown", "reduce your request rate")

    with http_store(busy) as (port, _):
        life = Life(tmp_path, URL, KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        life.refuses(1, "does not serve for now: SlowDown.*try again later", "list", within=90)
    pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert 5 <= len(times) <= 12 and pauses[-1] > 5 * pauses[0], "slower and slower"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_a_whole_life(s3: Server, tmp_path: Path) -> None:
    Life(tmp_path, s3.url("there"), s3.environment()).live(copy=s3.url("copy"))


def test_a_bucket_that_is_not_there(s3: Server, tmp_path: Path) -> None:
    url = "s3://nobodys-bucket/archive"
    life = Life(tmp_path, url, s3.environment())
    life.refuses(1, "NoSuchBucket.*make the bucket first", "init", url, "--label=tests")


@pytest.mark.parametrize(
    ("url", "asked"),
    [(URL, False), ("gs://bucket/archive", False), ("az://bucket/archive", False), (URL, True)],
)
def test_no_cloud_is_asked_for_credentials_unless_that_is_wanted(
    tmp_path: Path, url: str, asked: bool
) -> None:
    """Measured: what the process and its threads ask the kernel for, in a network of their own that
    leads nowhere.
    """
    if shutil.which("strace") is None or os.geteuid() != 0:
        cannot("strace is not installed, or nobody is root; run 'make test-places' as root")
    trace = tmp_path / "trace"
    wanted = {"SPARSEBAK_INSTANCE_CREDENTIALS": "1"} if asked else {}
    command = ["unshare", "--net", "strace", "-f", "-e", "trace=network", "-s", "200", "-o", trace]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, sys.executable, SPARSEBAK, "--archive", url, "list"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | wanted,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    text = trace.read_text()
    outward = [line for line in text.splitlines() if re.search(r"AF_INET6?\b", line)]
    if asked:
        assert any("169.254.169.254" in line for line in outward), "so this measures something"
        return
    assert time.monotonic() - begun < 20
    assert not outward, outward
    assert "there are no credentials for" in done.stderr
    assert "SPARSEBAK_INSTANCE_CREDENTIALS=1" in done.stderr
