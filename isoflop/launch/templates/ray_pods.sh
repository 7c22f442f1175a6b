{% include "before.sh" %}
{% include "ray_node.sh" %}

if [ "$rank" -ne 0 ]; then
{% if rejoin %}
    while :; do join_ray; sleep 5; done  # until the pod of rank 0 is done; it may start again
{% else %}
    join_ray || true  # it ends when the head does
    exit 0
{% endif %}
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
