# What the setup scripts share. Sourced from the repository's root, with VENV set, and OLDEST, the
# minor version of Python 3 that the lock begins with.

# The first interpreter that is recent enough for the lock and not too recent for its wheels.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if "$candidate" -c "import sys; sys.exit(not (3, $OLDEST) <= sys.version_info < (3, 13))" \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "PYTHON='${PYTHON-}': expected an interpreter of Python 3.$OLDEST to 3.12;" \
        "found none of these" >&2
    return 1
}

make_venv() {
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        echo "setup: making $VENV with $("$python" --version)"
        "$python" -m venv --clear "$VENV"
    fi
}

pip_install() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# install_locked LOCK [NAME==VERSION ...]: the lock and nothing besides it; versions that the caller
# chose stand for the lock's.
install_locked() {
    local lock=scripts/env/$1.lock part
    shift
    part=$(mktemp)
    echo "setup: installing $lock (some minutes the first time)"
    # setuptools first: it builds the few that have no wheel, so that no other one is fetched for it.
    awk '/^setuptools==/, !/\\$/' "$lock" >"$part"
    pip_install --no-deps --require-hashes -r "$part"
    # torch alone is without hashes: a build for this machine may lie on it.
    grep -v '^torch==' "$lock" >"$part"
    # --use-pep517: an old pip builds as a new one does.
    pip_install --no-deps --require-hashes --no-build-isolation --use-pep517 -r "$part"
    pip_install --no-deps "$(grep '^torch==' "$lock")"
    rm -f "$part"
    if "$VENV/bin/python" scripts/env/locked.py cuda; then
        pip_install --no-deps --require-hashes -r scripts/env/cuda.lock
    fi
    if (($#)); then
        pip_install --no-deps "$@"
    fi
}

# Editable, so that an edit of the clone is what runs.
install_hiprune() (
    # One set-up at a time: whichever environment it is for, setuptools writes into this folder.
    hold_lock .venv-install.lock
    # What an earlier build left here names the entry points of its day, and programs that run from
    # this folder would find it first.
    rm -rf hiprune.egg-info
    pip_install --no-deps --no-build-isolation --editable .
)

check_imports() {
    # Warnings of packages about each other are no news to the reader of this script.
    "$VENV/bin/python" -W ignore - "$@" <<'PYTHON'
import importlib, sys
from importlib.metadata import PackageNotFoundError, version

for name in sys.argv[1:]:
    importlib.import_module(name)
print("setup: imported", ", ".join(sys.argv[1:]))
found = []
for name in ("torch", "torchvision", "transformers", "llava-torch", "lmms_eval", "hiprune"):
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        continue
print("setup:", ", ".join(found))
PYTHON
}

# What the environment was made of: the same files, and it need not be made again.
setup_fingerprint() {
    cat "setup_$1.sh" "scripts/env/$1.lock" scripts/env/cuda.lock scripts/env/common.sh \
        scripts/env/torchvision_cpu.py pyproject.toml | cksum
}

# setup_is_complete NAME [NAME==VERSION ...]: made of these very files, with these versions where
# they are asked for, and nothing has gone missing since.
setup_is_complete() {
    local name=$1 mark=$VENV/hiprune-setup-complete
    shift
    [[ -f $mark && "$(head -n 1 "$mark")" == "$(setup_fingerprint "$name")" ]] || return
    if (($#)); then
        [[ "$(tail -n +2 "$mark")" == "$*" ]] || return
    fi
    # shellcheck disable=SC2046 # a word a version
    "$VENV/bin/python" scripts/env/locked.py "$name" $(tail -n +2 "$mark") >/dev/null
}

# try_benchmark FAMILY BUDGET: two questions to the small model, the way that the benchmarks ask.
try_benchmark() {
    local folder=$VENV/setup-check log=$VENV/setup-check.log start=$SECONDS variable others=()
    for variable in $(compgen -e); do
        case "$variable" in
            HIPRUNE_* | CKPT | TASKS | NUM_PROCESSES) others+=(-u "$variable") ;;
        esac
    done
    echo "setup: two questions to the small model, through lmms-eval"
    rm -rf "$folder"
    if ! env ${others[@]+"${others[@]}"} OUTPUT="$folder" RETENTIONS="$2" LIMIT=2 \
        "$VENV/bin/python" -W ignore -m scripts.bench --family "$1" --tiny >"$log" 2>&1; then
        echo "setup: $VENV is not ready: the benchmark does not run in it" >&2
        grep -h 'FAILED' "$log" | tail -n 1 >&2 || tail -n 5 "$log" >&2
        echo "setup: all of it is in $log" >&2
        return 1
    fi
    rm -rf "$folder" "$log"
    echo "setup: answered in $((SECONDS - start)) s"
}

# hold_lock PATH: until this shell ends; wait where another set-up holds it.
hold_lock() {
    local python
    python=$(find_python)
    LOCK=$1
    mkdir -p "$(dirname "$LOCK")"
    exec 9>>"$LOCK"
    until "$python" scripts/env/file_lock.py "$LOCK" 9 setup; do
        exec 9>>"$LOCK"
    done
    trap 'rm -f "$LOCK"' EXIT
}

# set_up NAME FAMILY BUDGET [NAME==VERSION ...], with OLDEST, VENV and IMPORTS set: make the
# environment, or repair it, or find that it is ready.
set_up() {
    local name=$1 family=$2 budget=$3
    shift 3
    if setup_is_complete "$name" "$@"; then
        echo "setup: $VENV is ready; nothing was changed"
        return
    fi
    hold_lock "$VENV.lock"
    if setup_is_complete "$name" "$@"; then
        echo "setup: $VENV is ready: another set-up has made it"
        return
    fi
    rm -f "$VENV/hiprune-setup-complete"
    make_venv
    install_locked "$name" "$@"
    install_hiprune
    "$VENV/bin/python" scripts/env/torchvision_cpu.py
    if ! "$VENV/bin/python" scripts/env/locked.py "$name" "$@"; then
        echo "setup: $VENV is not what scripts/env/$name.lock says (above); remove $VENV to have it" \
            "made anew" >&2
        return 1
    fi
    check_imports "${IMPORTS[@]}"
    try_benchmark "$family" "$budget"
    {
        setup_fingerprint "$name"
        printf '%s\n' "$@"
    } >"$VENV/hiprune-setup-complete"
    echo "setup: $VENV is ready"
}
