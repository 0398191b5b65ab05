"""Settings: checked sections, and their loading from recipe, YAML and command line."""
