"""Files and folders as such: manifests, publishing, hashes, locks, the cache, and strangers' files."""
