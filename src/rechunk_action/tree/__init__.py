"""What is in a tree: its paths, their contents, the components that they belong to."""
