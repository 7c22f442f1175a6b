while kill -0 "$work" 2>/dev/null; do
    wait "$work"  # a signal ends it early
done
wait "$work"
status=$?
