# What the setup scripts share. Sourced from the repository's root, with VENV set, and OLDEST, the
# minor version of Python 3 that the pins need.

# The first interpreter that is recent enough for the pins and not too recent for their wheels.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if "$candidate" -c "import sys; sys.exit(not (3, $OLDEST) <= sys.version_info < (3, 13))" \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "PYTHON='${PYTHON-}': accepted is an interpreter of Python 3.$OLDEST to 3.12;" \
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

install_pinned() {
    echo "setup: installing $1 (some minutes the first time)"
    pip_install -r "$1"
}

# Editable, so that an edit of the clone is what runs.
install_hiprune() {
    pip_install --no-deps --no-build-isolation --editable .
}

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

# Complete, and for these very pins: a changed pin has the setup run again.
# setup_fingerprint SETUP_SCRIPT REQUIREMENTS
setup_fingerprint() {
    cat "$1" "$2" scripts/setup_common.sh pyproject.toml | cksum
}

mark_complete() {
    setup_fingerprint "$@" >"$VENV/hiprune-setup-complete"
    echo "setup: $VENV is ready"
}

setup_is_complete() {
    [[ -f "$VENV/hiprune-setup-complete" ]] &&
        [[ "$(cat "$VENV/hiprune-setup-complete")" == "$(setup_fingerprint "$@")" ]]
}
