"""What serves a model elsewhere: the folder that an image is built from, and manifests for Kubernetes."""
