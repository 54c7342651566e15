"""A throw-away certificate authority and one server certificate for every host that the tests pretend to be."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = ("management.azure.com", "login.microsoftonline.com", "*.blob.core.windows.net", "*.api.azureml.ms",
         "*.experiments.azureml.net", "*.westeurope.inference.ml.azure.com", "localhost")


def make_certificates(folder: Path) -> None:
    """Write ca.pem, cert.pem and key.pem, good for a day."""
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _begin("phicli tests", "phicli tests", authority.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    ca = ca.add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), False)
    names = [*map(x509.DNSName, HOSTS), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    cert = _begin("phicli test server", "phicli tests", server.public_key())
    cert = cert.add_extension(x509.SubjectAlternativeName(names), False)
    cert = cert.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
    pem = serialization.Encoding.PEM
    for name, builder in (("ca.pem", ca), ("cert.pem", cert)):
        (folder / name).write_bytes(builder.sign(authority, hashes.SHA256()).public_bytes(pem))
    (folder / "key.pem").write_bytes(server.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def _begin(subject: str, issuer: str, key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return (x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer)).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
