#!/bin/sh
# The H100 study, stage by stage: prepare, hyper, seeds, sweep, plan, target, report. Each resumes and skips what is done.
# Further arguments are overrides of the stage's recipe. `seeds` is for speed alone: eight of one cell as one program.
set -eu
run="${PYTHON:-python3} -m isoflop"
out=runs/h100
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
seeds)
    $run sweep recipes/study/h100_sweep.toml --out $out/seeds --no-calibrate study=h100-seeds 'ladder.purpose="grid"' \
        'ladder.budgets=[]' 'ladder.sizes=[1.29e7]' 'ladder.tokens_per_param=[16.76]' hyper.batch_tokens=7296 \
        'ladder.seeds=[0, 1, 2, 3, 4, 5, 6, 7]' ladder.share_trunks=false ladder.n_controls=0 ladder.workers=1 "$@"
    ;;
sweep)
    $run sweep recipes/study/h100_sweep.toml --out $out/sweep --no-calibrate "$@"
    ;;
plan)
    $run fit $out/sweep/records.jsonl --out $out/laws.json
    # training tokens of the corpus, after cleaning
    unique=$(${PYTHON:-python3} -c "import json; print(sum(s['n_tokens'] for s in
        json.load(open('$out/tokens.json'))['shards'] if s['split'] == 'train'))")
    $run plan $out/laws.json --ladder $out/sweep/ladder.toml --budget-flops "${BUDGET:-7.1e16}" \
        --unique-tokens "$unique" --max-epochs "${EPOCHS:-3.9}" --max-micro-batch 4096 --out $out/plan.toml --json $out/plan.json
    ;;
target)
    $run train $out/plan.toml --out $out/target "$@"
    cp $out/sweep/records.jsonl $out/records.jsonl
    $run score $out/target --records $out/records.jsonl --json $out/score.json
    ;;
report)
    $run report $out --figures $out/figures
    ;;
*)
    echo "usage: h100.sh prepare | hyper | seeds | sweep | plan | target | report" >&2
    exit 2
    ;;
esac
