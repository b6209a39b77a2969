# SPDX-License-Identifier: GPL-2.0-or-later
"""Signatures of requests: AWS's published examples, and botocore as an oracle."""

import calendar
import datetime
import time
from unittest import mock

import pytest
from botocore import auth, awsrequest, credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive.storage.signing import (
    Credentials,
    Request,
    encoded_path,
    encoded_query,
    signed_headers,
)

KEYS = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
HOST = {"host": "examplebucket.s3.amazonaws.com"}
MOMENT = calendar.timegm((2013, 5, 24, 0, 0, 0))
PUT = {
    "date": "Fri, 24 May 2013 00:00:00 GMT",
    "x-amz-storage-class": "REDUCED_REDUNDANCY",
}
EXAMPLES = {
    "GET object": (
        Request("GET", "/test.txt", (), {**HOST, "range": "bytes=0-9"}),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "PUT object": (
        Request("PUT", "/test%24file.text", (), HOST | PUT, b"Welcome to Amazon S3."),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "GET bucket lifecycle": (
        Request("GET", "/", [("lifecycle", "")], HOST),
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "GET bucket (list objects)": (
        Request("GET", "/", [("max-keys", "2"), ("prefix", "J")], HOST),
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}
"""Of "Signature Calculations for the Authorization Header" in the API reference of Amazon S3."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_published_examples(name: str) -> None:
    request, signature = EXAMPLES[name]
    found = signed_headers(request, KEYS, MOMENT)["authorization"]
    assert found.endswith(f"Signature={signature}")


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
NAMES = WORDS.filter(lambda word: word not in (".", ".."))


@settings(max_examples=50)
@given(
    path=st.lists(NAMES.filter(bool), min_size=1, max_size=3),
    query=st.dictionaries(WORDS.filter(bool), WORDS, max_size=3),
    body=st.binary(max_size=50),
    token=st.sampled_from(["", "a-token"]),
    at=st.integers(1, 4_000_000_000),
)
def test_as_botocore_signs(
    path: list[str], query: dict[str, str], body: bytes, token: str, at: int
) -> None:
    keys = Credentials("key", "secret", "eu-central-1", token)
    where = encoded_path("/" + "/".join(part.replace("/", "_") for part in path))
    pairs = list(query.items())
    ours = signed_headers(Request("PUT", where, pairs, {"host": "h.example:8000"}, body), keys, at)
    url = f"http://h.example:8000{where}?{encoded_query(pairs)}"
    theirs = awsrequest.AWSRequest("PUT", url, data=body)
    theirs.context["client_config"] = mock.Mock(s3={"payload_signing_enabled": True})
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    signer = auth.S3SigV4Auth(
        credentials.Credentials("key", "secret", token or None), "s3", "eu-central-1"
    )
    with mock.patch("botocore.auth.get_current_datetime", lambda: moment.replace(tzinfo=None)):
        signer.add_auth(theirs)
    assert theirs.headers["X-Amz-Date"] == time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    signature = theirs.headers["Authorization"].rpartition("Signature=")[2]
    assert ours["authorization"].rpartition("Signature=")[2] == signature
