{% include "before.sh" %}
{% include "ray_node.sh" %}

if [ "$rank" -ne 0 ]; then
    ray=
    trap '[ -z "$ray" ] || kill "$ray" 2>/dev/null; exit 143' TERM
    while :; do
        join_ray &
        ray=$!
        wait "$ray"
{% if rejoin %}
        sleep 5 # rank 0 may start again; once it is done, this pod is stopped
{% else %}
        exit 0 # it ends when rank 0 does
{% endif %}
    done
fi
work=
trap '[ -z "$work" ] || kill -TERM "$work"' TERM INT  # save and leave
head_ray
isoflop {{ words(job, recipe) }} &
work=$!
{% include "wait.sh" %}
kill "$ray"
wait "$ray"
exit "$status"
