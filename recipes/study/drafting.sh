#!/bin/sh
# Prediction modules as drafts: prepare, train, measure; or all of them. Further arguments are overrides of the stage.
set -eu
out="${OUT:-runs/drafting}"
python="${PYTHON:-python3}"
stage=$1
shift
case "$stage" in
prepare)
    $python -m isoflop corpus build recipes/study/drafting_corpus.toml --out "$out/corpus" "$@"
    $python -m isoflop tokens recipes/study/drafting_tokens.toml --corpus "$out/corpus" --out "$out/tokens"
    ;;
train)
    $python -m isoflop train recipes/study/drafting.toml --out "$out/run" "data.tokens=$out/tokens" "$@"
    ;;
measure)
    $python benchmarks/drafting.py "$out/run" --device cuda --domain code "$@"
    ;;
all)
    for each in prepare train measure; do
        sh "$0" $each
    done
    ;;
*)
    echo "usage: drafting.sh prepare | train | measure | all" >&2
    exit 2
    ;;
esac
