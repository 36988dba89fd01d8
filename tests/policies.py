"""A small SELinux policy, as text, with all that decides on labels."""

from __future__ import annotations

from pathlib import Path

CONTEXTS = "etc/selinux/test/contexts/files/file_contexts"

_LABELS = (
    ("/.*", "", "default_t"),
    ("/", "-d", "root_t"),
    ("/mnt(/[^/]*)?", "-d", "mnt_t"),
    ("/usr/.*", "", "usr_t"),
    ("/usr/bin/.*", "--", "bin_t"),
    ("/usr/bin/.*", "-l", "bin_link_t"),
    ("/etc(/.*)?", "", "etc_t"),
    ("/etc/shadow[^/]*", "--", "shadow_t"),
)

POLICY = {
    "etc/selinux/config": "# SELINUX=disabled\nSELINUX=enforcing\nSELINUXTYPE=test \n",
    "etc/selinux/test/policy/policy.33": "only its checksum is taken",
    CONTEXTS: "".join(f"{paths} {kind} system_u:object_r:{name}:s0\n" for paths, kind, name in _LABELS)
    + "/proc(/.*)? <<none>>\n/usr/src(/.*)? <<none>>\n",
    f"{CONTEXTS}.local": "/usr/bin/local -- system_u:object_r:local_t:s0\n",
    f"{CONTEXTS}.homedirs": "/home/[^/]+/.* system_u:object_r:user_home_t:s0\n",
    f"{CONTEXTS}.subs_dist": "/sbin /usr/bin\n",
}
"""Content by path."""

USR_ETC = {f"{CONTEXTS}.subs": "/usr/etc /etc\n"}
"""Has /usr/etc labelled like /etc, which ostree has done by itself since version 2023.8, and only when asked to."""


def add_policy(root: Path, *more: dict[str, str]) -> Path:
    """Put the policy, with other content for some paths, into a tree."""
    for files in (POLICY, *more):
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return root
