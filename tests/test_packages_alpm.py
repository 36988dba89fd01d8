"""Arch Linux's packages."""

from __future__ import annotations

from rechunk_action.tree.packages import installed, owners, read_packages
from tests.small_image import SmallImage

LOCAL = "var/lib/pacman/local"

BASH: dict[str, str | bytes] = {
    f"{LOCAL}/ALPM_DB_VERSION": "9\n",
    f"{LOCAL}/bash-5.2-1/desc": "%NAME%\nbash\n\n%VERSION%\n5.2-1\n\n%BASE%\nbash\n\n",
    f"{LOCAL}/bash-5.2-1/files": "%FILES%\nusr/\nusr/bin/\nusr/bin/bash\netc/bash.bashrc\n\n"
    "%BACKUP%\netc/bash.bashrc\tabc\nusr/bin/other\n\n",
    f"{LOCAL}/bash-5.2-1/mtree": b"\x1f\x8b",
    "usr/bin/bash": "",
    "usr/bin/other": "",
    "etc/bash.bashrc": "",
}

OWNED = {
    f"{LOCAL}/bash-5.2-1/desc": "alpm:bash",
    f"{LOCAL}/bash-5.2-1/files": "alpm:bash",
    f"{LOCAL}/bash-5.2-1/mtree": "alpm:bash",
    "usr/bin/bash": "alpm:bash",
    "etc/bash.bashrc": "alpm:bash",
}


def owned(files: dict[str, str | bytes], links: dict[str, str] | None = None) -> dict[str, str]:
    image = SmallImage(files, links)
    return owners(image.tree, read_packages(image.tree, image.read))


def test_a_package_owns_its_files_and_its_folder() -> None:
    assert owned(BASH) == OWNED


def test_the_version_is_the_one_installed() -> None:
    image = SmallImage({**BASH, f"{LOCAL}/x-1/desc": "%NAME%\nx\n\n"})
    assert installed(read_packages(image.tree, image.read)) == {"alpm:bash": "5.2-1"}


def test_listed_paths_are_resolved() -> None:
    package = {f"{LOCAL}/sh-1-1/desc": "%NAME%\nsh\n\n", f"{LOCAL}/sh-1-1/files": "%FILES%\nbin/sh\n", "usr/bin/sh": ""}
    assert owned(dict(package), links={"bin": "usr/bin"})["usr/bin/sh"] == "alpm:sh"


def test_a_package_without_files_owns_its_folder() -> None:
    package = {f"{LOCAL}/base-3-2/desc": "%NAME%\nbase\n\n", f"{LOCAL}/base-3-2/files": ""}
    assert owned(dict(package)) == dict.fromkeys(package, "alpm:base")


def test_an_empty_list_of_files_does_not_run_into_the_next_section() -> None:
    package: dict[str, str | bytes] = {
        f"{LOCAL}/a-1-1/desc": "%NAME%\na\n\n",
        f"{LOCAL}/a-1-1/files": "%FILES%\n\n%BACKUP%\nusr/x\n\n",
        "usr/x": "",
    }
    assert "usr/x" not in owned(package)


def test_a_folder_without_a_name_is_no_package() -> None:
    assert owned({f"{LOCAL}/broken/files": "%FILES%\nusr/x\n", "usr/x": ""}) == {}


def test_the_database_may_be_moved_out_of_var() -> None:
    def moved(path: str) -> str:
        return path.replace("var/lib", "usr/lib/sysimage/lib")

    assert owned({moved(path): text for path, text in BASH.items()}) == {
        moved(path): who for path, who in OWNED.items()
    }
