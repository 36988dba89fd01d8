"""Images in registries: names, credentials, HTTP that holds out, and the distribution API of one repository."""
