"""Signing: keys as cosign makes them, signatures as clients ask for them, and no tag at an image without one."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from rechunk_action import pipeline
from rechunk_action.errors import CorruptImage, InputError, RegistryError
from rechunk_action.oci.image import INDEX, digest_of
from rechunk_action.registry.client import Repository
from rechunk_action.registry.signature import SIGNATURE, is_signed, sign, signature_tag, signed_payload
from rechunk_action.sign_key import decrypted, read_key
from tests.building import Listener, build
from tests.faulty_proxy import ALWAYS, Exchange, Fault, Line
from tests.registries import repository
from tests.signing import KeyPair, key_pair, key_text, pulled, signed, verified

VERSION = "42-20261126"
NAMES = {"name": "--sign-key K", "password_name": "COSIGN_PASSWORD"}


@pytest.fixture
def published(target: str) -> Iterator[Repository]:
    """The same, for our client."""
    host, _, name = target.partition("/")
    with repository(host, name) as opened:
        yield opened


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system that a container may hold, too."""
    root = tmp_path / "tree"
    (root / "usr/lib").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "usr/lib/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    return root


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """A key pair of cosign."""
    return key_pair(tmp_path_factory.mktemp("pair"), password="pass wörd")  # noqa: S106  # a test's own


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """Another one, without a password."""
    return key_pair(tmp_path_factory.mktemp("strangers"), password="")


def publish(tree: Path, target: str, key: ec.EllipticCurvePrivateKey | None, **options: Any) -> dict[str, Any]:
    return build(tree, f"docker://{target}", sign_key=key, tags=("latest",), **options)


def opened(pair: KeyPair) -> ec.EllipticCurvePrivateKey:
    return decrypted(pair.text, pair.password, **NAMES)


def image_tags(published: Repository) -> dict[str, str]:
    """The tags that people use, and the digests that they point at."""
    found = {tag: published.resolve(tag) for tag in published.tags() if not tag.startswith("sha256-")}
    return {tag: image.digest for tag, image in found.items() if image}


def signatures(published: Repository, digest: str) -> list[dict[str, Any]]:
    found = published.manifest(signature_tag(digest))
    assert found is not None
    layers: list[dict[str, Any]] = json.loads(found.data)["layers"]
    return layers


class TestAKey:
    @pytest.mark.oracle
    def test_of_cosign_opens_with_its_password(self, pair: KeyPair, strangers: KeyPair) -> None:
        for each in (pair, strangers):
            public = opened(each).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            assert public == each.public.read_bytes()

    def test_of_another_kind_is_told(self) -> None:
        for other in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
            with pytest.raises(InputError, match=r"is no key of ECDSA P-256: make a key pair with `cosign generate"):
                decrypted(key_text("", other), "", **NAMES)

    def test_is_in_a_file_or_a_variable_as_for_cosign(self, tmp_path: Path) -> None:
        text = key_text("p")
        (tmp_path / "cosign.key").write_text(text)
        environment = {"COSIGN_PASSWORD": "p", "KEY": text}
        found = [read_key(place, environment) for place in (str(tmp_path / "cosign.key"), "env://KEY")]
        assert found[0].private_numbers() == found[1].private_numbers()

    @pytest.mark.parametrize(
        ("place", "text"),
        [
            ("env://NONE", "--sign-key env://NONE names a variable that is not set: put the text of cosign.key"),
            ("env://EMPTY", "names a variable that is not set"),
            ("missing.key", r"--sign-key missing.key cannot be read \(No such file or directory\): name a file, or a"),
            ("/", r"cannot be read \(Is a directory\)"),
            ("/bin/true", "--sign-key /bin/true holds no private key of cosign: give all of the file cosign.key"),
        ],
    )
    def test_that_is_not_there_is_told(self, place: str, text: str) -> None:
        with pytest.raises(InputError, match=text):
            read_key(place, {"EMPTY": ""})

    def test_keeps_through_editors_and_forms(self, key: ec.EllipticCurvePrivateKey) -> None:
        text = key_text("", key)
        old = key_text("", key, label="ENCRYPTED COSIGN PRIVATE KEY")
        for form in (text.strip(), text.replace("\n", "\r\n"), textwrap.indent(text, "  "), f"\n\n{text}\n", old):
            assert decrypted(form, "", **NAMES).private_numbers() == key.private_numbers()

    def test_that_is_none_is_told_and_not_shown(self, key: ec.EllipticCurvePrivateKey) -> None:
        whole = key_text("p")
        body = whole.splitlines()[1]
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for text, words in (
            (whole, "cannot be opened with the password in COSIGN_PASSWORD: correct one of them"),
            ("", "holds no private key of cosign"),
            (public, "holds no private key of cosign"),
            (body, "holds no private key of cosign"),
            (whole.replace("END ENCRYPTED", "END"), "holds no private key of cosign"),
            (pem, "is not encrypted: have `cosign import-key-pair` make a key pair of it"),
            (whole.replace(body, ""), "is damaged: give all of the file cosign.key, byte for byte"),
            (whole.replace(body, body[4:]), "is damaged"),
            (key_text("p", kdf="pbkdf2"), r"is not encrypted as cosign does it \(scrypt, nacl/secretbox\)"),
            (key_text("p", cipher="aes"), r"is not encrypted as cosign does it"),
            (key_text("p", cost=1 << 30), "is damaged"),
            (key_text("p", cost=12345), "is damaged"),
            (key_text("p", cost=1 << 80), "is damaged"),
        ):
            with pytest.raises(InputError, match=words) as told:
                decrypted(text, "the-wrong-one", **NAMES)
            assert str(told.value).startswith("--sign-key K ")
            assert "the-wrong-one" not in str(told.value)
            assert not [line for line in text.splitlines() if line.strip() and line in str(told.value)]


@pytest.mark.oracle
class TestASignature:
    def test_is_taken_by_cosign_and_by_podman_under_a_policy(
        self, tree: Path, target: str, pair: KeyPair, strangers: KeyPair, tmp_path: Path
    ) -> None:
        report = publish(tree, target, opened(pair))
        done = verified(f"{target}:latest", pair)
        assert done.returncode == 0, done.stderr
        [claims] = json.loads(done.stdout)
        assert claims["critical"]["image"]["docker-manifest-digest"] == report["digest"]
        assert pulled(tmp_path, f"{target}:latest", pair).returncode == 0

        refused = verified(f"{target}:latest", strangers)
        assert (refused.returncode != 0, "no matching signatures" in refused.stderr) == (True, True)
        rejected = pulled(tmp_path, f"{target}:latest", strangers)
        assert (rejected.returncode != 0, "signature verification failed" in rejected.stderr) == (True, True)

    def test_is_missed_where_there_is_none(self, tree: Path, target: str, pair: KeyPair, tmp_path: Path) -> None:
        publish(tree, target, None)
        assert "no signatures found" in verified(f"{target}:latest", pair).stderr
        rejected = pulled(tmp_path, f"{target}:latest", pair)
        assert (rejected.returncode != 0, "A signature was required" in rejected.stderr) == (True, True)

    def test_stands_beside_those_of_others(
        self, tree: Path, target: str, published: Repository, pair: KeyPair, strangers: KeyPair
    ) -> None:
        """Before it and after it."""
        digest = publish(tree, target, None)["digest"]
        signed(f"{target}@{digest}", strangers).check_returncode()
        theirs = signatures(published, digest)
        sign(published, digest, opened(pair))
        assert signatures(published, digest)[:1] == theirs
        signed(f"{target}@{digest}", strangers).check_returncode()
        for each in (pair, strangers):
            assert verified(f"{target}@{digest}", each).returncode == 0
            public = load_pem_public_key(each.public.read_bytes())
            assert isinstance(public, ec.EllipticCurvePublicKey)
            assert is_signed(published, digest, public)

    def test_is_put_once(
        self, tree: Path, target: str, line: Line, published: Repository, key: ec.EllipticCurvePrivateKey
    ) -> None:
        digest = publish(tree, target, key)["digest"]
        line.forget()
        sign(published, digest, key)
        assert [each.method for each in line.exchanges] == ["GET", "GET"]
        assert len(signatures(published, digest)) == 1

    def test_counts_by_what_it_says_and_who_made_it(
        self, tree: Path, target: str, published: Repository, key: ec.EllipticCurvePrivateKey
    ) -> None:
        """Of another repository, another image, another key, nothing or nonsense, it is none."""
        digest, other = publish(tree, target, key)["digest"], ec.generate_private_key(ec.SECP256R1())
        [ours] = signatures(published, digest)
        payload = signed_payload(str(published), digest)
        assert is_signed(published, digest, key.public_key())
        assert not is_signed(published, digest, other.public_key())
        for layer in (
            {**ours, "digest": digest_of(payload.replace(b"test/", b"rest/"))},
            {**ours, "digest": digest_of(signed_payload(str(published), digest_of(b"other")))},
            {**ours, "mediaType": "text/plain"},
            {**ours, "annotations": {}},
            {**ours, "annotations": {SIGNATURE: "#"}},
            {**ours, "annotations": {SIGNATURE: base64.b64encode(b"x" * 70).decode()}},
        ):
            found = published.manifest(signature_tag(digest))
            assert found is not None
            changed = json.dumps(json.loads(found.data) | {"layers": [layer]}).encode()
            published.upload_bytes(payload.replace(b"test/", b"rest/"))
            published.upload_bytes(signed_payload(str(published), digest_of(b"other")))
            published.put_manifest(signature_tag(digest), changed, found.media_type)
            assert not is_signed(published, digest, key.public_key())
        sign(published, digest, key)
        assert is_signed(published, digest, key.public_key())
        assert len(signatures(published, digest)) == 2

    @pytest.mark.parametrize(
        "fault",
        [
            *(Fault("hang up"), Fault("lose the answer"), Fault("corrupt"), Fault("corrupt the request")),
            *(Fault("answer", status=status) for status in (404, 500)),
        ],
        ids=lambda fault: f"{fault.kind} {fault.status}",
    )
    def test_is_there_or_missed_whatever_fails(
        self, line: Line, published: Repository, key: ec.EllipticCurvePrivateKey, fault: Fault
    ) -> None:
        """Each request of the signing in turn, once and for good. What was there stays."""
        stranger = ec.generate_private_key(ec.SECP256R1())
        number, reached = 0, True
        while reached:
            number += 1
            for stays in (False, True):
                digest = digest_of(f"{number} {stays}".encode())
                sign(published, digest, stranger)
                line.forget()
                if stays:
                    line.break_at(number, fault)
                else:
                    line.fault(fault.kind, at=number, status=fault.status)
                told = False
                try:
                    sign(published, digest, key)
                except (RegistryError, CorruptImage):
                    told = True
                reached = len(line.exchanges) >= number
                line.forget()
                assert told or is_signed(published, digest, key.public_key())
                assert told <= reached
                # A registry that says that nothing is there is believed.
                assert fault.status == 404 or is_signed(published, digest, stranger.public_key())
        assert number > 8


@pytest.mark.oracle
class TestPublishing:
    def test_puts_the_signature_before_any_tag(
        self, tree: Path, target: str, line: Line, published: Repository, key: ec.EllipticCurvePrivateKey
    ) -> None:
        told = Listener()
        digest = publish(tree, target, key, progress=told)["digest"]
        put = [each.path.rpartition("/")[2] for each in line.asked("PUT", "/manifests/")]
        tables = [name for name in put if name.endswith(".rechunk")]
        assert put == [digest, signature_tag(digest), *tables, VERSION, "latest"]
        assert image_tags(published) == {VERSION: digest, "latest": digest}
        assert is_signed(published, digest, key.public_key())

    def test_signs_each_version(
        self, tree: Path, target: str, published: Repository, key: ec.EllipticCurvePrivateKey
    ) -> None:
        for number in range(3):
            (tree / "etc/motd").write_text(str(number))
            publish(tree, target, key)
        assert set(image_tags(published)) == {VERSION, f"{VERSION}.1", f"{VERSION}.2", "latest"}
        assert all(is_signed(published, digest, key.public_key()) for digest in image_tags(published).values())

    def test_without_push_sends_nothing(
        self, tree: Path, target: str, line: Line, key: ec.EllipticCurvePrivateKey
    ) -> None:
        publish(tree, target, key, push=False)
        assert {each.method for each in line.exchanges} <= {"GET", "HEAD"}

    def test_to_a_layout_signs_nothing_and_says_so(
        self, tree: Path, tmp_path: Path, key: ec.EllipticCurvePrivateKey
    ) -> None:
        with pytest.raises(InputError, match=r"--sign-key signs what is published in a registry, and oci:.* is in non"):
            build(tree, f"oci:{tmp_path}/image", sign_key=key)

    def test_tells_what_is_there_when_the_registry_loses_the_signature(
        self, tree: Path, target: str, line: Line, published: Repository, key: ec.EllipticCurvePrivateKey
    ) -> None:
        publish(tree, target, key)
        before = image_tags(published)
        (tree / "etc/motd").write_text("new")
        line.fault("answer", method="PUT", path=r"manifests/sha256-.*\.sig", status=201, times=ALWAYS)
        with pytest.raises(RegistryError) as told:
            publish(tree, target, key)
        for text in (
            f"{target}@sha256:",
            "could not be signed, so no tag was put",
            "does not have it",
            "Publish again",
        ):
            assert text in str(told.value)
        line.forget()
        assert image_tags(published) == before
        publish(tree, target, key)
        assert all(is_signed(published, digest, key.public_key()) for digest in image_tags(published).values())

    def test_touches_nothing_else_where_signatures_belong(
        self, tree: Path, target: str, published: Repository, key: ec.EllipticCurvePrivateKey
    ) -> None:
        """A build of the same tree has the same digest, whatever is at its tag meanwhile."""
        digest = publish(tree, target, None)["digest"]
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
        published.put_manifest(signature_tag(digest), index, INDEX)
        with pytest.raises(RegistryError, match=r"holds something else .*: delete that tag"):
            sign(published, digest, key)
        found = published.manifest(signature_tag(digest))
        assert found is not None
        assert found.data == index

    @pytest.mark.parametrize("fault", [Fault("hang up"), Fault("lose the answer")], ids=lambda fault: fault.kind)
    def test_has_no_tag_at_an_unsigned_image_when_the_line_breaks(
        self,
        tree: Path,
        target: str,
        line: Line,
        published: Repository,
        key: ec.EllipticCurvePrivateKey,
        fault: Fault,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """For good, at each request from the manifest on."""
        monkeypatch.setattr(pipeline, "OLDER", 1)
        tagged, step = set[str](), 0
        while "latest" not in tagged:
            (tree / "etc/motd").write_text(f"{step}")
            break_after_manifest(line, step, fault)
            with pytest.raises(RegistryError):
                publish(tree, target, key)
            line.forget()
            tags = image_tags(published)
            assert all(is_signed(published, digest, key.public_key()) for digest in tags.values())
            tagged = set(tags)
            step += 1
        assert step > 10

    @pytest.mark.parametrize("step", [r"digest=sha256", r"manifests/sha256:", r"\.sig", r"\.rechunk", "manifests/42-"])
    def test_has_none_after_a_kill(
        self, tree: Path, target: str, line: Line, published: Repository, key: ec.EllipticCurvePrivateKey, step: str
    ) -> None:
        line.fault("delay", method="PUT", path=step, seconds=5)
        with start(tree, target, key_text("p", key), "p") as process:
            wait_for(line, step)
            process.kill()
        line.forget()
        assert image_tags(published) == {}
        digest = publish(tree, target, key)["digest"]
        assert set(image_tags(published).values()) == {digest}
        assert is_signed(published, digest, key.public_key())


def break_after_manifest(line: Line, step: int, fault: Fault) -> None:
    """Break the line at a request of the next publish: 0 is the one that puts the manifest by its digest."""
    first: list[int] = []

    def watch(exchange: Exchange) -> None:
        if not first and (exchange.method, "/manifests/sha256:" in exchange.path) == ("PUT", True):
            first.append(exchange.number)
            line.break_at(exchange.number + step, fault)

    line.watch = watch


@pytest.mark.oracle
class TestTheSecret:
    def test_is_in_no_argument_no_file_and_no_line(self, tree: Path, target: str, line: Line) -> None:
        """Looked for while the signature is put, and after an interruption."""
        text, password = key_text("the-password"), "the-password"
        line.fault("delay", method="PUT", path=r"\.sig", seconds=5)
        with start(tree, target, text, password, "--verbose") as process:
            wait_for(line, r"\.sig")
            arguments = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
            files = b"".join(path.read_bytes() for path in tree.parent.rglob("*") if path.is_file())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        assert process.returncode == 130
        assert f"docker://{target}".encode() in arguments
        assert b"VERSION_ID" in files
        for secret in (password, *text.splitlines()[1:-1]):
            assert secret.encode() not in arguments + files + out + err
        assert [path.name for path in tree.parent.iterdir()] == ["tree"]

    def test_is_checked_before_anything_is_done(self, tree: Path, target: str, line: Line) -> None:
        for option in ("--push", "--no-push"):
            with start(tree, target, key_text("right"), "wrong", option) as process:
                _, err = process.communicate()
            assert process.returncode == InputError.exit_code
            assert b"--sign-key env://KEY cannot be opened with the password in COSIGN_PASSWORD" in err
        assert line.exchanges == []


def start(tree: Path, target: str, key: str, password: str, *options: str) -> subprocess.Popen[bytes]:
    """The command, with a key in its environment."""
    command = [sys.executable, "-m", "rechunk_action", "build", f"dir:{tree}", f"docker://{target}", *options]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tree.parent), "TMPDIR": str(tree.parent)}
    return subprocess.Popen(
        [*command, "--tls-verify=false", "--sign-key=env://KEY"],
        env=environment | {"KEY": key, "COSIGN_PASSWORD": password},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(line: Line, step: str) -> Exchange:
    end = time.monotonic() + 30
    while not (found := line.asked("PUT", step)):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found[0]
