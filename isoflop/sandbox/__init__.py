"""Running code that a model wrote: layers of the kernel around each job, values compared in the parent."""
