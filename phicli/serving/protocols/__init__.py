"""One module a protocol: how its bodies are read and its answers written."""
