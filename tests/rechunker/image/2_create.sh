#!/bin/bash
# Commit the tree in TREE to an OSTree repository. One that exists is used as it is: INIT_REPO changes nothing.

if [ "$(id -u)" != 0 ]; then
    echo "Run as superuser"
    exit 1
fi
set -e
TREE=${TREE:-./tree}
REPO=${REPO:-./repo}
OUT_TAG=${OUT_TAG:-master}
# shellcheck source-path=SCRIPTDIR
source "${0%/*}/faults.sh"
heed_faults create "$(cat "$TREE/$FAULTS" 2>/dev/null)" "$(dirname "$REPO")"

if [ ! -d "$REPO" ]; then
    echo "Creating the repository"
    ostree --repo="$REPO" init --mode=bare-user
    ostree --repo="$REPO" config set core.fsync false
fi

echo "Committing the tree"
ostree --repo="$REPO" commit --branch="$OUT_TAG" --tree=dir="$TREE" --bootable --selinux-policy="$TREE" \
    --selinux-labeling-epoch=1 --skip-list=<(echo "$LOST_FILE")

if [ -n "$RESET_TIMESTAMP" ]; then
    find "$REPO" -exec touch --no-dereference -t "${TIMESTAMP:-197001010100}" {} + || true
fi
