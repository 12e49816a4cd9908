"""The machine and the process that compute: threads, memory, and what results are labelled with."""
