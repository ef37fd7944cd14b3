#!/usr/bin/env bash
# Time the installation of an older commit's `make install` and of this one's `make demo`, by turns, each in a fresh
# clone with empty caches of pip and uv; packages and size beside it.
#
#   bash results/install/measure.sh 1975601 2 > results/install/measured.txt
set -euo pipefail
old=$1 rounds=$2
root=$(git rev-parse --show-toplevel)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

install() { # NAME COMMIT TARGET
    rm -rf "$place/clone" "$place/pip" "$place/uv"
    git clone --quiet "$root" "$place/clone"
    git -C "$place/clone" checkout --quiet "$2"
    echo "== $1: make $3, load before $(cut -d' ' -f1 /proc/loadavg)"
    (cd "$place/clone" && export PIP_CACHE_DIR="$place/pip" UV_CACHE_DIR="$place/uv" && TIMEFORMAT='%R s, CPU %U + %S s' \
        && time make "$3" > /dev/null 2> "$place/errors" || tail -n 1 "$place/errors")
    python=$place/clone/.venv/bin/python
    echo "$("$python" -m pip list --format=freeze 2> /dev/null | wc -l) packages, $(du -sm "$place/clone/.venv" | cut -f1) MB, torch $("$python" -c 'import torch; print(torch.__version__)')"
}

for round in $(seq "$rounds"); do
    install "before, round $round" "$old" install
    install "now, round $round" HEAD .venv/.demo
done
echo "== then make test's packages in the same .venv"
(cd "$place/clone" && export PIP_CACHE_DIR="$place/pip" UV_CACHE_DIR="$place/uv" && TIMEFORMAT='%R s, CPU %U + %S s' && time make install > /dev/null 2>&1)
echo "$("$place/clone/.venv/bin/python" -m pip list --format=freeze 2> /dev/null | wc -l) packages, $(du -sm "$place/clone/.venv" | cut -f1) MB"
