"""Debian's packages."""

from __future__ import annotations

from rechunk_action.tree.packages import installed, owners, read_packages
from tests.small_image import SmallImage

STATUS = """\
Package: tool
Status: install ok installed
Maintainer: Somebody
Architecture: amd64
Version: 1.0
Description: a tool
 Package: not a field

Package: data
Architecture: all

Package: libc6
Architecture: amd64

Package: libc6
Architecture: i386
"""


def owned(files: dict[str, str | bytes], links: dict[str, str] | None = None) -> dict[str, str]:
    """Who owns what, the database aside."""
    image = SmallImage(files, links)
    found = owners(image.tree, read_packages(image.tree, image.read))
    return {path: component for path, component in found.items() if "/dpkg/" not in path}


def database(**lists: str) -> dict[str, str | bytes]:
    return {
        "var/lib/dpkg/status": STATUS,
        **{f"var/lib/dpkg/info/{package}.list": text for package, text in lists.items()},
    }


def test_a_file_belongs_to_the_package_that_lists_it() -> None:
    files = {
        **database(tool="/.\n/usr\n/usr/bin/a b\n", data="/usr/data\n"),
        "usr/bin/a b": "",
        "usr/data": "",
        "x": "",
    }
    assert owned(files) == {"usr/bin/a b": "dpkg:tool:amd64", "usr/data": "dpkg:data:all"}


def test_a_package_of_two_architectures_is_two() -> None:
    lists = {"libc6:amd64": "/lib/x86_64-linux-gnu/libc.so.6\n", "libc6:i386": "/lib/i386-linux-gnu/libc.so.6\n"}
    files = {"usr/lib/x86_64-linux-gnu/libc.so.6": "", "usr/lib/i386-linux-gnu/libc.so.6": ""}
    assert owned({**database(**lists), **files}, links={"lib": "usr/lib"}) == {
        "usr/lib/x86_64-linux-gnu/libc.so.6": "dpkg:libc6:amd64",
        "usr/lib/i386-linux-gnu/libc.so.6": "dpkg:libc6:i386",
    }


def test_a_listed_link_belongs_to_the_package() -> None:
    files = {**database(tool="/bin/sh\n"), "usr/bin/dash": ""}
    links = {"bin": "usr/bin", "usr/bin/sh": "dash"}
    assert owned(files, links) == {"usr/bin/sh": "dpkg:tool:amd64"}


def test_of_two_packages_the_first_name_owns_the_file() -> None:
    files = {**database(tool="/etc/both\n", data="/etc/both\n"), "etc/both": ""}
    assert owned(files) == owned(dict(reversed(files.items()))) == {"etc/both": "dpkg:data:all"}


def test_a_file_that_became_a_directory_belongs_to_nobody() -> None:
    assert owned({**database(tool="/opt/tool\n"), "opt/tool/x": ""}) == {}


def test_a_diverted_path_belongs_to_who_diverted_it() -> None:
    files = {
        **database(tool="/usr/bin/vi\n", data="/usr/bin/vi\n"),
        "var/lib/dpkg/diversions": "/usr/bin/vi\n/usr/bin/vi.orig\ntool\n",
        "usr/bin/vi": "",
        "usr/bin/vi.orig": "",
    }
    assert owned(files) == {"usr/bin/vi": "dpkg:tool:amd64", "usr/bin/vi.orig": "dpkg:data:all"}


def test_a_local_diversion_moves_every_package_aside() -> None:
    files = {
        **database(tool="/usr/bin/vi\n"),
        "var/lib/dpkg/diversions": "/usr/bin/vi\n/usr/bin/vi.distrib\n:\n",
        "usr/bin/vi": "local",
        "usr/bin/vi.distrib": "",
    }
    assert owned(files) == {"usr/bin/vi.distrib": "dpkg:tool:amd64"}


def test_a_packages_metadata_is_its_own() -> None:
    image = SmallImage(
        {
            **database(tool="/.\n", **{"libc6:amd64": "/.\n"}),
            "var/lib/dpkg/info/tool.postinst": "",
            "var/lib/dpkg/info/libc6:amd64.md5sums": "",
            "var/lib/dpkg/info/format": "1\n",
            "var/lib/dpkg/available": "",
        }
    )
    assert owners(image.tree, read_packages(image.tree, image.read)) == {
        "var/lib/dpkg/info/tool.list": "dpkg:tool:amd64",
        "var/lib/dpkg/info/tool.postinst": "dpkg:tool:amd64",
        "var/lib/dpkg/info/libc6:amd64.list": "dpkg:libc6:amd64",
        "var/lib/dpkg/info/libc6:amd64.md5sums": "dpkg:libc6:amd64",
    }


def test_a_dot_in_a_packages_name_is_part_of_it() -> None:
    image = SmallImage(
        {
            "var/lib/dpkg/status": "Package: python3.13\nArchitecture: amd64\n",
            "var/lib/dpkg/info/python3.13.list": "/.\n",
            "var/lib/dpkg/info/python3.13.prerm": "",
        }
    )
    assert set(owners(image.tree, read_packages(image.tree, image.read)).values()) == {"dpkg:python3.13:amd64"}


def test_the_database_may_be_moved_out_of_var() -> None:
    moved = {path.replace("var/lib", "usr/lib/sysimage"): text for path, text in database(tool="/usr/x\n").items()}
    assert owned({**moved, "usr/x": ""}) == {"usr/x": "dpkg:tool:amd64"}
    assert owned({**moved, "usr/x": ""}, links={"var/lib/dpkg": "../../usr/lib/sysimage/dpkg"}) == owned(
        {**moved, "usr/x": ""}
    )


def test_a_package_that_the_status_does_not_know_claims_nothing() -> None:
    assert owned({**database(stranger="/usr/x\n"), "usr/x": ""}) == {}


def test_versions_are_those_of_what_is_installed() -> None:
    """Not of what has left no more than its settings, and of each architecture its own."""
    paragraphs = {
        ("tool", "amd64"): "Status: install ok installed\nVersion: 1:1.0-2+b1\nDescription: x\n Version: none",
        ("libc6", "amd64"): "Version: 2.41-12",
        ("libc6", "i386"): "Version: 2.41-11",
        ("half", "all"): "Status: install ok triggers-pending\nVersion: 3",
        ("gone", "all"): "Status: deinstall ok config-files\nVersion: 4",
        ("never", "all"): "Status: unknown ok not-installed",
    }
    status = "\n\n".join(f"Package: {name}\nArchitecture: {of}\n{rest}" for (name, of), rest in paragraphs.items())
    lists = [name + (f":{of}" if name == "libc6" else "") for name, of in paragraphs]
    files = {f"var/lib/dpkg/info/{name}.list": "/.\n" for name in lists}
    image = SmallImage({"var/lib/dpkg/status": f"{status}\n", **files})
    assert installed(read_packages(image.tree, image.read)) == {
        "dpkg:half:all": "3",
        "dpkg:libc6:amd64": "2.41-12",
        "dpkg:libc6:i386": "2.41-11",
        "dpkg:tool:amd64": "1:1.0-2+b1",
    }


def test_a_name_that_is_not_utf8_is_passed_over() -> None:
    files: dict[str, str | bytes] = {"usr/x": "", "usr/caf\u00e9": ""}
    files |= {**database(), "var/lib/dpkg/info/tool.list": b"/usr/caf\xe9\n/usr/x\n"}
    assert owned(files) == {"usr/x": "dpkg:tool:amd64"}
