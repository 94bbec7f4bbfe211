"""What the tools that write weights share: command line, manifest, hub, facts of a YAML, comparison with diffusers."""
