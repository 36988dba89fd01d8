# shellcheck shell=bash disable=SC2034 # the scripts that source this use what it sets
#
# Faults on purpose. A tree that holds the file usr/share/rechunker-faults asks for them, a line each: `STEP:FAULT` or
# `STEP:FAULT:ARGUMENT`, where STEP is prune, create or chunk. At the start of any step:
#
#   exit:N             ends with this status
#   killed             ends by SIGKILL
#   hang               goes on for ever
#   deaf               the same, and heeds no request to stop
#   full               writes to the step's directory until there is no space left, then fails
#   flood              prints 100,000 lines, and goes on
#   long-line          prints a line of 1,000,000 characters, and goes on
#   invalid-utf8       prints bytes that are no UTF-8, and goes on
#   workflow-commands  prints lines that a workflow's runner would heed, and goes on
#
# In the commit and in the image:
#
#   create:lost-file:/PATH   the commit lacks this file of the tree
#   chunk:DAMAGE             the finished image is damaged: one of the functions in damage.py
FAULTS=usr/share/rechunker-faults

heed_faults() { # STEP, the text of the file, the directory that the step writes to
    local step fault argument
    DAMAGE=
    LOST_FILE=
    while IFS=: read -r step fault argument; do
        [ "$step" = "$1" ] || continue
        case $fault in
            exit) exit "$argument" ;;
            killed) kill -KILL $$ ;;
            hang) sleep infinity ;;
            deaf)
                trap '' HUP INT TERM
                sleep infinity
                ;;
            full)
                cat /dev/urandom >"$3/filler"
                exit 1
                ;;
            flood) seq -f 'line %.0f' 100000 ;;
            long-line) printf '%01000000d\n' 0 ;;
            invalid-utf8) printf 'caf\xe9 \xff\xfe\n' ;;
            workflow-commands) printf '%s\n' '::error::planted' '::add-mask::planted' '::stop-commands::planted' ;;
            lost-file) LOST_FILE=$argument ;;
            *) DAMAGE=$fault ;;
        esac
    done <<<"$2"
}

heed_damage() { # an image layout
    [ -z "$DAMAGE" ] || PYTHONPATH=/sources/rechunk python3 -B -m rechunker.damage "$DAMAGE" "$1"
}
