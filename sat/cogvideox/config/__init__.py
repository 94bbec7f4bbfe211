"""From YAML files and a command line to one checked Config. See docs/configuration.md."""
