"""OSTree commits inside of container images, read and written without libostree."""
