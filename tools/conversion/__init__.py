"""What the tools that write weights have in common: their command lines, and the manifest beside a result."""
