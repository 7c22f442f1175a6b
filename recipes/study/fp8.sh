#!/bin/sh
# FP8 on tensor cores against bf16, the same run in both, and once more with bf16 products while the rate falls: prepare,
# train, figure; or all of them. Each resumes and skips what is done. Further arguments are overrides of the stage's
# recipe. Runs may be trained side by side, a GPU each: train_bfloat16, train_fp8_block, train_until.
set -eu
run="${PYTHON:-python3} -m isoflop"
out="${OUT:-runs/fp8}"
fp8='numerics.rules=[{modules="blocks.*", format="fp8_block"}]'
stage=$1
shift
case "$stage" in
prepare)
    $run corpus build recipes/study/fp8_corpus.toml --out "$out/corpus" "$@"
    $run tokens recipes/study/fp8_tokens.toml --corpus "$out/corpus" --out "$out/tokens"
    ;;
train_bfloat16)
    $run train recipes/study/fp8_train.toml "data.tokens=$out/tokens" "$@" --out "$out/bfloat16"
    ;;
train_fp8_block)
    $run train recipes/study/fp8_train.toml "data.tokens=$out/tokens" "$fp8" "$@" --out "$out/fp8_block"
    ;;
train_until)
    $run train recipes/study/fp8_train.toml "data.tokens=$out/tokens" "$fp8" 'numerics.until=0.8' "$@" \
        --out "$out/fp8_block_until"
    ;;
train)
    for each in train_bfloat16 train_fp8_block train_until; do
        sh "$0" $each "$@"
    done
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
    echo "usage: fp8.sh prepare | train | train_bfloat16 | train_fp8_block | train_until | figure | all" >&2
    exit 2
    ;;
esac
