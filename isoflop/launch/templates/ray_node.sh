export RAY_AUTH_MODE=token RAY_ADDRESS="$head:$port"
node=(--num-cpus={{ job.cpus_per_node }} --num-gpus={{ job.gpus_per_node }} --disable-usage-stats --block)

join_ray() { # in a shell of its own, which becomes Ray; the head may come up later
    for _ in {1..300}; do
        if (: <"/dev/tcp/$head/$port") 2>/dev/null; then
            exec ray start --address="$RAY_ADDRESS" "${node[@]}"
        fi
        sleep 2
    done
    echo "no Ray at $RAY_ADDRESS after 10 minutes" >&2
    exit 1
}

head_ray() {
    ray start --head --port="$port" --include-dashboard=false "$@" "${node[@]}" &
    ray=$!
    until ray status >/dev/null 2>&1; do
        kill -0 "$ray" 2>/dev/null || { echo "Ray did not start" >&2; exit 1; }
        sleep 1
    done
}
