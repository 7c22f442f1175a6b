"""Starting work elsewhere: processes of this machine, tasks of a cluster, job files."""
