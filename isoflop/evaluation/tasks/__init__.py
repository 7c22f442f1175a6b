"""The benchmarks, one file each: what is asked, from which official files, and how an output is graded."""
