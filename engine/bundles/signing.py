"""Signatures of bundles in the format of minisign: Ed25519, of `bundle.json`, which holds the hash of every other file.

The program `minisign` makes the keys, and signs and verifies as well. A signature depends only on the key and on the
manifest, so the same run and key give the same bytes.
"""

import base64
import binascii
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.base.extras import install_command
from engine.bundles.bundle import content_of
from engine.bundles.manifest import MANIFEST, SIGNATURE, BundleError

if TYPE_CHECKING:
    import minisign

PASSWORD = "CONVOY_SIGNING_PASSWORD"
"""Environment variable with the password of a key."""
_COMMENT = f"file:{MANIFEST}\thashed"  # as `minisign` writes it, but without a time
_KEY_ID = slice(2, 10)  # bytes of a public key and of a signature


def sign(manifest: bytes, key_file: str | os.PathLike[str], password: str | None = None) -> bytes:
    """Returns the signature of a manifest, the content of `bundle.json.minisig`.

    Args:
        manifest: the content of `bundle.json`.
        key_file: a secret key of `minisign -G`.
        password: of the key; None: the environment variable `PASSWORD`, if the key has one.

    Raises:
        ConfigError: the file is no key, the password is missing or wrong, or the extra `bundle` is not installed.
    """
    minisign, where = _minisign("--sign"), f"--sign={key_file}"
    try:
        key = minisign.SecretKey.from_file(key_file)
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot be read ({error.strerror or error}). Give a secret key of minisign -G."
        ) from error
    except minisign.Error as error:
        raise ConfigError(
            f"{where}: is no secret key of minisign ({error}). Give the file that minisign -G writes with -s."
        ) from error
    with key:  # which overwrites it in memory
        _decrypt(key, os.environ.get(PASSWORD) if password is None else password, where)
        return bytes(key.sign(manifest, trusted_comment=_COMMENT)) + b"\n"


def verify(path: str | os.PathLike[str], public_key: str | os.PathLike[str]) -> str:
    """Checks that a bundle's manifest was signed with a key, and returns the name of the key: "9B9EC2C5D7A62B5E".

    The manifest holds the hashes of the other files, which `Bundle.check_files` compares.

    Args:
        path: the folder or the zip file.
        public_key: a file of `minisign -G`, or its second line, "RW...".

    Raises:
        BundleError: the bundle has no valid signature of this key.
        ConfigError: `public_key` is no key, or the extra `bundle` is not installed.
    """
    minisign = _minisign("--public-key")
    key = _public_key(public_key)
    manifest, stored = content_of(Path(path), MANIFEST), content_of(Path(path), SIGNATURE)
    if manifest is None:
        raise BundleError(f"{path}: is no bundle: no {MANIFEST} can be read there.")
    if stored is None:
        raise BundleError(f"{path}: has no signature: {SIGNATURE} is missing. Export the run with --sign=KEY.")
    try:
        signature = minisign.Signature.from_bytes(stored)
        if bytes(signature).splitlines() != stored.splitlines():  # base64 has unused bits
            raise minisign.ParseError("other base64 of the same bytes")
    except minisign.Error as error:
        raise BundleError(
            f"{path}: {SIGNATURE} is damaged ({error}). Copy the bundle again, or sign it again."
        ) from error
    name, found = _key_name(key.to_base64()), _key_name(bytes(signature).splitlines()[1])
    if name != found:
        raise BundleError(
            f"{path}: was signed with the key {found}, not with {name}. Use the public key of the team that signed it."
        )
    try:
        key.verify(manifest, signature)
    except minisign.Error as error:
        raise BundleError(
            f"{path}: {MANIFEST} or {SIGNATURE} was changed after the bundle was signed with the key {name}. Do not "
            "use this bundle; copy it again from where it was signed."
        ) from error
    return name


def _decrypt(key: "minisign.SecretKey", password: str | None, where: str) -> None:
    """Removes the password of a key, if it has one. Raises ConfigError for a missing or a wrong password."""
    minisign = _minisign("--sign")
    if not key.is_encrypted():
        return
    if password is None:
        raise ConfigError(
            f"{where}: the key has a password. Set the environment variable {PASSWORD}, or make a key without one: "
            "minisign -G -W."
        )
    try:
        key.decrypt(password)
    except minisign.Error as error:
        raise ConfigError(f"{where}: {error}. Set the environment variable {PASSWORD} to the right one.") from error
    except MemoryError as error:
        raise ConfigError(
            f"{where}: the password of this key needs more memory than there is (1 GiB for minisign's own keys). Free "
            "some, or make a key without a password: minisign -G -W."
        ) from error


def _public_key(public_key: str | os.PathLike[str]) -> "minisign.PublicKey":
    minisign, text = _minisign("--public-key"), os.fspath(public_key)
    try:
        return minisign.PublicKey.from_file(text) if Path(text).is_file() else minisign.PublicKey.from_base64(text)
    except OSError as error:
        raise ConfigError(f"--public-key={text}: cannot be read ({error.strerror or error}).") from error
    except minisign.Error as error:
        raise ConfigError(
            f"--public-key={text}: is neither a file with a public key of minisign nor such a key ({error}). Give the "
            'file that minisign -G writes with -p, or its second line, "RW...".'
        ) from error


def _key_name(line: bytes) -> str:
    """Returns the name of a key as minisign prints it, from the second line of a public key or of a signature."""
    return binascii.hexlify(base64.b64decode(line)[_KEY_ID][::-1]).decode().upper()


def _minisign(flag: str) -> ModuleType:
    try:
        import minisign
    except ImportError as error:
        raise ConfigError(f"{flag}: signatures need py-minisign. Install it: {install_command('bundle')}.") from error
    return minisign
