"""One module for each layout of a data set, each with one `read`. Start at read.read_sources."""
