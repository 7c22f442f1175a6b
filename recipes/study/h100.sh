#!/bin/sh
# The H100 study, stage by stage: prepare, hyper, sweep, plan, target, report. Each resumes and skips what is done.
# Further arguments are overrides of the stage's recipe.
set -eu
run="${PYTHON:-python3} -m isoflop"
out=runs/h100
unique=97000000 # training tokens of the corpus, after cleaning; `prepare` prints them
stage=$1
shift
case "$stage" in
prepare)
    $run corpus build recipes/study/h100_corpus.toml --out $out/corpus --json $out/corpus.json
    $run tokens recipes/study/h100_tokens.toml --corpus $out/corpus --out $out/tokens --json $out/tokens.json
    ;;
hyper)
    $run sweep recipes/study/h100_hyper.toml --out $out/hyper --no-calibrate
    $run fit $out/hyper/records.jsonl --law hyper --json $out/hyper.json
    ;;
sweep)
    $run sweep recipes/study/h100_sweep.toml --out $out/sweep --no-calibrate "$@"
    ;;
plan)
    $run fit $out/sweep/records.jsonl --out $out/laws.json
    $run plan $out/laws.json --ladder $out/sweep/ladder.toml --budget-flops "${BUDGET:-2.8e16}" \
        --unique-tokens $unique --max-epochs 4 --max-micro-batch 4096 --out $out/plan.toml --json $out/plan.json
    ;;
target)
    $run train $out/plan.toml --out $out/target train.compile=on "$@"
    cp $out/sweep/records.jsonl $out/records.jsonl
    $run score $out/target --records $out/records.jsonl --json $out/score.json
    ;;
report)
    $run report $out --figures $out/figures
    ;;
*)
    echo "usage: h100.sh prepare | hyper | sweep | plan | target | report" >&2
    exit 2
    ;;
esac
