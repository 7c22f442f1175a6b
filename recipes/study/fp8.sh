#!/bin/sh
# FP8 on tensor cores against bf16, the same run in both: prepare, train, figure; or all of them. Each resumes and skips
# what is done. Further arguments are overrides of the stage's recipe.
set -eu
run="${PYTHON:-python3} -m isoflop"
out="${OUT:-runs/fp8}"
stage=$1
shift
case "$stage" in
prepare)
    $run corpus build recipes/study/fp8_corpus.toml --out "$out/corpus" "$@"
    $run tokens recipes/study/fp8_tokens.toml --corpus "$out/corpus" --out "$out/tokens"
    ;;
train)
    $run train recipes/study/fp8_train.toml "data.tokens=$out/tokens" "$@" --out "$out/bfloat16"
    $run train recipes/study/fp8_train.toml "data.tokens=$out/tokens" \
        'numerics.rules=[{modules="blocks.*", format="fp8_block"}]' "$@" --out "$out/fp8_block"
    ;;
figure)
    "${PYTHON:-python3}" recipes/study/fp8_figure.py "$out" "$@"
    ;;
all)
    for each in prepare train figure; do
        sh "$0" $each
    done
    ;;
*)
    echo "usage: fp8.sh prepare | train | figure | all" >&2
    exit 2
    ;;
esac
