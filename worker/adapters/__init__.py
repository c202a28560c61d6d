"""One file per outside system; each fulfils a Protocol of worker.ports."""
