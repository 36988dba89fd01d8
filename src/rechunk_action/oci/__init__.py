"""Images on disk: archives, compressed layers, tables, merge rules, layouts, configuration."""
