"""Signatures of bundles, also against the program minisign."""

import shutil
import subprocess
import sys
import zipfile

import minisign
import pytest

from engine.base.errors import ConfigError
from engine.bundles.manifest import MANIFEST, SIGNATURE, BundleError, to_text
from engine.bundles.signing import PASSWORD, sign, verify

PROGRAM = shutil.which("minisign")
needs_minisign = pytest.mark.skipif(PROGRAM is None, reason="needs the program minisign (apt-get install minisign)")
CONTENT = to_text({"format": 1, "entries": {}, "files": {}})


def make_keys(folder, name, password=None):
    """Writes NAME.key and NAME.pub, and returns their paths."""
    keys = minisign.KeyPair.generate()
    secret, public = folder / f"{name}.key", folder / f"{name}.pub"
    public.write_bytes(bytes(keys.public_key) + b"\n")
    if password is not None:
        keys.secret_key.encrypt(password, opslimit=32768, memlimit=1 << 20)  # fast
    secret.write_bytes(bytes(keys.secret_key) + b"\n")
    return secret, public


@pytest.fixture
def keys(tmp_path):
    return make_keys(tmp_path, "team")


@pytest.fixture
def bundle(tmp_path, keys):
    """A signed folder, as far as signatures are concerned."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST).write_bytes(CONTENT)
    (folder / SIGNATURE).write_bytes(sign(CONTENT, keys[0]))
    return folder


def test_signature_is_verified_and_names_its_key(bundle, keys):
    name = verify(bundle, keys[1])
    assert name == verify(str(bundle), keys[1].read_text().splitlines()[1])
    assert len(name) == 16 and int(name, 16)


def test_signatures_of_one_manifest_are_equal(keys):
    signature = sign(CONTENT, keys[0])
    assert signature == sign(CONTENT, keys[0])
    assert b"trusted comment: file:bundle.json\thashed\n" in signature  # and no time
    assert sign(CONTENT, keys[0]) != sign(CONTENT + b" ", keys[0])


def test_signature_in_a_zip_file_is_verified(bundle, keys, tmp_path):
    packed = tmp_path / "bundle.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for name in (MANIFEST, SIGNATURE):
            file.write(bundle / name, name)
    assert verify(packed, keys[1]) == verify(bundle, keys[1])


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_each_changed_byte_is_refused(bundle, keys, name):
    content = (bundle / name).read_bytes()
    # The first line of a signature is a comment for people, and the last byte ends a line.
    begin = content.index(b"\n") + 1 if name == SIGNATURE else 0
    for position in range(begin, len(content) - 1):
        (bundle / name).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(BundleError, match=r"changed after|is damaged|was signed with the key"):
            verify(bundle, keys[1])


@pytest.mark.parametrize("length", [0, 1, 60, 200, -40])
def test_cut_signature_is_refused(bundle, keys, length):
    (bundle / SIGNATURE).write_bytes((bundle / SIGNATURE).read_bytes()[:length])
    with pytest.raises(BundleError, match=r"bundle.json.minisig is damaged \(.*\). Copy the bundle again"):
        verify(bundle, keys[1])


def test_wrong_key_is_named(bundle, keys, tmp_path):
    _, other = make_keys(tmp_path, "other")
    with pytest.raises(BundleError, match=rf"signed with the key {verify(bundle, keys[1])}, not with [0-9A-F]{{16}}\."):
        verify(bundle, other)


def test_missing_files_are_named(bundle, keys, tmp_path):
    (bundle / SIGNATURE).unlink()
    with pytest.raises(BundleError, match=r"bundle: has no signature: bundle.json.minisig is missing"):
        verify(bundle, keys[1])
    (bundle / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"bundle: is no bundle: no bundle.json"):
        verify(bundle, keys[1])
    with pytest.raises(BundleError, match=r"no-such: is no bundle"):
        verify(tmp_path / "no-such", keys[1])
    with pytest.raises(BundleError, match=r"team.pub: is no bundle"):
        verify(keys[1], keys[1])


def test_password_comes_from_the_argument_or_the_environment(tmp_path, monkeypatch):
    secret, public = make_keys(tmp_path, "locked", "open sesame")
    (tmp_path / MANIFEST).write_bytes(CONTENT)
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(ConfigError, match=r"locked.key: the key has a password. Set .* CONVOY_SIGNING_PASSWORD"):
        sign(CONTENT, secret)
    with pytest.raises(ConfigError, match=r"locked.key: wrong password for that key"):
        sign(CONTENT, secret, "sesame")
    monkeypatch.setenv(PASSWORD, "open sesame")
    (tmp_path / SIGNATURE).write_bytes(sign(CONTENT, secret))
    assert verify(tmp_path, public)
    assert sign(CONTENT, secret, "open sesame") == (tmp_path / SIGNATURE).read_bytes()


def test_what_is_no_key_is_refused(bundle, keys, tmp_path):
    secret, public = keys
    with pytest.raises(ConfigError, match=r"--sign=.*no-such: cannot be read \(No such file"):
        sign(CONTENT, tmp_path / "no-such")
    with pytest.raises(ConfigError, match=r"--sign=.*: cannot be read \(Is a directory"):
        sign(CONTENT, tmp_path)
    for wrong in (public, bundle / MANIFEST):
        with pytest.raises(ConfigError, match=r"is no secret key of minisign"):
            sign(CONTENT, wrong)
    for wrong in (secret, bundle / MANIFEST, tmp_path / "no-such", "RWQ"):
        with pytest.raises(ConfigError, match=r"is neither a file with a public key of minisign nor such a key"):
            verify(bundle, wrong)


def test_missing_library_is_named_with_its_extra(bundle, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "minisign", None)
    with pytest.raises(ConfigError, match=r"--sign: signatures need py-minisign. Install it: pip install .*\[bundle\]"):
        sign(CONTENT, keys[0])
    with pytest.raises(ConfigError, match=r"--public-key: signatures need py-minisign"):
        verify(bundle, keys[1])


def program(*words, password=""):
    done = subprocess.run([str(PROGRAM), *map(str, words)], input=password, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@needs_minisign
@pytest.mark.multiprocess
def test_program_minisign_accepts_our_signatures(bundle, keys, tmp_path):
    check = ["-V", "-p", keys[1], "-m", bundle / MANIFEST]
    assert program(*check) == (
        0,
        "Signature and comment signature verified\nTrusted comment: file:bundle.json\thashed\n",
    )
    secret, public = make_keys(tmp_path, "locked", "open sesame")
    (bundle / SIGNATURE).write_bytes(sign(CONTENT, secret, "open sesame"))
    assert program("-V", "-p", public, "-m", bundle / MANIFEST)[0] == 0
    code, text = program(*check)
    assert code != 0 and verify(bundle, public) in text  # both print the same name of a key
    (bundle / MANIFEST).write_bytes(CONTENT + b" ")
    assert program("-V", "-p", public, "-m", bundle / MANIFEST)[0] != 0


@needs_minisign
@pytest.mark.multiprocess
def test_signatures_of_the_program_minisign_are_accepted(bundle, tmp_path):
    secret, public = tmp_path / "own.key", tmp_path / "own.pub"
    assert program("-G", "-W", "-s", secret, "-p", public)[0] == 0
    assert program("-S", "-s", secret, "-m", bundle / MANIFEST)[0] == 0
    assert f"minisign public key {verify(bundle, public)}" in public.read_text()
    (bundle / SIGNATURE).write_bytes(sign(CONTENT, secret))
    assert program("-V", "-p", public, "-m", bundle / MANIFEST)[0] == 0
    locked, public = make_keys(tmp_path, "locked", "open sesame")
    code, text = program("-S", "-s", locked, "-m", bundle / MANIFEST, password="open sesame\n")
    assert code == 0, text
    assert verify(bundle, public)
