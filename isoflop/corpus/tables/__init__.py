"""Documents on disk: partitions, stages of a build, the output folder."""
