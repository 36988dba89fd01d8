"""What is told of images that cannot boot, or will surprise their users."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import InputError
from rechunk_action.oci.layout import read_image
from rechunk_action.report.words import shown
from rechunk_action.source.image import ImageSource
from rechunk_action.tree.entry import Entry
from rechunk_action.tree.lint import RULES, lint
from tests.building import Listener, build, scanned
from tests.reports import HOSTILE
from tests.small_image import SmallImage
from tests.support import archive, directory, file, pack, symlink, write_layout

ROOT = Path(__file__).parent.parent
KVER = "6.1.0-50"
MODULES = f"usr/lib/modules/{KVER}"
ARGUMENTS = "usr/lib/bootc/kargs.d"
CONFIG = "usr/lib/ostree/prepare-root.conf"
RELEASE = "usr/lib/os-release"

FILES = {
    "etc/passwd": "root",
    f"{MODULES}/vmlinuz": "kernel",
    f"{MODULES}/initramfs.img": "initramfs",
    f"{ARGUMENTS}/10-quiet.toml": 'kargs = ["quiet"]\nmatch-architectures = ["x86_64"]\n',
    f"{ARGUMENTS}/README": "no arguments",
    CONFIG: "# for bootc\n[composefs]\nenabled = true\n",
    RELEASE: 'NAME=Small\nPRETTY_NAME="Small 1"\n',
}
LINKS = {"ostree": "sysroot/ostree", "etc/os-release": f"../{RELEASE}", "var/run": "../run"}
DIRECTORIES = ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var/lib")


def system(**changes: str | bytes | None) -> SmallImage:
    """A tree that boots. `changes` are files that are others, by path (`None`: gone), and directories (`PATH/`)."""
    files = {path: content for path, content in (FILES | changes).items() if content is not None and path[-1] != "/"}
    image = SmallImage(files, LINKS)
    for path in (*DIRECTORIES, *(path[:-1] for path in changes if path[-1] == "/")):
        image.add(path, Entry("d", 0o755, 0, 0))
    return image


def without(*paths: str) -> SmallImage:
    """A tree that boots, but for these paths and all below."""
    image = system()
    for path in list(image.tree):
        if any(f"{path}/".startswith(f"{gone}/") for gone in paths):
            del image.tree[path]
    return image


def linked(path: str, target: str) -> SmallImage:
    """A tree that boots, with a link instead of what is at this path."""
    image = without(path)
    image.add(path, Entry("l", 0o777, 0, 0, target=target))
    return image


def found(image: SmallImage, *labels: str) -> list[tuple[str, str]]:
    """Rules and paths of what is found."""
    return [(finding.rule, finding.path) for finding in lint(image.tree, image.read, labels)]


DAMAGE: dict[str, tuple[Callable[[], SmallImage], str, str]] = {
    "a file in /boot": (lambda: system(**{"boot/vmlinuz-6.1": "k"}), "boot", "/boot/vmlinuz-6.1"),
    "a link in /boot": (lambda: linked("boot/vmlinuz", "vmlinuz-6.1"), "boot", "/boot/vmlinuz"),
    "no setting": (lambda: without(CONFIG), "composefs", f"/{CONFIG}"),
    "another setting": (lambda: system(**{CONFIG: "[composefs]\nenabled=no\n"}), "composefs", f"/{CONFIG}"),
    "a setting elsewhere": (lambda: system(**{CONFIG: "enabled=true\n[x]\nenabled=true\n"}), "composefs", f"/{CONFIG}"),
    "a setting that does not count": (
        lambda: system(**{"etc/ostree/prepare-root.conf": "[etc]\ntransient = true\n"}),
        "composefs",
        f"/{CONFIG}",
    ),
    **{f"no /{path}": (partial(without, path), "directories", f"/{path}") for path in ("boot", "run", "sys")},
    "no /sysroot": (lambda: without("sysroot"), "directories", "/sysroot"),
    "a link instead of a directory": (lambda: linked("tmp", "sysroot/tmp"), "directories", "/tmp"),
    "no /etc": (lambda: without("etc"), "etc", "/etc"),
    "both /etc and /usr/etc": (lambda: system(**{"usr/etc/passwd": "root"}), "etc", "/usr/etc"),
    "an empty /usr/etc besides": (lambda: system(**{"usr/etc/": ""}), "etc", "/usr/etc"),
    "no initramfs": (lambda: without(f"{MODULES}/initramfs.img"), "initramfs", f"/{MODULES}"),
    "no kernel": (lambda: without(f"{MODULES}/vmlinuz"), "kernel", "/usr/lib/modules"),
    "two kernels": (
        lambda: system(**{f"usr/lib/modules/5/{name}": "" for name in ("vmlinuz", "initramfs.img")}),
        "kernel",
        "/usr/lib/modules",
    ),
    **{
        f"arguments that are {text!r}": (
            partial(system, **{f"{ARGUMENTS}/20-bad.toml": text}),
            "kernel-arguments",
            f"/{ARGUMENTS}/20-bad.toml",
        )
        for text in (
            "",
            "kargs = quiet",
            'kargs = "quiet"',
            "kargs = []\nother = 1",
            b"kargs = ['\xff']",
            "a=" + "[" * 9999,
        )
    },
    "arguments that are no directory": (
        lambda: linked(ARGUMENTS, "/etc/kargs.d"),
        "kernel-arguments",
        f"/{ARGUMENTS}",
    ),
    "no os-release": (lambda: without(RELEASE), "os-release", f"/{RELEASE}"),
    "an os-release without a name": (lambda: system(**{RELEASE: "NAME=Small\nID=\n"}), "os-release", f"/{RELEASE}"),
    "no /ostree": (lambda: without("ostree"), "ostree", "/ostree"),
    "another /ostree": (lambda: linked("ostree", "/somewhere"), "ostree", "/ostree"),
    "a directory /ostree": (lambda: _with_directory(without("ostree"), "ostree"), "ostree", "/ostree"),
    "a file in /var": (lambda: system(**{"var/lib/dpkg/status": "x" * 1_000}), "var", "/var/lib/dpkg/status"),
    "a directory /var/run": (lambda: _with_directory(without("var/run"), "var/run"), "var-run", "/var/run"),
}


def _with_directory(image: SmallImage, path: str) -> SmallImage:
    image.add(path, Entry("d", 0o755, 0, 0))
    return image


class TestASystem:
    def test_that_boots_breaks_no_rule(self) -> None:
        assert found(system()) == []

    @pytest.mark.parametrize("name", DAMAGE)
    def test_with_one_damage_breaks_one_rule(self, name: str) -> None:
        damage, rule, path = DAMAGE[name]
        assert found(damage()) == [(rule, path)]

    def test_is_damaged_in_every_way_that_there_is_a_rule_for(self) -> None:
        assert {rule for _, rule, _ in DAMAGE.values()} == RULES.keys()

    @pytest.mark.parametrize(
        "image",
        [
            lambda: _moved(system(), "etc", "usr/etc"),
            lambda: system(**{CONFIG: "[root]\ntransient=true\n"}),
            *(lambda on=on: system(**{CONFIG: f"[composefs]\nenabled={on}"}) for on in ("yes", "1", "maybe", "verity")),
            lambda: system(**{CONFIG: "", "etc/ostree/prepare-root.conf": "[composefs]\nenabled=signed"}),
            lambda: system(
                **{CONFIG: "", "usr/etc/ostree/prepare-root.conf": "[composefs]\nenabled=1", "etc/passwd": None}
            ),
            lambda: _moved(system(), f"{MODULES}/initramfs.img", f"{MODULES}/initramfs"),
            lambda: _moved(without(f"{MODULES}/initramfs.img"), f"{MODULES}/vmlinuz", f"boot/EFI/Linux/{KVER}.efi"),
            lambda: system(**{"usr/lib/modules/5/kernel/left.ko": "x", "boot/grub2/": "", "boot/EFI/BOOT/x.efi": "x"}),
            lambda: without(ARGUMENTS),
            lambda: system(**{RELEASE: "ID=small\n"}),
            lambda: without("var/run"),
            lambda: system(**{"var/lib/empty/": ""}),
        ],
    )
    def test_that_boots_may_be_made_in_other_ways(self, image: Callable[[], SmallImage]) -> None:
        assert [each for each in found(image()) if each != ("etc", "/usr/etc")] == []

    @given(st.sets(st.sampled_from(list(DAMAGE)), max_size=4), st.sampled_from([HOSTILE, "a", "é", "\udcff"]))
    def test_breaks_a_rule_once(self, damages: set[str], name: str) -> None:
        """Whatever is wrong with it, and however often."""
        image = system()
        for damage in damages:
            image.tree |= DAMAGE[damage][0]().tree
        for number in range(50):
            for path in ("boot", "var", "usr/lib/modules", ARGUMENTS):
                image.add(f"{path}/{number}{name}.toml", Entry("l", 0o777, 0, 0, target="/etc/passwd"))
        rules = [finding.rule for finding in lint(image.tree, lambda _: b"?")]
        assert rules == sorted(set(rules))


def _moved(image: SmallImage, old: str, new: str) -> SmallImage:
    """The tree with a path, and all below it, in another place."""
    moved = SmallImage({})
    for path, entry in image.tree.items():
        moved.add(f"{new}{path.removeprefix(old)}" if f"{path}/".startswith(f"{old}/") else path, entry)
    moved.read = lambda path: image.read(f"{old}{path.removeprefix(new)}" if path.startswith(new) else path)  # type: ignore[method-assign]
    return moved


class TestAnApplication:
    IMAGE = SmallImage(
        {"usr/bin/app": "x", "etc/passwd": "root", "var/lib/dpkg/status": "x", "boot/x": "x"}, {"bin": "usr/bin"}
    )

    def test_breaks_no_rule(self) -> None:
        assert found(self.IMAGE, "maintainer") == []

    def test_may_have_a_directory_without_modules(self) -> None:
        assert found(SmallImage({"usr/bin/app": "x", "usr/lib/modules/README": "x"})) == []

    @pytest.mark.parametrize("label", ["containers.bootc", "ostree.bootable"])
    def test_is_a_system_where_a_label_says_so(self, label: str) -> None:
        assert {"kernel", "directories", "ostree", "boot"} <= {rule for rule, _ in found(self.IMAGE, label)}

    @pytest.mark.parametrize("path", ["sysroot", "ostree", "usr/lib/modules/6.1"])
    def test_is_a_system_where_a_path_says_so(self, path: str) -> None:
        image = _with_directory(SmallImage({"usr/bin/app": "x"}), path)
        assert ("kernel", "/usr/lib/modules") in found(image)


class TestATellings:
    @pytest.mark.parametrize("name", DAMAGE)
    def test_fits_into_a_notice_whole(self, name: str) -> None:
        [finding] = lint((image := DAMAGE[name][0]()).tree, image.read)
        assert shown(finding.text) == finding.text
        assert re.search(r": (make|put|correct|remove|ship|move|empty|name)\b", finding.text)

    def test_counts_and_names_a_few(self) -> None:
        image = system(
            **{f"usr/lib/modules/{number}/{name}": "" for number in range(5) for name in ("vmlinuz", "initramfs")}
        )
        [finding] = lint(image.tree, image.read)
        assert finding.text.startswith("6 kernels, 0, 1, 2 and 3 more: ")
        assert "1 file (1,000 bytes) in /var" in lint(*_parts(DAMAGE["a file in /var"][0]()))[0].text

    def test_says_why_arguments_cannot_be_read(self) -> None:
        [finding] = lint(*_parts(system(**{f"{ARGUMENTS}/a.toml": 'kargs = "quiet"'})))
        assert "(Expected `array`, got `str` - at `$.kargs`)" in finding.text


def _parts(image: SmallImage) -> tuple[dict[str, Entry], Callable[[str], bytes]]:
    return image.tree, image.read


class TestTheDocuments:
    def test_list_the_rules(self) -> None:
        text = (ROOT / "docs/reliability.md").read_text().partition("## Images that boot\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == sorted(RULES)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lint-", dir="/var/tmp") as directory:
        yield Path(directory)


def layout_of(place: Path, *, boot: bool = True, name: str = "a") -> Path:
    """An image in a layout, of a system that breaks two rules, or of one that boots."""
    items = [directory(path) for path in ("etc", "usr", "usr/lib", *DIRECTORIES[:-1], "var")]
    items += [file(path, content.encode()) for path, content in FILES.items() if path != CONFIG]
    items += [symlink(path, target) for path, target in LINKS.items()]
    items += [
        file(CONFIG, FILES[CONFIG].encode()),
        *([] if boot else [file(f"boot/{name}"), file(f"var/{name}", b"1")]),
    ]
    return write_layout(place / ("good" if boot else "bad"), [pack(archive(*items))])


@pytest.mark.parametrize("format_", ["plain", "ostree"])
class TestABuild:
    def test_of_a_system_that_boots_tells_nothing(self, place: Path, format_: str) -> None:
        told = Listener()
        report = build(f"oci:{layout_of(place)}", place / "image", format=format_, strict=True, progress=told)
        assert report["findings"] == []
        assert not told.heard("(rule ")

    def test_tells_what_is_broken(self, place: Path, format_: str) -> None:
        told = Listener()
        report = build(f"oci:{layout_of(place, boot=False)}", place / "image", format=format_, progress=told)
        assert [(each["rule"], each["path"]) for each in report["findings"]] == [("boot", "/boot/a"), ("var", "/var/a")]
        assert [notice for notice in told.notices if "(rule " in notice] == [
            f"{each['text']} (rule {each['rule']})" for each in report["findings"]
        ]

    def test_that_is_strict_lists_all_and_makes_nothing(self, place: Path, format_: str) -> None:
        with pytest.raises(InputError) as refused:
            build(f"oci:{layout_of(place, boot=False)}", place / "image", format=format_, strict=True)
        first, *rest = str(refused.value).splitlines()
        assert first.startswith("the image breaks 2 rules for images that boot, which --strict does not allow: ")
        assert [line.rpartition("(")[2] for line in rest] == ["rule boot)", "rule var)"]
        assert not (place / "image").exists()


def test_no_layer_is_read_for_it(place: Path) -> None:
    layout = layout_of(place, boot=False)
    source = scanned(ImageSource(read_image(layout, None), place, threads=1))
    shutil.rmtree(layout)
    assert [finding.rule for finding in lint(source.tree, source.read)] == ["boot", "var"]
