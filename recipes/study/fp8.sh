#!/bin/sh
# FP8 on tensor cores against bf16, the same run in both. Each stage resumes and skips what is done.
#   sh recipes/study/fp8.sh prepare
#   sh recipes/study/fp8.sh train dense|mixture RUN [OVERRIDE ..]    seed of SEED, default 0
#   sh recipes/study/fp8.sh figure dense|mixture [--out FOLDER]      of all seeds and runs that are there
# RUN: a format of `isoflop/numerics/section.py` for every product of the blocks, experts included; with `_until` it is given
# up for bf16 while the rate falls. `bfloat16` is what they are compared with; `bfloat16_again` is the same in smaller
# micro-batches: what another order of sums alone changes.
set -eu
run="${PYTHON:-python3} -m isoflop"
out="${OUT:-runs/fp8}"
usage() {
    sed -n '3,5s/^#   //p' "$0" >&2
    exit 2
}
[ $# -gt 0 ] || usage
stage=$1
shift
case "$stage" in
prepare)
    $run corpus build recipes/study/fp8_corpus.toml --out "$out/corpus" "$@"
    $run tokens recipes/study/fp8_tokens.toml --corpus "$out/corpus" --out "$out/tokens"
    ;;
train)
    [ $# -gt 1 ] || usage
    model=$1
    name=$2
    shift 2
    case "$name" in
    bfloat16) ;;
    bfloat16_again) set -- train.micro_batch=32 "$@" ;;
    *) set -- "numerics.rules=[{modules=\"blocks.*\", format=\"${name%_until}\"}]" "$@" ;;
    esac
    case "$name" in *_until) set -- numerics.until=0.8 "$@" ;; esac
    $run train "recipes/study/fp8_$model.toml" "data.tokens=$out/tokens" "train.seed=${SEED:-0}" "$@" \
        --out "$out/$model/seed${SEED:-0}/$name"
    ;;
figure)
    [ $# -gt 0 ] || usage
    model=$1
    shift
    "${PYTHON:-python3}" recipes/study/fp8_figure.py "$out/$model" "$@"
    ;;
*)
    usage
    ;;
esac
