"""Running code that a model wrote: one entrance (`Sandbox`), layers of the kernel around each job, values compared here."""
