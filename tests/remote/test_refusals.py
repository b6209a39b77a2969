# SPDX-License-Identifier: GPL-2.0-or-later
"""What waiting cannot help is said at once, in one sentence, with the store's own words; what it
can help is tried again.
"""

import datetime
import ipaddress
import re
import time
from pathlib import Path

import pytest

from backup_vm.archive.lease import Lease
from backup_vm.archive.storage import credentials, objects, open_storage
from backup_vm.archive.storage.objects import Place
from backup_vm.archive.storage.vault import Vault
from backup_vm.errors import ForbiddenError, NoRoomError, SparsebakError, UsageError
from tests.patience import AT_ONCE
from tests.remote.stores import EMPTY, http_store, refusal


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def at(port: int, monkeypatch: pytest.MonkeyPatch, scheme: str = "http") -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{scheme}://127.0.0.1:{port}")


def refused(url: str = "s3://bucket/archive") -> SparsebakError:
    """The error of looking what there is: it came quickly, in one line without the store's XML."""
    begun = time.monotonic()
    with pytest.raises(SparsebakError) as raised:
        open_storage(url).exists("archive.toml")
    assert time.monotonic() - begun < AT_ONCE
    text = f"{raised.value} {raised.value.hint}"
    assert "<" not in text and "\n" not in text and "network" not in text, text
    return raised.value


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (404, "NoSuchBucket", "make the bucket"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "do not allow"),
        (
            400,
            "AuthorizationHeaderMalformed",
            r"AWS_REGION to the bucket's region \(eu-central-1\)",
        ),
        (301, "PermanentRedirect", "AWS_REGION"),
        (400, "InvalidBucketName", "bucket's name"),
        (400, "ExpiredToken", "renew"),
        (400, "EntityTooLarge", "smaller"),
        (400, "SomethingNobodyHasHeardOf", ""),
        (501, "NotImplemented", ""),
    ],
)
def test_a_refusal_is_final(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, hint: str
) -> None:
    answer = refusal(status, code, more="<Region>eu-central-1</Region>")
    with http_store(lambda _: answer) as (port, requests):
        at(port, monkeypatch)
        error = refused()
    assert code in str(error) and len(requests) == 1
    assert isinstance(error, NoRoomError) == (hint == "quota")
    assert isinstance(error, ForbiddenError) == (status == 403 and hint != "quota")
    assert re.search(hint, error.hint)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "QuotaExceeded"),
        (507, "InsufficientStorage"),
        (507, "XMinioStorageFull"),
        (400, "XMinioAdminBucketQuotaExceeded"),
    ],
)
def test_what_makes_room_begins_where_a_quota_is_used_up(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    """Removing needs none, and the hint is to prune: so that must be able to begin."""
    answers = [EMPTY, refusal(status, code)] * 3
    with http_store(answers.__getitem__) as (port, requests):
        at(port, monkeypatch)
        locks = open_storage("s3://bucket/archive").locks()
        with pytest.raises(NoRoomError, match=code) as raised:
            Lease.acquire(locks, "PLACE", "backup")
        lease = Lease.acquire(locks, "PLACE", "prune", makes_room=True)
        lease.check()
        lease.release()
    assert "have the quota raised, or prune" in raised.value.hint
    assert [request[:3] for request in requests] == ["GET", "PUT"] * 3


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("AccessDenied", "the key must be allowed s3:PutObjectRetention"),
        ("SomethingNobodyHasHeardOf", "the key must be allowed s3:PutObjectRetention"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("RequestTimeTooSkewed", "set the clock"),
    ],
)
def test_what_cannot_be_locked_is_said_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, code: str, hint: str
) -> None:
    able = 200, b"<L><ObjectLockEnabled>Enabled</ObjectLockEnabled></L>"
    with http_store(lambda count: refusal(403, code) if count else able) as (port, _):
        at(port, monkeypatch)
        url = "s3://bucket/archive"
        vault = Vault(url, Place(url), {"a.pack": "1"}, 86400)
        with pytest.raises(SparsebakError, match=code) as raised:
            vault.stored("a.pack")
    assert hint in raised.value.hint


@pytest.mark.parametrize("hours", [9, -100])
def test_a_clock_that_is_off(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    answer = refusal(403, "RequestTimeTooSkewed")
    with http_store(lambda _: answer, time.time() - 3600 * hours) as (port, _):
        at(port, monkeypatch)
        error = refused()
    amount = {9: "9 h 0 min ahead", -100: "4 days behind"}[hours]
    assert str(error).startswith(f"this machine's clock is {amount}")


@pytest.mark.parametrize(
    "answer",
    [
        refusal(503, "SlowDown"),
        refusal(500, "InternalError"),
        refusal(400, "RequestTimeout"),
        refusal(409, "OperationAborted"),
        refusal(429, "TooManyRequests"),
        (502, b"<html>no gateway"),
    ],
)
def test_what_asks_to_wait_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]
) -> None:
    monkeypatch.setattr(objects, "DELAYS", (0.01,) * 4)
    with http_store(lambda number: answer if number < 3 else EMPTY) as (port, requests):
        at(port, monkeypatch)
        assert not open_storage("s3://bucket/archive").exists("archive.toml")
        assert len(requests) == 4
    with http_store(lambda _: answer) as (port, requests):
        at(port, monkeypatch)
        error = refused()
    assert "does not serve for now" in str(error) and len(requests) == 5
    assert error.hint == "what was stored is kept; try again later"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    at(9, monkeypatch)
    error = refused()
    assert "refused" in str(error) and error.hint == "check the address"
    assert "refused" in str(refused("sftp://me@127.0.0.1:9/archive"))


def test_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "DELAYS", (0.01,) * 4)  # where nobody can be asked, it may pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nobody.invalid")
    for url in ("s3://bucket/archive", "sftp://me@nobody.invalid/archive"):
        with pytest.raises(SparsebakError, match=r"cannot be reached: .*(name|known)"):
            open_storage(url).exists("archive.toml")


@pytest.mark.parametrize(
    ("url", "names"),
    [("s3://b/x", "AWS_ACCESS_KEY_ID"), ("gs://b/x", "GOOGLE_"), ("az://b/x", "AZURE_")],
)
def test_without_credentials_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, names: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    error = refused(url)
    assert "no credentials" in str(error) and names in error.hint
    assert "SPARSEBAK_INSTANCE_CREDENTIALS=1" in error.hint


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("AWS_ACCESS_KEY_ID", "key\r"),
        ("AWS_SESSION_TOKEN", "to\nken"),
        ("AWS_REGION", "us east"),
        *(
            ("AWS_ENDPOINT_URL", given)
            for given in (
                "127.0.0.1:9",
                "http://",
                "http:/127.0.0.1",
                "http://127.0.0.1:9 ",
                "http://127.0.0.1:99999",
                "http://1.2.3.4.5",
                "http://[::1",
                "http://%41",
                "HTTP://127.0.0.1",
            )
        ),
    ],
)
def test_what_no_request_can_have_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str
) -> None:
    """The library dies of it, and says so in twenty lines."""
    at(9, monkeypatch)
    monkeypatch.setenv(name, given)
    for url in ("s3://bucket/archive", "s3://bucket/archive?as-of=2026-01-01"):
        assert name in str(refused(url))


@pytest.mark.parametrize("host", ["localhost", "a_b.example.", "127.0.0.1", "[::1]", "a-1.x9"])
def test_hosts_that_can_be_asked(host: str) -> None:
    credentials.require_usable({"AWS_ENDPOINT_URL": f"https://me:pw@{host}:9/base"})


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_ports_that_there_are_not(port: int) -> None:
    with pytest.raises(UsageError, match="write sftp://USER@HOST:PORT/PATH"):
        open_storage(f"sftp://me@127.0.0.1:{port}/archive")


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that nobody vouches for, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "certificate", folder / "key"


def test_a_certificate_that_nobody_vouches_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = certificate(tmp_path)
    with http_store(lambda _: EMPTY, tls=made) as (port, _):
        at(port, monkeypatch, "https")
        error = refused()
        assert "no secure connection" in str(error) and "AWS_CA_BUNDLE" in error.hint
        monkeypatch.setenv("AWS_CA_BUNDLE", str(made[0]))
        assert not open_storage("s3://bucket/archive").exists("archive.toml")
