#!/bin/sh
# Muon against AdamW on the H100 study's ladder: rates of both over a factor of 8, a sweep each, the compute multiplier.
# Command:  sh recipes/study/optimizer.sh rates | sweep | compare, after `sh recipes/study/h100.sh prepare`
# Hardware: one H100 or H200. Each stage resumes. RATE_MUON and RATE_ADAMW are factors of the study's rate law for `sweep`,
# from what `rates` prints (1 where the optimum is the law's own).
set -eu
run="${PYTHON:-python3} -m isoflop"
out=runs/optimizer
stage=$1
shift
case "$stage" in
rates)
    for optimizer in adamw muon; do
        $run sweep recipes/study/h100_hyper.toml --out $out/rates/$optimizer --no-calibrate study=rates-$optimizer \
            train.optimizer=$optimizer 'ladder.learning_rate_factors=[0.35, 0.7, 1.4, 2.8]' 'ladder.batch_factors=[1.0]' "$@"
        $run fit $out/rates/$optimizer/records.jsonl --law hyper --json $out/rates/$optimizer.json
    done
    ;;
sweep)
    for optimizer in adamw muon; do
        factor=${RATE_ADAMW:-1}
        [ $optimizer = muon ] && factor=${RATE_MUON:-1}
        rate=$(${PYTHON:-python3} -c "print(0.0706 * $factor)")
        $run sweep recipes/study/h100_sweep.toml --out $out/$optimizer --no-calibrate study=$optimizer \
            train.optimizer=$optimizer hyper.learning_rate.coefficient="$rate" 'ladder.seeds=[0]' ladder.n_controls=0 "$@"
        $run fit $out/$optimizer/records.jsonl --out $out/$optimizer.json
    done
    ;;
compare)
    $run compare $out/adamw.json $out/muon.json --json $out/compare.json "$@"
    ;;
*)
    echo "usage: optimizer.sh rates | sweep | compare" >&2
    exit 2
    ;;
esac
