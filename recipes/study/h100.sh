#!/bin/sh
# The H100 study, stage by stage: prepare, hyper, sweep, target. Each stage resumes and skips what is done.
set -eu
run="${PYTHON:-python3} -m isoflop.cli"
out=runs/h100
case "$1" in
prepare)
    $run corpus recipes/study/h100_corpus.toml --out $out/corpus --json $out/corpus.json
    $run tokens recipes/study/h100_tokens.toml --corpus $out/corpus --out $out/tokens --json $out/tokens.json
    ;;
hyper)
    $run sweep recipes/study/h100_hyper.toml --out $out/hyper --no-calibrate
    $run fit $out/hyper/records.jsonl --law hyper --json $out/hyper.json
    ;;
*)
    echo "usage: h100.sh prepare | hyper | sweep | target" >&2
    exit 2
    ;;
esac
