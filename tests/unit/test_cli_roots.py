"""A program that trusts the gateway's bundle still trusts whom it trusted before."""

import datetime
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from cryptography.x509.oid import NameOID

from mitmgate.cli import roots

NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)


def certificate(name: str) -> bytes:
    """Return a self-signed certificate as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


PUBLIC, OURS, CORP, OTHER_GATEWAY = map(certificate, ("Public Root", "mitmproxy", "Corp Root", "mitmproxy"))


@pytest.fixture(autouse=True)
def no_system_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "SYSTEM_BUNDLES", ())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.pem"
    path.write_bytes(PUBLIC + b"\n# mitmgate\n" + OURS)
    return path


def names(path: Path) -> list[str]:
    """Return the subjects in a PEM file, in order."""
    found = x509.load_pem_x509_certificates(path.read_bytes())
    return [str(one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) for one in found]


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "AWS_CA_BUNDLE"])
def test_a_companys_root_named_by_any_variable_is_taken_over(bundle: Path, tmp_path: Path, variable: str) -> None:
    (tmp_path / "corp.pem").write_bytes(b"# our own\n" + CORP + PUBLIC)

    added = roots.extend(bundle, {variable: str(tmp_path / "corp.pem")})

    assert (added, names(bundle)) == (1, ["Public Root", "mitmproxy", "Corp Root"])


def test_a_root_that_the_system_trusts_is_taken_over(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system.crt").write_bytes(CORP)
    monkeypatch.setattr(roots, "SYSTEM_BUNDLES", ("/no/such/file", str(tmp_path / "system.crt")))

    roots.extend(bundle, {})

    assert names(bundle) == ["Public Root", "mitmproxy", "Corp Root"]


def test_another_gateways_ca_is_never_taken_over(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(OTHER_GATEWAY + CORP)

    roots.extend(bundle, {"SSL_CERT_FILE": str(tmp_path / "other.pem")})

    assert names(bundle) == ["Public Root", "mitmproxy", "Corp Root"]


def test_nothing_is_written_where_nothing_is_new(bundle: Path) -> None:
    before = bundle.stat()

    added = roots.extend(bundle, {"SSL_CERT_FILE": str(bundle), "CURL_CA_BUNDLE": "/no/such/file", "DENO_CERT": ""})

    assert (added, bundle.stat().st_ino) == (0, before.st_ino)


def test_a_file_that_is_no_certificate_adds_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n\xff\x00")

    assert roots.extend(bundle, {"SSL_CERT_FILE": str(tmp_path / "x.pem")}) == 0


def test_java_gets_every_certificate_of_the_bundle(bundle: Path) -> None:
    store = roots.write_truststore(bundle)

    held = pkcs12.load_pkcs12(store.read_bytes(), b"changeit").additional_certs
    assert {one.certificate.public_bytes(Encoding.PEM) for one in held} == {PUBLIC, OURS}


def test_the_trust_store_is_written_anew_only_after_the_bundle_changed(bundle: Path) -> None:
    first = roots.write_truststore(bundle).stat()
    again = roots.write_truststore(bundle).stat()
    os.utime(bundle, (first.st_mtime + 5, first.st_mtime + 5))
    later = roots.write_truststore(bundle).stat()

    assert (again.st_ino == first.st_ino, later.st_ino == first.st_ino) == (True, False)


def test_a_bundle_that_cannot_be_read_is_a_sentence_and_no_trust_store(tmp_path: Path) -> None:
    store, troubles = roots.prepare(tmp_path / "nowhere.pem", {})

    assert store is None
    assert "could not be brought up to date" in troubles[0]
