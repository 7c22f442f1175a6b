#!/bin/sh
# Is the score of a model with eight times the compute known before it is trained? Two tasks made from held-out text.
# prepare, sweep, predict, target: each resumes. Further arguments of sweep are overrides of its recipe.
set -eu
run="${PYTHON:-python3} -m isoflop"
out="${OUT:-runs/benchmarks}"
stage=$1
shift
case "$stage" in
prepare)
    $run corpus build isoflop/presets/demo_corpus.toml --out $out/corpus
    $run tokens isoflop/presets/demo_tokens.toml --corpus $out/corpus --out $out/tokens
    ${PYTHON:-python3} recipes/study/benchmarks_items.py --corpus $out/corpus --out $out/eval
    ;;
sweep)
    $run sweep recipes/study/benchmarks_sweep.toml data.tokens=$out/tokens --out $out/sweep --keep-weights \
        --no-calibrate "$@"
    $run eval $out/sweep recipes/study/benchmarks_eval.toml --data $out/eval --json $out/cells.json \
        --report $out/cells.html
    ;;
predict)
    $run fit $out/sweep/records.jsonl --out $out/laws.json
    $run plan $out/laws.json --ladder $out/sweep/ladder.toml --budget-flops "${BUDGET:-4.9e12}" --out $out/plan.toml \
        --json $out/plan.json
    ;;
target)
    $run train $out/plan.toml --out $out/target
    $run eval $out/target recipes/study/benchmarks_eval.toml --data $out/eval --json $out/target.json
    $run score $out/target --json $out/score.json
    ;;
*)
    echo "usage: benchmarks.sh prepare | sweep | predict | target" >&2
    exit 2
    ;;
esac
