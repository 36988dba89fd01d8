"""What a build or an image is worth knowing of."""
