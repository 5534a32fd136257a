#!/bin/sh
# ./mitm.sh ARGS = find or make a virtual environment beside the checkout, then `mitmgate ARGS`. No argument: serve.
#
#   ./mitm.sh demo              the `demo` extra (the SDKs) is installed when it is first asked for
#   ./mitm.sh setup [EXTRA]     install only, and print the folder with the environment's programs
#
# Once installed it costs a checksum of pyproject.toml and then *becomes* mitmgate (exec), so signals and the exit code are
# the gateway's own. It installs anew when pyproject.toml changed, the checkout moved, or the interpreter is gone.
#
#   MITMGATE_PYTHON             the interpreter to use (3.12 or newer); without it one is looked for
set -eu

main() {
    root=$(checkout_of "$0")
    case ${1-} in
        setup) extra=${2-} ;;
        demo) extra=demo ;;
        *) extra='' ;;
    esac
    venv=$(venv_for "$root")
    key="$(cksum <"$root/pyproject.toml") $root"
    is_installed || install
    if [ "${1-}" = setup ]; then
        printf '%s\n' "$venv/bin"
    else
        exec "$venv/bin/mitmgate" "$@"
    fi
}

# -- where things are -----------------------------------------------------------------------------------------------------

# Prints the folder this script really lies in, through any chain of symbolic links.
checkout_of() {
    script=$1
    while [ -L "$script" ]; do
        target=$(readlink "$script")
        case $target in
            /*) script=$target ;;
            *) script=$(dirname "$script")/$target ;;
        esac
    done
    cd "$(dirname "$script")" && pwd -P
}

# Prints where the environment of checkout $1 belongs: in it, or where it cannot be written to, in the user's cache.
venv_for() {
    if [ -d "$1/.venv" ] && [ -w "$1/.venv" ] || [ -w "$1" ]; then
        printf '%s\n' "$1/.venv"
    else
        name=$(printf '%s' "$1" | cksum | cut -d ' ' -f 1)
        printf '%s\n' "${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/mitmgate/$name/.venv"
    fi
}

# A stamp is written last, so an installation that was interrupted has none. Each extra holds the ones before it.
is_installed() {
    [ -x "$venv/bin/python" ] || return 1
    case $extra in
        '') has_stamp installed || has_stamp installed-demo || has_stamp installed-test ;;
        demo) has_stamp installed-demo || has_stamp installed-test ;;
        *) has_stamp "installed-$extra" ;;
    esac
}

has_stamp() {
    [ -f "$venv/$1" ] && [ "$(cat "$venv/$1")" = "$key" ]
}

# -- finding Python -------------------------------------------------------------------------------------------------------

# Prints the first Python that is new enough and whole, in the order of the candidates.
find_python() {
    candidates | while IFS= read -r python; do
        if is_usable "$python"; then
            printf '%s\n' "$python"
            break
        fi
    done
}

# One candidate a line. They need not exist, run, or be new enough: pyenv puts a `python3.13` on PATH that only says that it
# is not selected, and the interpreter it hides is found below its versions folder.
candidates() {
    printf '%s\n' python3.14 python3.13 python3.12 python3 python
    for folder in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
        [ -d "$folder/versions" ] || continue
        for minor in 14 13 12; do
            for python in "$folder/versions/3.$minor".*/bin/python3; do
                printf '%s\n' "$python"
            done
        done
    done
    if command -v uv >/dev/null 2>&1; then
        uv python find --no-project '>=3.12' 2>/dev/null || true
    fi
}

# Debian splits venv off into a package of its own, and a self-built Python may lack ssl or sqlite3.
is_usable() {
    "$1" -c 'import sys, ensurepip, sqlite3, ssl, venv; sys.exit(sys.version_info < (3, 12))' </dev/null >/dev/null 2>&1
}

# Sets $python, or says what to install and ends.
choose_python() {
    if [ -n "${MITMGATE_PYTHON-}" ]; then
        python=$MITMGATE_PYTHON
        is_usable "$python" || fail "MITMGATE_PYTHON=$python is no Python 3.12 or newer with venv, ssl and sqlite3."
    else
        python=$(find_python)
        [ -n "$python" ] || fail "no Python 3.12 or newer found. $(how_to_get_python)"
    fi
}

how_to_get_python() {
    if command -v apt-get >/dev/null 2>&1; then
        echo "Try: apt-get install python3.13-venv (or python3.12-venv), or set MITMGATE_PYTHON=/path/to/python3."
    elif command -v brew >/dev/null 2>&1; then
        echo "Try: brew install python@3.13, or set MITMGATE_PYTHON=/path/to/python3."
    else
        echo "Install one (with its venv module), or set MITMGATE_PYTHON=/path/to/python3."
    fi
}

# -- installing -----------------------------------------------------------------------------------------------------------

install() {
    choose_python
    mkdir -p "$(dirname "$venv")"
    wait_for_turn
    if is_installed; then # by the one we waited for
        exec 9>&-
        return
    fi
    log="$venv.log"
    rm -f "$venv"/installed*
    : >"$log"
    is_healthy || {
        say "making $venv with $("$python" --version 2>&1)"
        with_progress 'making the environment' "$python" -m venv --clear "$venv" || give_up
    }
    say "installing mitmgate${extra:+ with the extra \"$extra\"} (log: $log)"
    with_progress 'installing' install_package || give_up
    printf '%s\n' "$key" >"$venv/installed${extra:+-$extra}"
    exec 9>&- # the gateway must not hold our lock for its whole life
}

# Two at once: the second waits. The kernel lets go of the lock however its holder ends, so none is ever stale. The lock
# belongs to the open file 9, not to the Python that takes it: it holds until this shell closes 9 or ends.
wait_for_turn() {
    exec 9>"$venv.lock"
    "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("mitm.sh: another one is installing; waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
'
}

# Of this checkout (a moved one has the old place written into its programs), with an interpreter and a pip that run.
is_healthy() {
    [ -f "$venv/place" ] && [ "$(cat "$venv/place")" = "$root" ] && is_usable "$venv/bin/python" &&
        "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

install_package() {
    cd "$root" && "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --editable ".${extra:+[$extra]}" && printf '%s\n' "$root" >"$venv/place"
}

# Runs a command with its output in the log; shows on a terminal that something happens, and what.
with_progress() {
    doing=$1
    shift
    "$@" </dev/null >>"$log" 2>&1 &
    job=$!
    trap 'kill "$job" 2>/dev/null; wait "$job"; clear_line; exit 130' INT
    trap 'kill "$job" 2>/dev/null; wait "$job"; clear_line; exit 143' TERM HUP
    [ -t 2 ] && spin "$job" "$doing"
    status=0
    wait "$job" || status=$?
    trap - INT TERM HUP
    return "$status"
}

# "mitm.sh: installing (12 s)... Collecting aiohttp", until job $1 ends.
spin() {
    began=$(date +%s)
    while kill -0 "$1" 2>/dev/null; do
        for dots in '.  ' '.. ' '...'; do
            now=$(date +%s)
            what=$(tail -n 1 "$log" | cut -c 1-50)
            clear_line
            printf 'mitm.sh: %s (%d s)%s %s' "$2" "$((now - began))" "$dots" "$what" >&2
            sleep 0.2 2>/dev/null || sleep 1
            kill -0 "$1" 2>/dev/null || break
        done
    done
    clear_line
}

clear_line() {
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

# -- speaking -------------------------------------------------------------------------------------------------------------

say() {
    printf 'mitm.sh: %s\n' "$1" >&2
}

fail() {
    say "$1"
    exit 1
}

give_up() {
    tail -n 15 "$log" >&2
    fail "that did not work; the whole log is $log. Check the network and pip's settings, then run ./mitm.sh again."
}

main "$@"
