"""What makes the layers of an image."""
