#!/bin/sh
# Is the cleaned corpus better than the raw one? prepare, sweep, compare: each resumes and skips what is done.
# SIZE=_gpu takes the ladder for a GPU; nothing: that for two CPU cores. Further arguments are overrides of the sweep.
set -eu
run="${PYTHON:-python3} -m isoflop"
size="${SIZE:-}"
out=runs/data$size
stage=$1
shift
case "$stage" in
prepare)
    for half in clean raw; do
        $run corpus build recipes/study/data_$half.toml --out $out/$half --json $out/$half.json
    done
    $run tokens recipes/study/data_tokens$size.toml --corpus $out/clean --out $out/tokens-clean \
        --json $out/tokens-clean.json
    $run tokens recipes/study/data_tokens$size.toml reuse_tokenizer=$out/tokens-clean --corpus $out/raw \
        --out $out/tokens-raw --json $out/tokens-raw.json
    ;;
sweep)
    for half in raw clean; do
        $run sweep recipes/study/data_sweep$size.toml data.tokens=$out/tokens-$half --out $out/sweep-$half \
            --no-calibrate "$@"
        $run fit $out/sweep-$half/records.jsonl --out $out/laws-$half.json
    done
    ;;
compare)
    $run compare $out/laws-raw.json $out/laws-clean.json --json $out/compare.json --figure $out/compare.png \
        --records $out/sweep-raw/records.jsonl $out/sweep-clean/records.jsonl "$@"
    ;;
*)
    echo "usage: data.sh prepare | sweep | compare" >&2
    exit 2
    ;;
esac
