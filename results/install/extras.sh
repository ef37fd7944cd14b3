#!/usr/bin/env bash
# What `pip install .` of a commit brings, and how soon its command answers: packages and MB without extras and with
# those given, seconds of CPU of an import, the version and the help (least of five).
#
#   bash results/install/extras.sh 1975601 "" > results/install/extras_before.txt
#   bash results/install/extras.sh HEAD "sae,report explorer" > results/install/extras_now.txt
set -euo pipefail
unset PYTHONPATH
commit=$1 extras=$2
root=$(git rev-parse --show-toplevel)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
git clone --quiet "$root" "$place/clone"
git -C "$place/clone" checkout --quiet "$commit"
python3.11 -m venv "$place/venv"
bin=$place/venv/bin
cd "$place"

size() { # WHAT
    echo "$1: $("$bin/pip" list --format=freeze 2> /dev/null | wc -l) packages, $(du -sm venv | cut -f1) MB"
}
cpu() { # COMMAND...
    for _ in 1 2 3 4 5; do
        /usr/bin/time -f "%U %S" "$@" 2>&1 > /dev/null | tail -n 1 | awk '{print $1 + $2}'
    done | sort -n | head -n 1
}

size "an empty environment"
"$bin/pip" install --quiet --constraint clone/constraints.txt ./clone 2> errors || tail -n 1 errors
size "pip install ."
du -sm venv/lib/python3.11/site-packages/* | sort -rn | head -n 8 | sed "s|venv/lib/python3.11/site-packages/||"
echo "import cocomix: $(cpu "$bin/python" -c 'import cocomix') s of CPU"
echo "cocomix --version: $(cpu "$bin/cocomix" --version) s of CPU"
echo "cocomix --help: $(cpu "$bin/cocomix" --help) s of CPU"
for extra in $extras; do
    "$bin/pip" install --quiet --constraint clone/constraints.txt "./clone[$extra]" 2> errors || tail -n 1 errors
    size "pip install '.[$extra]' on top"
done
