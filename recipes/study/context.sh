#!/bin/sh
# The context study, stage by stage: prepare, train, extend, passkey; or all of them. Each resumes and skips what is done.
# Further arguments are overrides of the stage's recipe.
set -eu
run="${PYTHON:-python3} -m isoflop"
out="${OUT:-runs/context}"
stage=$1
shift
case "$stage" in
prepare)
    $run corpus build recipes/study/context_corpus.toml --out "$out/corpus" --json "$out/corpus.json" "$@"
    $run tokens recipes/study/context_tokens.toml --corpus "$out/corpus" --out "$out/tokens" --json "$out/tokens.json"
    ;;
train)
    $run train recipes/study/context_train.toml "data.tokens=$out/tokens" "$@" --out "$out/train"
    ;;
extend)
    $run extend recipes/extend/small.toml "extend.run=$out/train" "$@" --out "$out/long"
    ;;
passkey)
    $run passkey "$out/long" --before "$out/train" --lengths 64 96 128 256 512 1024 --out "$out/passkey" "$@"
    ;;
all)
    for each in prepare train extend passkey; do
        sh "$0" $each
    done
    ;;
*)
    echo "usage: context.sh prepare | train | extend | passkey | all" >&2
    exit 2
    ;;
esac
