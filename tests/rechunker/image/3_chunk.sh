#!/bin/bash
# Plan layers for the commit and write it as an image, in the working directory. As in the original, a previous image
# that cannot be read is passed over, PREV_REF_FAIL or not, and one that an earlier run has left is used.

if [ "$(id -u)" != 0 ]; then
    echo "Run as superuser"
    exit 1
fi
if [ -z "$OUT_NAME" ] || [ -z "$OUT_REF" ]; then
    echo "OUT_NAME and OUT_REF are needed: name the output and where the image goes"
    exit 1
fi
set -e
export REPO=${REPO:-./repo}
export OUT_TAG=${OUT_TAG:-master}
export CONTENT_META=${CONTENT_META:-$OUT_NAME.contentmeta.json}
export PREV_NAME=${PREV_NAME:-previous}
export PREV_MANIFEST=${PREV_MANIFEST:-./$PREV_NAME.manifest.json}
# shellcheck source-path=SCRIPTDIR
source "${0%/*}/faults.sh"
heed_faults chunk "$(ostree --repo="$REPO" cat "$OUT_TAG" "/$FAULTS" 2>/dev/null)" .

if [ -n "$PREV_REF" ]; then
    for _ in {1..5}; do
        skopeo inspect "docker://$PREV_REF" >"$PREV_MANIFEST" && break
        echo "Failed to read $PREV_REF"
        sleep 3
    done
    # The redirection has made the file, whatever skopeo did: this is never true.
    if [ -n "$PREV_REF_FAIL" ] && [ ! -f "$PREV_MANIFEST" ]; then
        exit 1
    fi
fi

rechunk

skopeo inspect "$OUT_REF" >"$OUT_NAME.manifest.json"
heed_damage "$OUT_NAME"

chmod 666 -R "$OUT_NAME"*
