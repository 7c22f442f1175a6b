export OMP_NUM_THREADS={{ job.threads }} PYTHONUNBUFFERED=1
{% if job.workdir %}
cd -- {{ job.workdir|sh }} || exit 2
{% endif %}
{% if job.asked.setup %}
{{ job.asked.setup }}
[ $? -eq 0 ] || { echo "--setup failed" >&2; exit 2; }
{% endif %}
